#!/usr/bin/env python
"""Every world that is installed: train it with a default algorithm, evaluate it, kill it, and resume it to the same weights.

    python benchmarks/every_world.py                        # all ids that `rlstudio list envs` knows, Atari apart
    python benchmarks/every_world.py --match MiniGrid --import minigrid

For each id: one run of 2,000 env steps without an interruption, and one that a SIGKILL ends after half of them and `rlstudio resume` brings to its end. Both are evaluated. A world passes if
the two have the same `weights_sha256`. One that cannot be restored exactly (level L1 or L2) says so in its row: then the resumed run must be complete, but its weights differ.
Rows go to benchmarks/results/every_world.jsonl.
"""
import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import RESULTS, append, record, table

ALGORITHMS = ("ppo", "sac")   # of these the first that takes the actions: SAC for bounded boxes
WHICH = """
import sys
from rlstudio.core.registry import import_own
import_own(*sys.argv[1:])
from rlstudio.envs.make import env_ids
print(*env_ids(), sep='\\n')
"""
KINDS = """
import sys, warnings
warnings.simplefilter('ignore')
from rlstudio.core.registry import import_own
import_own(*sys.argv[2:])
from rlstudio.core.options import EnvConfig
from rlstudio.envs.make import make_env
space = make_env(EnvConfig(id=sys.argv[1])).action_space
import numpy as np
import gymnasium as gym
box = isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all() and space.dtype.kind == 'f'
print('sac' if box else 'ppo')
"""
KILL = """
import os, signal, sys
from rlstudio.studio.cli import main
from rlstudio.train.trainer import Trainer
plain = Trainer.step
def step(self):
    out = plain(self)
    if self.env_steps >= 1000: os.kill(os.getpid(), signal.SIGKILL)
    return out
Trainer.step = step
main()
"""


def python(code: str, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)


def last(text: str) -> str: return (text.strip().splitlines() or ["no output"])[-1][:200]


def one(env_id: str, modules: list[str], runs: str) -> dict[str, object]:
    "What came of one world"
    kind = python(KINDS, env_id, *modules)
    if kind.returncode: return dict(env=env_id, ok=False, why=last(kind.stderr))
    algo, name = kind.stdout.split()[-1], re.sub(r"\W", "_", env_id)
    config = Path(runs) / f"{name}.yaml"
    size = "num_steps: 128" if algo == "ppo" else "learning_starts: 200\n  train_every: 4\n  num_steps: 100\n  update_ratio: 0.25\n  batch_size: 64\n  buffer_size: 2000"
    config.write_text(f"env:\n  id: {env_id}\n  num_envs: {4 if algo == 'ppo' else 1}\nalgo:\n  name: {algo}\n  {size}\nnet:\n  hidden: [64, 64]\n"
                      "train:\n  total_steps: 2000\neval:\n  episodes: 2\n  num_envs: 2\n  max_steps: 1000\ncheckpoint:\n  every: 500\n")
    own = [x for m in modules for x in ("--import", m)]
    options = ["--runs-dir", runs, "--quiet", *own]
    main = "from rlstudio.studio.cli import main; main()"
    whole = python(main, "run", str(config), "--name", f"{name}-whole", "--json", *options)
    if whole.returncode: return dict(env=env_id, algo=algo, ok=False, why=last(whole.stderr))
    killed = python(KILL, "run", str(config), "--name", f"{name}-killed", *options)
    if killed.returncode != -signal.SIGKILL: return dict(env=env_id, algo=algo, ok=False, why=f"not killed: {last(killed.stderr)}")
    again = python(main, "resume", str(Path(runs) / f"{name}-killed"), "--json", "--quiet", *own)
    if again.returncode: return dict(env=env_id, algo=algo, ok=False, why=last(again.stderr))
    a, b = json.loads(whole.stdout), json.loads(again.stdout)
    level = json.loads((Path(runs) / f"{name}-killed" / "manifest.json").read_text())["level"]
    same = a["weights_sha256"] == b["weights_sha256"]
    why = "" if same else f"level {level}: the episodes in flight are given up" if level != "L3" else "other weights, though L3"
    return dict(env=env_id, algo=algo, ok=same or level != "L3", same=same, level=level, eval_mean=a["eval_return_mean"], why=why)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default=r"^(?!ALE/)", help="regular expression over ids")
    parser.add_argument("--import", dest="modules", action="append", default=[], help="a module that registers more ids")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-store", action="store_true")
    args = parser.parse_args()
    ids = [i for i in python(WHICH, *args.modules).stdout.split() if re.search(args.match, i)]
    rows = []
    with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda i: one(i, args.modules, runs), ids):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if not args.no_store: append(RESULTS / "every_world.jsonl", record(**row))
    print(table(("world", "algorithm", "same weights", "level", "remark"),
                [(r["env"], r.get("algo", ""), "yes" if r.get("same") else "no", r.get("level", ""), r["why"]) for r in rows]))
    print(f"{sum(bool(r['ok']) for r in rows)} of {len(rows)} worlds, {sum(bool(r.get('same')) for r in rows)} with the same weights")
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__": sys.exit(main())
