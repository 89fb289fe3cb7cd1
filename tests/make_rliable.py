"""Numbers of rliable itself, for tests/test_stats.py: python tests/make_rliable.py FILE, in an environment of its own where rliable is installed (it is no dependency of this project)."""
import json
import sys
from importlib.metadata import version

import numpy as np
from rliable import library, metrics


def main() -> None:
    random = np.random.RandomState(7)
    cases = [random.normal(.6, .3, shape).round(6) for shape in ((3, 1), (5, 3), (10, 4), (8, 1))]
    cases[1][2] = cases[1][0]   # ties
    out = {"versions": {p: version(p) for p in ("rliable", "arch", "numpy", "scipy")}, "cases": [], "pairs": []}
    for scores in cases:
        seen: list[np.ndarray] = []
        def func(s: np.ndarray, seen: list[np.ndarray] = seen) -> np.ndarray:
            seen.append(s)
            return np.array([metrics.aggregate_iqm(s), metrics.aggregate_mean(s), metrics.aggregate_median(s)])
        np.random.seed(1)   # noqa: NPY002, rliable draws from the global generator
        _, ends = library.get_interval_estimates({"x": scores}, func, reps=60)
        levels = np.linspace(-.2, 1.4, 9)
        np.random.seed(2)   # noqa: NPY002
        profiles, _ = library.create_performance_profile({"x": scores}, levels, reps=10)
        out["cases"].append({
            "scores": scores.tolist(), "iqm": metrics.aggregate_iqm(scores), "mean": metrics.aggregate_mean(scores), "median": metrics.aggregate_median(scores),
            "optimality_gap": metrics.aggregate_optimality_gap(scores), "levels": levels.tolist(), "profile": profiles["x"].tolist(),
            "resamples": [s.tolist() for s in seen[-60:]], "low": ends["x"][0].tolist(), "high": ends["x"][1].tolist()})
    for m, n in ((3, 3), (5, 8), (10, 4)):
        x, y = random.normal(.7, .3, (m, 3)).round(1), random.normal(.5, .3, (n, 3)).round(1)
        out["pairs"].append({"x": x.tolist(), "y": y.tolist(), "probability_of_improvement": float(metrics.probability_of_improvement(x, y))})
    with open(sys.argv[1], "w") as f: json.dump(out, f)


if __name__ == "__main__": main()
