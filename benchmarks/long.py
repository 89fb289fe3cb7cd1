#!/usr/bin/env python
"""One long run, too dear for many seeds: its curve, taken from the folder that it left.

    rlstudio run ppo/pong train.total_steps=1400832 env.backend=workers env.workers=8    # with device = cuda, engine = graphs in settings.ini
    python benchmarks/long.py runs/ppo-ale-pong-v5-s1
    python docs/make_zoo.py                                                              # the page and the picture

A line of benchmarks/results/long_runs.jsonl holds at most a hundred points of the return of the last hundred training episodes, every evaluation on the way, and what the manifest says of versions, machine, engine and level. One
seed proves that a configuration can learn, not how well it does on average.
"""
import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, append, history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORED = RESULTS / "long_runs.jsonl"
CHANCE = {"ALE/Pong-v5": -20.7}   # mean return of random actions; configs/ppo/pong.yaml has the source
POINTS = 100


def of_run(folder: Path) -> dict[str, Any]:
    "A run's folder as a line for the history"
    manifest = json.loads((folder / "manifest.json").read_text())
    config, records = manifest["config"], [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    played = [(r["step"], r["episode/return_mean"]) for r in records if r["episode/return_mean"] is not None]
    every = -(-len(played) // POINTS)
    return {"time": manifest["created"], "versions": manifest["versions"], "machine": {"cpu": manifest["machine"]["cpu"], "device": manifest["device"], "why": manifest["engine_why"]},
            "engine": manifest["engine"], "level": manifest["level"], "algo": config["algo"]["name"], "env": config["env"]["id"], "seed": config["train"]["seed"],
            "env_steps": records[-1]["step"], "env_steps_per_second": round(records[-1]["speed/env_steps_per_second"], 1), "training": played[::-every][::-1],
            "evaluations": [(r["step"], r["eval/return_mean"], r["eval/return_std"]) for r in records if "eval/return_mean" in r], "episodes": config["eval"]["episodes"]}


def stored(path: Path = STORED) -> list[dict[str, Any]]:
    "The newest line of each algorithm on each world"
    return list({(r["algo"], r["env"]): r for r in history(path)}.values())


def long_figure(row: dict[str, Any]) -> "Figure":
    "Returns of training and of greedy evaluations against env steps"
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from rlstudio.runs.pictures import BLUE, RED
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(*zip(*row["training"]), color=BLUE, lw=1.5, label="training, mean of the last 100 episodes")
    steps, means, spreads = zip(*row["evaluations"])
    ax.errorbar(steps, means, spreads, color=RED, fmt="o-", ms=3, lw=1.5, label=f"greedy, mean ± sd of {row['episodes']} episodes")
    if row["env"] in CHANCE: ax.axhline(CHANCE[row["env"]], color="gray", lw=1, ls=":", label="random actions")
    ax.set(xlabel="env steps", ylabel="return of an episode", xlim=(0, None))
    ax.set_title(f"{row['algo'].upper()} on {row['env']}, seed {row['seed']}", fontsize="medium", parse_math=False)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run that has ended")
    row = of_run(parser.parse_args().run)
    append(STORED, row)
    for step, mean, std in row["evaluations"]: print(f"{step:>10,} {mean:8.1f} ± {std:.1f}")


if __name__ == "__main__": main()
