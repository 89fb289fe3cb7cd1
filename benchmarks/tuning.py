#!/usr/bin/env python
"""The studies by which DQN's two hard worlds are tuned: named arms, each a change of the config that the study began with (`BASE`), over the same seeds.

    python benchmarks/tuning.py                                             # what was found so far, and what each arm changes
    nice python benchmarks/tuning.py --run lunarlander --arms longer,greedy --seeds 101-105 --jobs 2
    python benchmarks/tuning.py --collect RUNS/STUDY …                      # take rows from studies that were run by hand

Each world is one `rlstudio study` in --runs-dir: killed, the same command goes on. Rows go to benchmarks/results/tuning.jsonl: what differs from the base, the engine, the mean return over the last evaluation's episodes, and how
the bad episodes ended. Seeds from 101 on are for looking; a verdict needs seeds that no arm was chosen by: `benchmarks/learning.py configs/dqn/lunarlander.yaml --seeds 1-10`.
"""
import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, append, history, numbers, record, table

OUT = RESULTS / "tuning.jsonl"
BASE = {  # over the packaged config, which has the settings that the study found
    "lunarlander": ["train.total_steps=150000", "algo.buffer_size=150000", "algo.batch_size=64", "algo.epsilon_end=0.1", "algo.quantiles=1", "net.hidden=[128, 128]"],
    "mountaincar": ["algo.learning_rate_schedule=constant", "algo.n_step=1"],
}
EIGHT = ["env.num_envs=8", "algo.train_every=1", "algo.num_steps=125"]   # the same updates per step, collected from eight worlds at a time
LONGER = ["train.total_steps=250000", "algo.buffer_size=250000"]
WIDE = [*LONGER, "algo.batch_size=128", "algo.epsilon_end=0.02", "net.hidden=[256, 256]"]
ARMS: dict[str, dict[str, list[str]]] = {
    "lunarlander": {
        "longer": LONGER,
        "128": [*LONGER, "algo.batch_size=128"],
        "greedy": [*LONGER, "algo.epsilon_end=0.02"],
        "128+greedy": [*LONGER, "algo.batch_size=128", "algo.epsilon_end=0.02"],
        "128+greedy+eight": [*LONGER, *EIGHT, "algo.batch_size=128", "algo.epsilon_end=0.02"],
        "wide": WIDE,
        "wide+dueling": [*WIDE, "algo.dueling=true"],
        "wide+quantiles": [*WIDE, "algo.quantiles=32"],
        "wide+quantiles+twice": [*WIDE, "algo.quantiles=32", "train.total_steps=500000"],
    },
    "mountaincar": {
        "today": [],
        "linear": ["algo.learning_rate_schedule=linear"],
        "linear+4": ["algo.learning_rate_schedule=linear", "algo.n_step=4"],
        "linear+longer": ["algo.learning_rate_schedule=linear", "train.total_steps=200000"],
        "linear+memory": ["algo.learning_rate_schedule=linear", "algo.buffer_size=50000"],
        "linear+quantiles": ["algo.learning_rate_schedule=linear", "algo.quantiles=32"],
        "linear+often": ["algo.learning_rate_schedule=linear", "algo.train_every=8"],
        "linear+longer+memory": ["algo.learning_rate_schedule=linear", "train.total_steps=200000", "algo.buffer_size=50000"],
        "linear+longer+quantiles+memory": ["algo.learning_rate_schedule=linear", "train.total_steps=200000", "algo.buffer_size=50000", "algo.quantiles=32"],
    },
}
IGNORED = ("train.seed", "eval.every", "checkpoint.every")   # change no result
BAD = {"LunarLander-v3": 100.0, "MountainCar-v0": -199.5}     # an episode below it has failed


def flat(values: Any, at: str = "") -> dict[str, Any]:
    "section.key → value"
    if not isinstance(values, dict): return {at[:-1]: values}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{at}{key}.").items()}


def row_of(folder: Path) -> dict[str, Any] | None:
    "What one finished run says; None: it has not ended"
    from rlstudio.core.files import read_file
    from rlstudio.runs.config import load_config, to_yaml
    from rlstudio.runs.yaml import read_yaml
    if not (folder / "result.json").exists(): return None
    config, *_ = load_config(folder / "config.yaml")
    manifest, evaluations = (json.loads(read_file(folder / name)) for name in ("manifest.json", "evaluations.json"))
    last = max(evaluations, key=lambda e: (e["env_steps"], len(e["returns"])))   # those during training have fewer episodes, the last one too
    world = config.env.id.split("-")[0].lower()
    usual, mine = (flat(read_yaml(to_yaml(c)).values) for c in (load_config(f"dqn/{world}", BASE[world])[0], config))
    changes = {k: v for k, v in mine.items() if v != usual.get(k) and k not in IGNORED}
    returns, lengths, limit = last["returns"], last["lengths"], BAD[config.env.id]
    longest = 1000 if world == "lunarlander" else 200
    failed = [n for r, n in zip(returns, lengths) if r < limit]
    ended = [r for r, n in zip(returns, lengths) if r >= limit and n < longest]
    return dict(world=world, changes=changes, seed=config.train.seed, engine=manifest["engine"],
                total_steps=last["env_steps"], mean=round(last["mean"], 2), std=round(last["std"], 2), worst_episode=round(min(returns), 1), episodes=len(returns),
                crashed=sum(n < longest for n in failed) if world == "lunarlander" else 0, timeouts=sum(n >= longest for n in lengths), landed=round(statistics.fmean(ended), 1) if ended else None)


def collect(folders: list[Path]) -> int:
    "Store what is new in some studies: how many rows"
    known = {json.dumps([r["world"], r["changes"], r["seed"], r["engine"]], sort_keys=True) for r in history(OUT)}
    found = [r for folder in folders for f in sorted(folder.iterdir()) if (f / "config.yaml").exists() and (r := row_of(f))]
    new = {key: r for r in found if (key := json.dumps([r["world"], r["changes"], r["seed"], r["engine"]], sort_keys=True)) not in known}   # once, if it is in two studies
    for row in new.values(): append(OUT, record(**row))
    return len(new)


def run(world: str, arms: list[str], seeds: list[int], jobs: int, runs_dir: Path) -> None:
    "One study: arms over seeds"
    from rlstudio.evidence.study import Study
    from rlstudio.runs.config import load_config
    configs = {name: load_config(ROOT / "configs" / "dqn" / f"{world}.yaml", [*BASE[world], *ARMS[world][name]])[0] for name in arms}
    study = Study.from_configs(configs, seeds=seeds, name=f"tuning-{world}", runs_dir=runs_dir)
    study.run(jobs=jobs)
    print(f"{collect([study.folder])} new rows")


def said(changes: dict[str, Any]) -> str:
    "The changes in a few words"
    changes = {k: v for k, v in changes.items() if k != "algo.buffer_size" or v != changes.get("train.total_steps")}   # a memory of all steps needs no word
    return ", ".join(f"{k.partition('.')[2]}={v:,}" if isinstance(v, int) and not isinstance(v, bool) else f"{k.partition('.')[2]}={json.dumps(v)}" for k, v in changes.items()) or "nothing"


def groups(world: str) -> dict[str, list[dict[str, Any]]]:
    "Changes in words → its seeds"
    found: dict[str, list[dict[str, Any]]] = {}
    for r in history(OUT):
        if r["world"] == world: found.setdefault(said(r["changes"]), []).append(r)
    return found


def tuning_table(world: str) -> Any:
    "What was tried in one world, for a notebook"
    from IPython.display import Markdown
    lines = ["| changed | seeds | mean return | worst seed | timeouts, of 100 | crashes, of 100 | return of the others |", "|---|---|---|---|---|---|---|"]
    for name, rows in groups(world).items():
        mean, (timeouts, crashed) = statistics.fmean(r["mean"] for r in rows), (statistics.fmean(100 * r[k] / r["episodes"] for r in rows) for k in ("timeouts", "crashed"))
        landed = [r["landed"] for r in rows if r["landed"] is not None]
        lines.append(f"| {name} | {len(rows)} | {mean:.0f} | {min(r['mean'] for r in rows):.0f} | {timeouts:.0f} | {crashed:.0f} | {f'{statistics.fmean(landed):.0f}' if landed else '–'} |")
    return Markdown("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=list(ARMS), help="train the arms of this world")
    parser.add_argument("--arms", help="some of them, apart by commas (default: all)")
    parser.add_argument("--seeds", type=numbers, default=[101, 102, 103, 104, 105], help="such as 101-105 (the default)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "build" / "tuning", help="where the study lies (default: build/tuning)")
    parser.add_argument("--collect", nargs="+", type=Path, metavar="STUDY", help="store the rows of these")
    options = parser.parse_args()
    if options.run:
        arms = options.arms.split(",") if options.arms else list(ARMS[options.run])
        if wrong := [a for a in arms if a not in ARMS[options.run]]: parser.error(f"--arms {','.join(wrong)}: expected some of {', '.join(ARMS[options.run])}")
        run(options.run, arms, options.seeds, options.jobs, options.runs_dir)
    if options.collect: print(f"{collect(options.collect)} new rows")
    for world in ARMS:
        rows = [(name[:110], r["seed"], r["engine"], r["mean"], r["std"], r["timeouts"], r["crashed"]) for name, some in groups(world).items() for r in some]
        if rows: print(f"\n{world}\n{table(('changed', 'seed', 'engine', 'return', 'std', 'timeouts', 'crashed'), rows)}")


if __name__ == "__main__": main()
