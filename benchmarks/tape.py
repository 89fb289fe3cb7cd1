#!/usr/bin/env python
"""The tape beside autograd: one loss, one network, one thread, both ways in interleaved rounds.

    python benchmarks/tape.py --rounds 7

A policy and a critic with two hidden layers, four observations, two actions, and PPO's loss. For each width and number of rows: microseconds from
the batch to the gradient in the flat vector, by autograd and by the tape (chapters nets.tape, nets.layers, nets.flat). The ratio of the two within
one round is what means anything; a machine's speed drifts.
"""
import argparse
import os
import statistics
import timeit
from typing import Any

import numpy as np
import torch
from common import RESULTS, append, record, table
from threadpoolctl import threadpool_limits
from torch import nn

from rlstudio.nets.flat import flatten_parameters
from rlstudio.nets.layers import MLP
from rlstudio.nets.tape import Tape

SIZES = (64, 64), (64, 256), (256, 256)  # width, rows


def ppo_loss(nets: Any, obs: Any, action: Any, old: Any, advantage: Any, target: Any) -> Any:
    "PPO's loss, of tensors or of variables"
    log_probs, value = nets[0](obs).log_softmax(-1), nets[1](obs).squeeze(-1)
    ratio = (log_probs.gather(-1, action[..., None]).squeeze(-1) - old).exp()
    policy = -(ratio * advantage).minimum(ratio.clamp(.8, 1.2) * advantage).mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    return policy + .25 * (value - target).square().mean() - .01 * entropy


def contest(width: int, rows: int) -> dict[str, Any]:
    "A function for each way; both leave the same gradient"
    rng = np.random.default_rng(0)
    nets = nn.ModuleList(MLP((4, width, width, n), rng) for n in (2, 1))
    flat = flatten_parameters(nets)
    obs, (old, advantage, target) = rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(3, rows)).astype(np.float32)
    batch = obs, rng.integers(0, 2, rows), old, advantage, target

    def autograd() -> None:
        flat.zero_grad()
        ppo_loss(nets, *map(torch.from_numpy, batch)).backward()

    def tape() -> None:
        t = Tape()
        t.backward(ppo_loss(nets, *map(t.variable, batch)), flat.places)

    autograd()
    exact = flat.grad.clone()
    tape()
    assert torch.allclose(flat.grad, exact, rtol=1e-4, atol=1e-6)
    return dict(autograd=autograd, tape=tape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=100, help="gradients in one round of each way (default: 100)")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with threadpool_limits(1):
        for width, rows in SIZES:
            ways, rounds = contest(width, rows), []
            for k in range(options.rounds):
                order = list(ways) if k % 2 else list(ways)[::-1]
                rounds.append({name: timeit.timeit(ways[name], number=options.calls) / options.calls * 1e6 for name in order})
                if not options.no_store: append(RESULTS / "tape.jsonl", record(width=width, rows=rows, round=k + 1, load=round(os.getloadavg()[0], 1), **rounds[-1]))
            middle = [statistics.median(r[name] for r in rounds) for name in ways]
            lines.append([width, rows, *middle, statistics.median(r["autograd"] / r["tape"] for r in rounds)])
    print(table(("width", "rows", "autograd µs", "tape µs", "× tape"), lines))


if __name__ == "__main__": main()
