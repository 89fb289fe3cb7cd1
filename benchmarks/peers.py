#!/usr/bin/env python
"""RLStudio beside Stable-Baselines3 (and SBX, the same in JAX): equal work in interleaved rounds, each with one thread.

    python benchmarks/peers.py --rounds 5
    python benchmarks/peers.py --case sac
    python benchmarks/peers.py --case dqn
    python benchmarks/peers.py --case ppo-pixels

| case | the work | what counts |
|---|---|---|
| ppo | CartPole-v1, 8 environments × 128 steps, 4 minibatches, 4 epochs, two tanh networks of 64 × 64 | env steps per second |
| sac | Pendulum-v1, one update per env step, batch 256, relu networks of 256 × 256 | updates per second |
| dqn | CartPole-v1, one update per 4 env steps, batch 64, relu network of 64 × 64 | env steps per second |
| ppo-pixels | ALE/Pong-v5 as 84 × 84 × 4, 8 environments × 128 steps, 4 minibatches, 4 epochs, the Nature network | env steps per second |
| dqn-pixels | the same frames, one environment, one update per 4 env steps, batch 32 | env steps per second |

Observations and rewards are not normalised. The clock sees the training loop alone, and of SAC and DQN only what comes after the first
steps, in which a buffer is filled and JAX compiles; what is left is acting, stepping the environment, remembering and learning. In these
two cases every library runs on the same single core, since JAX does not ask torch how many threads it may have.

The peers go into an environment of their own, which is thrown away (or kept with --venv); it borrows torch and gymnasium from this one by a
path, and nothing is installed here.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, RunFailed, append, record, rlstudio, table


@dataclass(frozen=True)
class Case:
    "One comparison"
    title: str              # names the work in the stored history
    config: str             # ours, in configs/
    same: tuple[str, ...]   # makes it the peers' work, whatever the file says
    peers: tuple[str, ...]  # whom it is compared with
    steps: int              # env steps of one run
    warm: int = 0           # env steps before the clock counts; then also: all on one core
    ratio: float | None = None  # updates per env step, if updates are what counts

    episodes: int = 20      # of the evaluation, which is not in the clock

    @property
    def figure(self) -> str: return "updates_per_second" if self.ratio else "env_steps_per_second"


PLAIN = ("net.normalize_obs=false", "net.normalize_reward=false", "algo.learning_rate_schedule=constant", "algo.gamma=0.99")
REPLAY = ("env.num_envs=1", "net.activation=relu", "algo.num_steps=256", "algo.buffer_size=100000", "algo.n_step=1", "algo.prioritized=false",
          "log.every=1")
CASES = {
    "ppo": Case("ppo CartPole-v1, 8 × 128, 4 × 4, 64-64 tanh", "ppo/cartpole.yaml", (
        *PLAIN, "env.num_envs=8", "algo.num_steps=128", "algo.num_minibatches=4", "algo.num_epochs=4", "net.hidden=[64,64]", "net.activation=tanh",
        "algo.learning_rate=0.0003", "algo.gae_lambda=0.95", "algo.clip_range=0.2", "algo.ent_coef=0.0", "algo.vf_coef=0.5",
        "algo.max_grad_norm=0.5", "algo.target_kl=null"), ("sb3",), 102_400),
    "sac": Case("sac Pendulum-v1, 1 update per step, batch 256, 256-256 relu", "sac/pendulum.yaml", (
        *PLAIN, *REPLAY, "algo.train_every=1", "algo.update_ratio=1", "algo.batch_size=256", "net.hidden=[256,256]", "algo.learning_rate=0.001",
        "algo.learning_starts=100", "algo.tau=0.005", "algo.ent_coef=auto"), ("sb3", "sbx"), 4_608, warm=512, ratio=1.0),
    "dqn": Case("dqn CartPole-v1, 1 update per 4 steps, batch 64, 64-64 relu", "dqn/cartpole.yaml", (
        *PLAIN, *REPLAY, "algo.train_every=4", "algo.update_ratio=0.25", "algo.batch_size=64", "net.hidden=[64,64]", "algo.learning_rate=0.0005",
        "algo.learning_starts=1000", "algo.tau=1", "algo.target_every=250", "algo.epsilon_start=1", "algo.epsilon_end=0.05",
        "algo.epsilon_fraction=0.1", "algo.max_grad_norm=10", "algo.double=false", "algo.dueling=false", "algo.quantiles=1"),
        ("sb3",), 51_200, warm=2_048),
    "ppo-pixels": Case("ppo ALE/Pong-v5, 84 × 84 × 4, 8 × 128, 4 × 4, nature", "ppo/pong.yaml", (
        "algo.learning_rate_schedule=constant", "algo.clip_range_schedule=constant", "net.normalize_obs=false"), ("sb3",), 6_144, episodes=1),
    "dqn-pixels": Case("dqn ALE/Pong-v5, 84 × 84 × 4, 1 update per 4 steps, batch 32, nature", "dqn/pong.yaml", (
        "env.num_envs=1", "algo.num_steps=256", "algo.buffer_size=10000", "algo.learning_starts=1000", "log.every=1", "net.normalize_reward=false"),
        ("sb3",), 6_144, warm=2_048, episodes=1),
}
PEER = """
import json, sys, time
import torch
torch.set_num_threads(1)
library, case, seed, steps, warm, episodes = json.loads(sys.argv[1])
if library == "sbx": import sbx as peer
else: import stable_baselines3 as peer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

def worlds(n, seed):
    if "pixels" not in case: return make_vec_env("Pendulum-v1" if case == "sac" else "CartPole-v1", n_envs=n, seed=seed)
    import ale_py, gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack
    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs=n, seed=seed, env_kwargs=dict(frameskip=1, repeat_action_probability=0)), 4)

models = dict(
    ppo=lambda: peer.PPO("MlpPolicy", worlds(8, seed), n_steps=128, batch_size=256, n_epochs=4, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95,
                         clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=torch.nn.Tanh)),
    sac=lambda: peer.SAC("MlpPolicy", worlds(1, seed), train_freq=1, gradient_steps=1, batch_size=256, learning_rate=1e-3, learning_starts=100,
                         buffer_size=100_000, gamma=0.99, tau=0.005, ent_coef="auto", seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=[256, 256])),
    dqn=lambda: peer.DQN("MlpPolicy", worlds(1, seed), train_freq=4, gradient_steps=1, batch_size=64, learning_rate=5e-4, learning_starts=1000,
                         buffer_size=100_000, gamma=0.99, tau=1.0, target_update_interval=1000, exploration_initial_eps=1.0,
                         exploration_final_eps=0.05, exploration_fraction=0.1, max_grad_norm=10, seed=seed, device="cpu",
                         policy_kwargs=dict(net_arch=[64, 64])))
models["ppo-pixels"] = lambda: peer.PPO("CnnPolicy", worlds(8, seed), n_steps=128, batch_size=256, n_epochs=4, learning_rate=2.5e-4, gamma=0.99,
                                        gae_lambda=0.95, clip_range=0.1, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu")
models["dqn-pixels"] = lambda: peer.DQN("CnnPolicy", worlds(1, seed), train_freq=4, gradient_steps=1, batch_size=32, learning_rate=1e-4,
                                        learning_starts=1000, buffer_size=10_000, gamma=0.99, tau=1.0, target_update_interval=1000,
                                        exploration_initial_eps=1.0, exploration_final_eps=0.01, exploration_fraction=0.1, seed=seed, device="cpu")
model = models[case]()
if warm: model.learn(warm)
before, start = (model.num_timesteps, model._n_updates), time.perf_counter()
model.learn(steps - warm, reset_num_timesteps=not warm)
seconds = time.perf_counter() - start
mean, std = evaluate_policy(model, worlds(1, seed + 1), n_eval_episodes=episodes)
print(json.dumps(dict(total_steps=model.num_timesteps, env_steps_per_second=(model.num_timesteps - before[0]) / seconds,
                      updates_per_second=(model._n_updates - before[1]) / seconds, eval_return_mean=float(mean), eval_return_std=float(std),
                      version=peer.__version__)))
"""


def make_venv(folder: Path, *packages: str) -> Path:
    "An environment for the peers: their own packages, and torch and gymnasium borrowed from this one by a path"
    python = folder / "bin" / "python"
    if not python.exists(): subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    (Path(own.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "stable-baselines3", *packages], check=True,
                   stdout=sys.stderr)
    return python


def one_thread() -> dict[str, str]:
    "The variables of a process that calculates with one thread"
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def one_core() -> None:
    "From here on, this process and those that it starts share one core"
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    else: print("this system cannot bind processes to a core: JAX may use several", file=sys.stderr)


def theirs(python: Path, library: str, case: str, seed: int, steps: int) -> dict[str, Any]:
    "One run of a peer"
    task = json.dumps([library, case, seed, steps, CASES[case].warm, CASES[case].episodes])
    done = subprocess.run([python, "-c", PEER, task], capture_output=True, text=True, env=one_thread(), stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return found if CASES[case].ratio else {k: v for k, v in found.items() if k != "updates_per_second"}


def rate_after(metrics: Path, warm: int) -> float:
    "Env steps per second from the first record at or after `warm` env steps to the last; records tell the rate since the beginning"
    records = [(r["step"], r["step"] / r["speed/env_steps_per_second"]) for r in map(json.loads, metrics.read_text().splitlines())]
    (step, seconds), (last, end) = next(r for r in records if r[0] >= warm), records[-1]
    return (last - step) / (end - seconds)


def ours(case: str, seed: int, steps: int, runs: str) -> dict[str, Any]:
    "One run of RLStudio"
    c = CASES[case]
    result, _ = rlstudio("run", ROOT / "configs" / c.config, f"train.seed={seed}", f"train.total_steps={steps}", f"eval.episodes={c.episodes}", *c.same, "--runs-dir", runs, "--quiet")
    found = {k: result[k] for k in ("total_steps", "env_steps_per_second", "eval_return_mean", "eval_return_std")}
    if c.warm: found["env_steps_per_second"] = rate_after(Path(result["run"]) / "metrics.jsonl", c.warm)
    if c.ratio: found["updates_per_second"] = found["env_steps_per_second"] * c.ratio
    return found


def compare(python: Path, case: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    "Rounds of one run each, another one first every time, so that a drifting machine is fair to all"
    rows, names, figure = [], ["rlstudio", *CASES[case].peers], CASES[case].figure
    with tempfile.TemporaryDirectory() as runs:
        for n in range(1, rounds + 1):
            turn = (n - 1) % len(names)
            row = {name: ours(case, n, steps, runs) if name == "rlstudio" else theirs(python, name, case, n, steps)
                   for name in names[turn:] + names[:turn]}
            ratios = {p: row["rlstudio"][figure] / row[p][figure] for p in CASES[case].peers}
            print(f"round {n}: " + ", ".join(f"{r:.2f} × {p}" for p, r in ratios.items()), flush=True)
            rows.append(row | {"round": n, "ratio": ratios["sb3"]} | {f"ratio_{p}": r for p, r in ratios.items() if p != "sb3"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="ppo", help="the work (default: ppo)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="env steps of one run (default: " + ", ".join(f"{k} {c.steps}" for k, c in CASES.items()) + ")")
    parser.add_argument("--venv", type=Path, help="keep the peers' environment in this folder, outside the project's own")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    case = CASES[options.case]
    steps = options.steps or case.steps
    if steps < 2 * case.warm: parser.error(f"--steps {steps}: expected at least {2 * case.warm}, since the first {case.warm} do not count")
    with tempfile.TemporaryDirectory() as temporary:
        python = make_venv(options.venv or Path(temporary) / "venv", *(["sbx-rl"] if "sbx" in case.peers else []))
        if case.warm: one_core()
        rows = compare(python, options.case, options.rounds, steps)
    for row in rows if not options.no_store else []: append(RESULTS / "peers.jsonl", record(config=case.title, steps=steps, **row))
    names, keys = ["rlstudio", *case.peers], ["ratio", *(f"ratio_{p}" for p in case.peers if p != "sb3")]
    what = case.figure.replace("_per_second", "/s").replace("env_", "")
    body = [(r["round"], *(f"{r[n][case.figure]:,.0f}" for n in names), *(float(r[k]) for k in keys),
             *(float(r[n]["eval_return_mean"]) for n in names)) for r in rows]
    print(table(("round", *(f"{n} {what}" for n in names), *keys, *(f"{n} return" for n in names)), body))
    for key, peer in zip(keys, case.peers): print(f"median {key}: {statistics.median(r[key] for r in rows):.2f} × {peer}")


if __name__ == "__main__": main()
