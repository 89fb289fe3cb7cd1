"""What does a policy reach that does not look? Mean return of uniform actions in the worlds of `evidence.stats.REFERENCES`; one line each in benchmarks/results/random_returns.jsonl.

python benchmarks/random_returns.py [--episodes 200]"""
import argparse

import gymnasium as gym
import numpy as np
from common import RESULTS, append, history, record

from rlstudio.evidence.stats import REFERENCES

PATH = RESULTS / "random_returns.jsonl"


def play(world: str, episodes: int, seed: int = 1) -> list[float]:
    env = gym.make(world)
    env.action_space.seed(seed)
    returns = []
    for k in range(episodes):
        env.reset(seed=seed * 100_000 + k)
        total, ended = 0., False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    done = {(row["env"], row["episodes"]) for row in history(PATH)}
    for world in REFERENCES:
        if world.startswith("rlstudio/") or (world, options.episodes) in done: continue
        returns = play(world, options.episodes)
        row = dict(env=world, episodes=options.episodes, mean=round(float(np.mean(returns)), 3), std_error=round(float(np.std(returns, ddof=1)) / options.episodes**.5, 3))
        append(PATH, record(**row))
        print(row, flush=True)


if __name__ == "__main__": main()
