#!/usr/bin/env python
"""Is this checkout as fast as another one? Both do the same work, in turns, on one core each.

    git worktree add ../before 6abfa9e
    python benchmarks/versus.py ../before --rounds 5
    python benchmarks/versus.py ../before --rounds 5 --engine tape    # without machine code

Each figure is env steps per second of the training loop alone (collect + update), as `rlstudio run --json` tells it; where an algorithm makes one update a step, it is updates per second as
well. Each round runs both, the other one first in every second round; only the ratio within a round means anything. Rows go to benchmarks/results/versus.jsonl.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, ROOT, RunFailed, append, record, table

CASES = {  # config → overrides; the warm-up of SAC is not measured beyond its first 100 steps
    "ppo/cartpole": ("train.total_steps=122880",),
    "dqn/cartpole": ("train.total_steps=20000",),
    "sac/pendulum": ("train.total_steps=2000",),
}
MAIN = "from rlstudio.studio.cli import main; main()"


def speed(checkout: Path, config: str, overrides: tuple[str, ...], engine: str) -> float:
    "Env steps per second of one run with the code of a checkout"
    with tempfile.TemporaryDirectory() as runs:
        if checkout == ROOT: (Path(runs) / "settings.ini").write_text(f"[DEFAULT]\nengine = {engine}\n")
        command = [sys.executable, "-c", MAIN, "run", str(checkout / "configs" / f"{config}.yaml"), *overrides, "eval.episodes=0", "checkpoint.every=0", "--runs-dir", runs, "--json"]
        done = subprocess.run(command, cwd=runs, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode: raise RunFailed(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return float(json.loads(done.stdout)["env_steps_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="auto", help="of this checkout; the other one keeps its own choice")
    parser.add_argument("--no-store", action="store_true")
    args = parser.parse_args()
    other, ratios = args.other.resolve(), {c: list[float]() for c in CASES}
    for k in range(args.rounds):
        for config, overrides in CASES.items():
            both = {tree: speed(tree, config, overrides, args.engine) for tree in ((ROOT, other) if k % 2 else (other, ROOT))}
            ratios[config].append(both[ROOT] / both[other])
            print(f"round {k + 1} {config}: {both[ROOT]:,.0f} against {both[other]:,.0f}: {ratios[config][-1]:.3f}", flush=True)
            if not args.no_store:
                commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=other, capture_output=True, text=True).stdout.strip()
                append(RESULTS / "versus.jsonl", record(config=config, overrides=overrides, round=k + 1, engine=args.engine, here=both[ROOT], other=both[other], other_commit=commit))
    print(table(("config", "median", "min", "max"), [(c, *(round(f(r), 3) for f in (statistics.median, min, max))) for c, r in ratios.items()]))


if __name__ == "__main__": main()
