#!/usr/bin/env python
"""The engine `compiled` beside the tape: the nodes alone, and whole trainings; processor time, in turns, in one process.

    python benchmarks/kernels.py --rounds 7

For each node (chapter fast.kernels) microseconds of what it replaces and of the kernel; for PPO, DQN and SAC microseconds of a whole env step, collecting and learning.
The ratio within one round is what means anything: a machine's speed drifts. `--only WORD` measures what has the word in its name.
"""
# ruff: noqa: E402
import sys

sys.path.append(sys.path.pop(0))   # numba asks for the package `coverage`, and a script beside this one has its name

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import RESULTS, append, record, table

from rlstudio.algos.common import Part
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.options import config_from_dict
from rlstudio.data.priority import SumTree
from rlstudio.data.returns import gae
from rlstudio.fast.kernels import CompiledTree, StepKernel, compiled_dist, compiled_gae, compiled_mlp
from rlstudio.nets.dists import Categorical, DiagGaussian
from rlstudio.nets.flat import flatten_parameters
from rlstudio.nets.layers import MLP
from rlstudio.nets.squashed import SquashedGaussian
from rlstudio.nets.tape import Tape
from rlstudio.train.trainer import Trainer

Ways = dict[str, Callable[[], Any]]


def mlp_ways(width: int, rows: int, **how: Any) -> Ways:
    "Forward and backward of a whole MLP"
    rng, ways = np.random.default_rng(0), Ways()
    x = rng.standard_normal((rows, 4), np.float32)
    for name, kernel in (("tape", None), ("compiled", compiled_mlp)):
        mlp = MLP((4, width, width, 2), np.random.default_rng(0), **how)
        mlp.kernel, places = kernel, flatten_parameters(mlp).places
        def run(mlp: Any = mlp, places: Any = places) -> None:
            tape = Tape()
            tape.backward(mlp(tape.variable(x)).sum(), places)
        ways[name] = run
    return ways


def acting_ways(width: int, rows: int) -> Ways:
    "Forward alone, on few rows"
    rng, ways = np.random.default_rng(0), Ways()
    x = rng.standard_normal((rows, 4), np.float32)
    for name, kernel in (("tape", None), ("compiled", compiled_mlp)):
        mlp = MLP((4, width, width, 2), np.random.default_rng(0))
        mlp.kernel = kernel
        ways[name] = lambda mlp=mlp: mlp(x)
    return ways


def dist_ways(dist: Any, rows: int, action: Any) -> Ways:
    "Log-probability and entropy, and the way back"
    params, ways = np.random.default_rng(0).standard_normal((rows, dist.num_params), np.float32), Ways()
    for name, d in (("tape", dist), ("compiled", compiled_dist(dist))):
        def run(d: Any = d) -> None:
            tape = Tape()
            both = d.sample_and_log_prob if isinstance(d, SquashedGaussian) else d.log_prob_and_entropy
            first, second = both(tape.variable(params, True), action)
            tape.backward(first.sum() + second.sum(), {})
        ways[name] = run
    return ways


def step_ways(width: int) -> Ways:
    "Clip and Adam"
    ways = Ways()
    for name in ("tape", "compiled"):
        part = Part(MLP((4, width, width, 2), np.random.default_rng(0)), 1e-6, 1e-5, 0.5)
        part.flat.grad.copy_(torch.tensor(np.random.default_rng(1).standard_normal(len(part.flat.grad))))
        if name == "compiled": part.mover = StepKernel(part)
        ways[name] = part.step
    return ways


def tree_ways() -> Ways:
    "64 priorities written, 64 places found, of a million"
    rng, ways = np.random.default_rng(0), Ways()
    index, value, points = rng.integers(0, 10**6, 64), rng.random(64), rng.random(64)
    for name, kind in (("tape", SumTree), ("compiled", CompiledTree)):
        tree = kind(10**6)
        tree.set(np.arange(10**6), 1.)
        def run(tree: Any = tree) -> None: tree.set(index, value), tree.find(points * tree.total)
        ways[name] = run
    return ways


def gae_ways() -> Ways:
    "Advantages of 128 steps of 8 environments"
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((128, 8), np.float32) for _ in range(3)] + [rng.random((128, 8)) < .02 for _ in range(2)]
    return dict(tape=lambda: gae(*rows), compiled=lambda: compiled_gae(*rows))


NODES: dict[str, Callable[[], Ways]] = {
    "mlp 64x64 tanh, 64 rows": lambda: mlp_ways(64, 64), "mlp 64x64 tanh, 256 rows": lambda: mlp_ways(64, 256), "mlp 64x64 silu, 256 rows": lambda: mlp_ways(64, 256, activation="silu"),
    "mlp 64x64 tanh, LayerNorm, 256 rows": lambda: mlp_ways(64, 256, layer_norm=True), "mlp 256x256 relu, 256 rows": lambda: mlp_ways(256, 256, activation="relu"),
    "mlp 64x64 acting, 8 rows": lambda: acting_ways(64, 8), "choice of 2, 256 rows": lambda: dist_ways(Categorical(2), 256, np.zeros(256, np.int64)),
    "3 normal numbers, 256 rows": lambda: dist_ways(DiagGaussian(3), 256, np.zeros((256, 3), np.float32)),
    "6 squashed numbers, 256 rows": lambda: dist_ways(SquashedGaussian(6), 256, np.ones((256, 6), np.float32)),
    "clip and Adam, 64x64": lambda: step_ways(64), "clip and Adam, 256x256": lambda: step_ways(256), "gae 128 x 8": gae_ways, "sum tree, 64 of a million": tree_ways,
}

SMALL = dict(hidden=[64, 64], normalize_obs=False, normalize_reward=False)
TRAININGS: dict[str, tuple[dict[str, Any], int, int]] = {   # config, env steps before, and in a round
    "ppo CartPole 8 x 128, 4 x 4, 64x64": (dict(env=dict(id="CartPole-v1", num_envs=8), algo=dict(name="ppo", num_steps=128, num_epochs=4, num_minibatches=4), net=SMALL), 2048, 8192),
    "ppo Pendulum 8 x 128, 4 x 4, 64x64": (dict(env=dict(id="Pendulum-v1", num_envs=8), algo=dict(name="ppo", num_steps=128, num_epochs=4, num_minibatches=4), net=SMALL), 2048, 8192),
    "dqn CartPole 4 envs, batch 64, 64x64": (dict(env=dict(id="CartPole-v1", num_envs=4), algo=dict(name="dqn", learning_starts=512, batch_size=64, num_steps=64), net=SMALL), 1024, 1024),
    "sac Pendulum, batch 256, 256x256": (dict(env=dict(id="Pendulum-v1"), algo=dict(name="sac", learning_starts=256, num_steps=64)), 320, 128),
}


def training_ways(name: str, rounds: int) -> Ways:
    "The next part of a training, in both engines"
    config, before, part = TRAININGS[name]
    def goes_on(engine: str) -> Callable[[], Any]:
        t = Trainer(config_from_dict(config | dict(train=dict(total_steps=before + part * (rounds + 1), seed=1))), engine=engine).train(before)
        return lambda: t.train(t.env_steps + part)
    return {engine: goes_on(engine) for engine in ("tape", "compiled")}


def measure(ways: Ways, rounds: int, calls: int, unit: int) -> list[dict[str, float]]:
    "Microseconds of processor time of one unit, of each way, in each round"
    told = []
    for k in range(rounds):
        took = {}
        for name in list(ways) if k % 2 else list(ways)[::-1]:
            start = time.process_time()
            for _ in range(calls): ways[name]()
            took[name] = (time.process_time() - start) / calls / unit * 1e6
        told.append(took)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200, help="of a node, in one round of each way (default: 200)")
    parser.add_argument("--only", default="", help="measure what has this word in its name")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    lines = []
    with arithmetic_threads():
        for name in (n for n in (*NODES, *TRAININGS) if options.only in n):
            node = name in NODES
            ways = NODES[name]() if node else training_ways(name, options.rounds)
            measure(ways, 1, 3 if node else 1, 1)
            rounds = measure(ways, options.rounds, options.calls if node else 1, 1 if node else TRAININGS[name][2])
            if not options.no_store: append(RESULTS / "kernels.jsonl", record(what=name, load=round(os.getloadavg()[0], 1), rounds=rounds))
            ratios = sorted(r["tape"] / r["compiled"] for r in rounds)
            lines.append([name, *(statistics.median(r[w] for r in rounds) for w in ways), statistics.median(ratios), f"{ratios[0]:.2f}–{ratios[-1]:.2f}"])
    print(table(("what", "tape µs", "compiled µs", "× compiled", "of all rounds"), lines))


if __name__ == "__main__": main()
