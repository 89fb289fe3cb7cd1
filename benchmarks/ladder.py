#!/usr/bin/env python
"""The ladder: the same training on every rung, from autograd to the compiled rollout; processor time, in turns, in one process.

    python benchmarks/ladder.py --rounds 7

PPO on CartPole-v1, 8 environments × 128 steps, 4 epochs of 4 minibatches, two tanh networks of 64 × 64, nothing normalised. Each rung is one trainer that goes on training; a round lets every rung
make the same number of env steps, one after the other, in the order of the ladder and then backwards. What counts is processor time for an env step, and the ratio within a round: a machine's speed drifts.

| rung | what computes |
|---|---|
| autograd | torch, one operation after the other |
| tape | the loss on NumPy arrays (chapters nets.tape, nets.layers) |
| nodes | the same, its nodes compiled (chapter fast.kernels) |
| rollout | the collecting as well (chapter fast.rollout) |

Chapter fast.profile draws the stored rows.
"""
# ruff: noqa: E402
import sys

sys.path.append(sys.path.pop(0))   # numba asks for the package `coverage`, and a script beside this one has its name

import argparse
import os
import statistics
import time

from common import RESULTS, append, record, table

from rlstudio.algos.common import engines
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.options import config_from_dict
from rlstudio.fast.rollout import CompiledLoop
from rlstudio.train.trainer import Trainer


class Nodes(CompiledLoop):
    "The compiled engine without its loop"
    def collect(self, *args: object, **kwargs: object) -> bool: return False


engines.add("nodes", Nodes)
RUNGS = {"autograd": "autograd", "tape": "tape", "nodes": "nodes", "rollout": "compiled"}
WORK = "ppo CartPole-v1, 8 × 128, 4 × 4, 64-64 tanh"


def trainer(engine: str, steps: int) -> Trainer:
    "One rung"
    return Trainer(config_from_dict(dict(
        env=dict(id="CartPole-v1", num_envs=8), algo=dict(name="ppo", num_steps=128, num_epochs=4, num_minibatches=4, learning_rate_schedule="constant"),
        net=dict(hidden=[64, 64], activation="tanh", normalize_obs=False, normalize_reward=False), train=dict(total_steps=steps, seed=1))), engine=engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4096, help="env steps of a rung in one round (default: 4096)")
    parser.add_argument("--only", default=",".join(RUNGS), metavar="RUNG,RUNG", help=f"some of {', '.join(RUNGS)}")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if odd := set(chosen) - set(RUNGS): parser.error(f"--only: given {', '.join(sorted(odd))}, expected some of {', '.join(RUNGS)}")
    rounds: list[dict[str, float]] = []
    with arithmetic_threads():
        rungs = {name: trainer(RUNGS[name], options.steps * (options.rounds + 2)) for name in chosen}
        for t in rungs.values(): t.train(1024)   # compiled, and warm
        for k in range(options.rounds):
            took = {}
            for name in chosen if k % 2 == 0 else chosen[::-1]:
                before, start = rungs[name].env_steps, time.process_time()
                rungs[name].train(before + options.steps)
                took[name] = (time.process_time() - start) / (rungs[name].env_steps - before) * 1e6
            rounds.append(took)
            print(f"round {k + 1}: " + ", ".join(f"{name} {took[name]:.1f}" for name in chosen), flush=True)
    if not options.no_store: append(RESULTS / "ladder.jsonl", record(work=WORK, unit="µs of processor time an env step", load=round(os.getloadavg()[0], 1), rounds=rounds))
    first = chosen[0]
    lines = [[name, statistics.median(r[name] for r in rounds), statistics.median(r[first] / r[name] for r in rounds), min(r[first] / r[name] for r in rounds), max(r[first] / r[name] for r in rounds)] for name in chosen]
    print(table(("rung", "µs a step", f"× {first}", "least", "most"), lines))


if __name__ == "__main__": main()
