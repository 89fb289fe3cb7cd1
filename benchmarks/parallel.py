#!/usr/bin/env python
"""One process beside two (`train.parallel`): wall time, and the processor time of all of them, in turns.

    python benchmarks/parallel.py --rounds 5 --envs 8 64 256

PPO on CartPole, 128 steps a rollout, 4 epochs of 4 minibatches, two layers of 64. For each number of envs: env steps a second of each number of processes, the ratio within a
round (what means anything), and processor seconds for the same work. Start-up is not counted. Wall time says something on a machine that has nothing else to do only.
"""
import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from common import RESULTS, append, record, table

from rlstudio.core.options import config_from_dict
from rlstudio.train.trainer import Trainer


def seconds_of(pid: int) -> float:
    "Processor seconds of a process so far (Linux)"
    with open(f"/proc/{pid}/stat") as f: numbers = f.read().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


class Training:
    "A training that is gone on with, an iteration at a time"
    def __init__(self, envs: int, processes: int, engine: str) -> None:
        self.trainer = Trainer(config_from_dict(dict(env=dict(id="CartPole-v1", num_envs=envs), algo=dict(name="ppo", num_steps=128, num_epochs=4, num_minibatches=4),
                                                     train=dict(total_steps=10**9, parallel=processes))), engine=engine)
        self.step()   # starts the others, and compiles
        team: Any = getattr(self.trainer.algo.collect, "__self__", None)
        self.pids = [os.getpid(), *(s.process.pid for s in getattr(getattr(team, "found", None), "started", ()))]

    def step(self) -> None: self.trainer.step()

    def measure(self, iterations: int) -> tuple[float, float]:
        "Wall and processor seconds"
        cpu, wall = sum(map(seconds_of, self.pids)), time.perf_counter()
        for _ in range(iterations): self.step()
        return time.perf_counter() - wall, sum(map(seconds_of, self.pids)) - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=65_536, help="env steps of a turn")
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--out", type=Path, default=RESULTS / "parallel.jsonl")
    args, rows = parser.parse_args(), []
    for envs in args.envs:
        ways = {k: Training(envs, k, args.engine) for k in args.processes}
        iterations = max(1, args.steps // (128 * envs))
        turns = [{k: way.measure(iterations) for k, way in ways.items()} for _ in range(args.rounds)]
        for way in ways.values(): way.trainer.env.close()
        first = args.processes[0]
        for k in args.processes:
            wall, cpu = (statistics.median(t[k][i] for t in turns) for i in (0, 1))
            ratios = sorted(t[first][0] / t[k][0] for t in turns)
            rows.append(dict(envs=envs, processes=k, steps_per_second=round(iterations * 128 * envs / wall), times_one=round(statistics.median(ratios), 2),
                             spread=f"{ratios[0]:.2f} … {ratios[-1]:.2f}", processor_seconds=round(cpu, 2)))
    print(table(rows[0], [r.values() for r in rows]))
    append(args.out, record(task="ppo on CartPole-v1", engine=args.engine, rounds=args.rounds, rows=rows))


if __name__ == "__main__": main()
