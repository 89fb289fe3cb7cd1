"""Do the intervals of `evidence.stats` cover what they say? Many simulated studies with a known truth, at 2, 3, 4, 5, 10 and 20 seeds; one line each in benchmarks/results/intervals.jsonl.

python benchmarks/intervals.py [--studies 2000] [--only NAME …]

A world is a distribution of scores. `failures` is the one that reinforcement learning knows best: four runs of five are good, one is lost."""
import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from common import RESULTS, append, history, record

from rlstudio.core.seeding import make_generator
from rlstudio.evidence.stats import (
    Interval,
    difference,
    improvement_interval,
    interval,
    iqm,
    mean_score,
    median_score,
    permutation_test,
    probability_of_improvement,
    trimmed_mean,
)

PATH = RESULTS / "intervals.jsonl"
SEEDS = (2, 3, 4, 5, 10, 20)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def failures(g: np.random.Generator, n: int) -> np.ndarray:
    return np.where(g.random(n) < .8, g.normal(480, 15, n), g.normal(100, 40, n))


def four_worlds(g: np.random.Generator, n: int) -> np.ndarray:
    "Normalised scores, (n, 4): a solved world, two in between, and one with failures"
    return np.stack([g.normal(1, .02, n), g.normal(.8, .1, n), g.normal(.5, .2, n), np.where(g.random(n) < .7, g.normal(.9, .05, n), g.normal(.1, .05, n))], 1)


WORLDS: dict[str, Draw] = {
    "normal": lambda g, n: g.normal(300, 50, n),
    "skewed": lambda g, n: 500 - g.lognormal(3, 1, n),
    "failures": failures,
    "saturated": lambda g, n: np.minimum(500, g.normal(490, 20, n)),
    "four worlds": four_worlds,
}


def truth(draw: Draw, statistic: Any) -> float:
    "The statistic of two million seeds"
    scores = draw(make_generator("numpy", 0, "truth"), 2_000_000)
    if statistic is iqm: return float(trimmed_mean(scores.ravel()))
    return float(statistic(scores))


def one_side() -> Iterator[tuple[dict[str, Any], int, Callable[[np.random.Generator], bool]]]:
    for world, draw in WORLDS.items():
        for statistic in (mean_score, iqm, median_score):
            value = truth(draw, statistic)
            for method in ("t", "percentile") if statistic is not median_score else ("percentile",):
                for n in SEEDS:
                    def covered(g: np.random.Generator, n: int = n, draw: Draw = draw, value: float = value, statistic: Any = statistic, method: str = method) -> bool:
                        return value in interval(draw(g, n), statistic, method=method, draws=1000, seed=int(g.integers(2**31)))
                    yield dict(what="interval", world=world, statistic=statistic.__name__, method=method, seeds=n), (1 if method == "t" else 4), covered


def two_sides() -> Iterator[tuple[dict[str, Any], int, Callable[[np.random.Generator], bool]]]:
    def inside(i: Interval, value: float) -> bool: return i.low - 1e-12 <= value <= i.high + 1e-12
    for world, draw in WORLDS.items():
        big = [draw(make_generator("numpy", k, "truth"), 3000) for k in (1, 2)]
        for shift in (0., 50.) if world != "four worlds" else (0., .1):
            better = probability_of_improvement(big[0] + shift, big[1])
            for n in SEEDS:
                def gap(g: np.random.Generator, n: int = n, draw: Draw = draw, shift: float = shift) -> bool: return inside(difference(draw(g, n) + shift, draw(g, n)), shift)
                def share(g: np.random.Generator, n: int = n, draw: Draw = draw, shift: float = shift, better: float = better) -> bool:
                    return inside(improvement_interval(draw(g, n) + shift, draw(g, n)), better)
                where = dict(world=world, shift=shift, seeds=n)
                yield dict(what="difference", statistic="iqm", method="t", **where), 1, gap
                yield dict(what="improvement", statistic="probability_of_improvement", method="wilson", **where), 1, share
                if shift or n <= 3: continue   # 20 labellings of three and three: the smallest p-value is .1
                def quiet(g: np.random.Generator, n: int = n, draw: Draw = draw) -> bool: return permutation_test(draw(g, n), draw(g, n), draws=399, seed=int(g.integers(2**31))) > .05
                yield dict(what="no false alarm", statistic="permutation_test", method="exact or sampled", **where), 1, quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies for each line; the bootstrap gets a quarter of them")
    parser.add_argument("--only", nargs="*", default=[], help="interval, difference, improvement, 'no false alarm'")
    options = parser.parse_args()
    done = [{k: v for k, v in row.items() if k not in ("time", "commit", "versions", "machine", "covered", "error")} for row in history(PATH)]
    for case, factor, covered in (*one_side(), *two_sides()):
        fields = case | dict(level=.95, studies=options.studies // factor)
        if fields in done or options.only and case["what"] not in options.only: continue
        g = make_generator("numpy", 11, "coverage")
        share = sum(covered(g) for _ in range(fields["studies"])) / fields["studies"]
        append(PATH, record(**fields, covered=round(share, 4), error=round(math.sqrt(share * (1 - share) / fields["studies"]), 4)))
        print(*fields.values(), share, flush=True)


if __name__ == "__main__": main()
