#!/usr/bin/env python
"""Which random stream the spread between seeds comes from: pairs of trainings, and those between them, in one process.

    python benchmarks/variance.py --pairs 20

PPO on CartPole for 12,288 steps, when it is half-way up. Seeds 1 and 2 are the first pair, and so on; each stream of `train.streams` is then taken from the second seed alone. What
is there already is not trained again. `rlstudio variance ppo/cartpole train.total_steps=12288 eval.episodes=20 --seeds 1-40` makes the same scores out of runs with folders.
"""
import argparse
from typing import Any

from common import RESULTS, append, history, record

CONFIG, STEPS = "ppo/cartpole", 12_288
OUT = RESULTS / "variance.jsonl"


def score(seed: int, streams: dict[str, int]) -> float:
    "Mean return of the final evaluation"
    from rlstudio.core.arithmetic import arithmetic_threads
    from rlstudio.runs.config import load_config
    from rlstudio.train.evaluate import evaluate
    from rlstudio.train.trainer import Trainer
    config, _ = load_config(CONFIG, dict(train=dict(seed=seed, total_steps=STEPS, streams=streams), eval=dict(episodes=20)))
    with arithmetic_threads():
        trainer = Trainer(config).train()
        return round(evaluate(trainer.algo.module, config.env, config.eval, config.train.seed_of("eval")).mean, 3)


def wanted(pairs: int) -> list[dict[str, Any]]:
    "The runs of a study, pair by pair"
    from rlstudio.core.options import stream_names
    from rlstudio.core.registry import algos
    rows: list[dict[str, Any]] = []
    for j in range(1, pairs + 1):
        a, b = 2 * j - 1, 2 * j
        rows += [dict(pair=j, side=side, seed=seed, streams=streams) for side, seed, streams in (("a", a, {}), ("b", b, {}), *((k, a, {k: b}) for k in stream_names(algos.get("ppo"))))]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    done = {(row["pair"], row["side"]) for row in history(OUT)}
    for row in wanted(options.pairs):
        if (row["pair"], row["side"]) not in done: append(OUT, record(**row, score=score(row["seed"], row["streams"])))


if __name__ == "__main__": main()
