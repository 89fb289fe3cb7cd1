#!/usr/bin/env python
"""Worker processes beside one process, and beside Stable-Baselines3's SubprocVecEnv: stepping alone, in interleaved rounds.

    python benchmarks/workers.py --rounds 5
    python benchmarks/workers.py --case sleep --no-store

| case | the world, eight of them | what it shows |
|---|---|---|
| cheetah | HalfCheetah-v5, about 0.1 ms of computing a step | how much of a second core is used |
| sleep | a world that waits 5 ms in each step, as one that asks another program does | how much waiting is done at the same time |

Each contender steps the same random actions in a process of its own; only the ratio within a round means anything. `one` is our `InProcess`, `workers` our workers (as many as there are cores for the
cheetahs, and eight for the sleepers, as SubprocVecEnv has in both cases, since it starts one process for each env). Every contender says the sum of its rewards: with the same actions and seeds ours must be the same number.
The clock begins after a warm-up. SB3 goes into an environment of its own (as in benchmarks/peers). Rows go to benchmarks/results/workers.jsonl.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, RunFailed, append, make_venv, one_thread, record, table

CASES = {"cheetah": ("HalfCheetah-v5", 400), "sleep": ("Sleeper-v0", 60)}   # env, steps of all eight
WORLD = """
import time
import gymnasium as gym
import numpy as np

class Sleeper(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}
    def step(self, action):
        time.sleep(0.005)
        return np.zeros(3, np.float32), float(self.np_random.random()), False, False, {}

gym.register('Sleeper-v0', Sleeper, max_episode_steps=1000)
"""
MAIN = """
import json, sys, time
import gymnasium as gym
import numpy as np
import bench_world
env_id, who, steps, processes = json.loads(sys.argv[1])

def ours(backend):
    from rlstudio.core.options import EnvConfig
    from rlstudio.envs.backends import make_vector
    env = make_vector(EnvConfig(id=env_id, num_envs=8, backend=backend, workers=processes if backend == 'workers' else None))
    env.reset(range(8))
    return env, lambda a: env.step(a).reward

def sb3():
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv
    env = make_vec_env(env_id, n_envs=8, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method='spawn'))
    env.reset()
    return env, lambda a: env.step(a)[1]

if __name__ == '__main__':
    env, step = sb3() if who == 'sb3' else ours('workers' if who == 'workers' else 'inprocess')
    space, rng = gym.spec(env_id).make().action_space, np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (steps, 8, *space.shape)).astype(np.float32)
    for a in actions[:20]: step(a)
    total, start = 0.0, time.perf_counter()
    for a in actions: total += float(step(a).sum())
    seconds = time.perf_counter() - start
    env.close()
    print(json.dumps(dict(env_steps_per_second=8 * steps / seconds, reward=total)))
"""


def measured(python: str | Path, folder: Path, case: str, who: str, steps: int, processes: int) -> dict[str, Any]:
    "One contender, in a process of its own"
    task = json.dumps([CASES[case][0], who, steps, processes])
    done = subprocess.run([str(python), "main.py", task], cwd=folder, capture_output=True, text=True, env=one_thread(), stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(f"{who}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(python: Path, folder: Path, case: str, rounds: int, steps: int, processes: int) -> list[dict[str, Any]]:
    "Rounds of all contenders, another one first every time"
    names, rows = ["one", "workers", "sb3"], []
    for n in range(1, rounds + 1):
        turn = n % len(names)
        row = {who: measured(python if who == "sb3" else sys.executable, folder, case, who, steps, processes) for who in names[turn:] + names[:turn]}
        if row["one"]["reward"] != row["workers"]["reward"]: raise RunFailed(f"other rewards: {row}")
        speed = {who: row[who]["env_steps_per_second"] for who in names}
        ratios = dict(ratio_one=speed["workers"] / speed["one"], ratio_sb3=speed["workers"] / speed["sb3"])
        print(f"{case}, round {n}: workers are {ratios['ratio_one']:.2f} × one process, {ratios['ratio_sb3']:.2f} × SubprocVecEnv", flush=True)
        rows.append(row | ratios | {"round": n})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="the world (default: both)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps of all eight envs (default: " + ", ".join(f"{k} {n}" for k, (_, n) in CASES.items()) + ")")
    parser.add_argument("--workers", type=int, help="processes of ours (default: cheetah 2, sleep 8)")
    parser.add_argument("--venv", type=Path, help="keep SB3's environment in this folder, outside the project's own")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    body = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "bench_world.py").write_text(WORLD)
        (folder / "main.py").write_text(MAIN)
        python = make_venv(options.venv or folder / "venv", "stable-baselines3")
        for case in [options.case] if options.case else CASES:
            steps, processes = options.steps or CASES[case][1], options.workers or dict(cheetah=2, sleep=8)[case]
            rows = compare(python, folder, case, options.rounds, steps, processes)
            for row in rows if not options.no_store else []: append(RESULTS / "workers.jsonl", record(case=case, env=CASES[case][0], steps=steps, workers=processes, **row))
            middle = [statistics.median(r[who]["env_steps_per_second"] for r in rows) for who in ("one", "workers", "sb3")]
            body.append((case, processes, *(f"{x:,.0f}" for x in middle), *(statistics.median(r[k] for r in rows) for k in ("ratio_one", "ratio_sb3"))))
    print(table(("world × 8", "workers", "one process /s", "workers /s", "SubprocVecEnv /s", "× one", "× SubprocVecEnv"), body))


if __name__ == "__main__": main()
