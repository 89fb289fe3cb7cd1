#!/usr/bin/env python
"""Raw scores for tutorial 8: PPO and DQN on CartPole, seeds 1 to 20, judged on the way, in one process.

    python benchmarks/trust.py --seeds 20

Both have a budget of about 20,000 steps. After each fifth of it the agent plays 20 fresh episodes; that changes nothing in the training. What is there already is not trained again.
"""
import argparse

from common import RESULTS, append, history, record

AT = {"ppo/cartpole": (4096, 8192, 12288, 16384, 20480), "dqn/cartpole": (4000, 8000, 12000, 16000, 20000)}
OUT = RESULTS / "trust.jsonl"


def scores(name: str, seed: int) -> list[float]:
    "Mean return of 20 episodes at each of the steps"
    from rlstudio.core.arithmetic import arithmetic_threads
    from rlstudio.runs.config import load_config
    from rlstudio.train.evaluate import evaluate
    from rlstudio.train.trainer import Trainer
    config, _ = load_config(name, dict(train=dict(seed=seed, total_steps=AT[name][-1]), eval=dict(episodes=20)))
    with arithmetic_threads():
        trainer = Trainer(config)
        return [round(evaluate(trainer.train(step).algo.module, config.env, config.eval, seed).mean, 3) for step in AT[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    done = {(row["config"], row["seed"]) for row in history(OUT)}
    for seed in range(1, options.seeds + 1):
        for name, at in AT.items():
            if (name, seed) not in done: append(OUT, record(config=name, seed=seed, at=at, scores=scores(name, seed)))


if __name__ == "__main__": main()
