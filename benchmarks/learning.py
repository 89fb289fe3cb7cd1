#!/usr/bin/env python
"""How well configurations learn: one process for each seed, raw results kept.

    python benchmarks/learning.py configs/ppo/cartpole.yaml --seeds 1-10 --threshold 475 eval.episodes=100

Each line of benchmarks/results/<algo>/<env>.jsonl is one run as `rlstudio run --json` told it, with versions, with its engine, and with the seconds
from the start of the process to the verdict. Runs that share cores take longer: `--jobs 1` when the time matters.
"""
import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, append, figures, history, numbers, record, rlstudio, sha256, table


def results_path(config: Path) -> Path:
    "configs/ppo/cartpole.yaml → benchmarks/results/ppo/cartpole.jsonl"
    full, home = config.resolve(), ROOT / "configs"
    name = full.relative_to(home) if full.is_relative_to(home) else Path(full.name)
    return (RESULTS / name).with_suffix(".jsonl")


def workspace(folder: str, engine: str, device: str = "cpu") -> Path:
    "A folder whose settings ask for this engine and device"
    (Path(folder) / "settings.ini").write_text(f"[DEFAULT]\nengine = {engine}\ndevice = {device}\n")
    return Path(folder)


def measure(config: Path, seed: int, overrides: list[str], runs: Path, jobs: int, store: bool) -> dict[str, Any]:
    "One run of one seed in a workspace"
    from rlstudio.core.options import config_hash  # chapters that only show a table need none of it
    from rlstudio.runs.config import load_config
    result, seconds = rlstudio("run", config.resolve(), f"train.seed={seed}", *overrides, cwd=runs)
    told = json.loads((runs / result["run"] / "manifest.json").read_text())
    row = record(config=config.stem, config_sha256=sha256(config), config_hash=config_hash(load_config(config, overrides)[0]), overrides=overrides, engine=told["engine"], device=told["device"], jobs=jobs, wall_seconds=round(seconds, 3),
                 **figures(result))
    if store: append(results_path(config), row)
    print(f"{config.stem} seed {seed}: {row['eval_return_mean']:.1f} ± {row['eval_return_std']:.1f} "
          f"at {row['total_steps']:,} steps, {seconds:.1f} s", flush=True)
    return row


def summary(config: Path, rows: list[dict[str, Any]], threshold: float | None) -> str:
    "A table of the seeds, and one line over all of them"
    head = ("seed", "return", "std", "episodes", "steps", "steps/s", "wall s", "weights")
    body = [(r["seed"], float(r["eval_return_mean"]), float(r["eval_return_std"]), r["eval_episodes"], f"{r['total_steps']:,}",
             round(r["env_steps_per_second"]), round(r["wall_seconds"], 1), r["weights_sha256"][:8]) for r in rows]
    means = [r["eval_return_mean"] for r in rows]
    line = f"{config.stem}: mean {statistics.fmean(means):.1f}, worst {min(means):.1f}, best {max(means):.1f} over {len(rows)} seeds"
    if threshold is not None: line += f"; {sum(m >= threshold for m in means)} of {len(means)} reach {threshold:g}"
    return f"\n{table(head, body)}\n\n{line}\n"


PUBLISHED = {  # (algo, env or name of the config) → return ± its spread over episodes [training steps]: Stable-Baselines3 zoo, benchmark.md, one run each
    ("a2c", "CartPole-v1"): "500 ± 0 [500k]", ("a2c", "Acrobot-v1"): "-83.4 ± 17.2 [500k]",
    ("ppo", "CartPole-v1"): "500 ± 0 [100k]", ("ppo", "Acrobot-v1"): "-73.5 ± 18.2 [1M]", ("ppo", "MountainCar-v0"): "-110.4 ± 19.5 [1M]",
    ("ppo", "Pendulum-v1"): "-172.2 ± 104.2 [100k]", ("ppo", "LunarLander-v3"): "242.1 ± 31.8 [1M]", ("ppo", "lunarlandercontinuous"): "270.9 ± 32.1 [1M]",
    ("ppo", "HalfCheetah-v5"): "5819 ± 664 [1M]", ("ppo", "Hopper-v5"): "2410 ± 10 [1M]", ("ppo", "Walker2d-v5"): "3479 ± 822 [1M]",
    ("dqn", "CartPole-v1"): "500 ± 0 [50k]", ("dqn", "Acrobot-v1"): "-76.6 ± 11.8 [100k]", ("dqn", "MountainCar-v0"): "-100.8 ± 9.9 [120k]",
    ("dqn", "LunarLander-v3"): "154.4 ± 79.2 [100k]",
    ("sac", "Pendulum-v1"): "-157.0 ± 88.7 [20k]", ("sac", "lunarlandercontinuous"): "260.4 ± 65.5 [500k]",
    ("sac", "HalfCheetah-v5"): "9535 ± 100 [1M]", ("sac", "Hopper-v5"): "2326 ± 1130 [1M]", ("sac", "Walker2d-v5"): "3863 ± 254 [1M]",
    ("td3", "Pendulum-v1"): "-151.9 ± 90.2 [20k]", ("td3", "lunarlandercontinuous"): "207.5 ± 67.6 [300k]",
    ("td3", "HalfCheetah-v5"): "9656 ± 970 [1M]", ("td3", "Hopper-v5"): "3606 ± 4 [1M]", ("td3", "Walker2d-v5"): "4718 ± 46 [1M]",
}  # theirs are LunarLander-v2 and MuJoCo's -v3


def published(algo: str, env: str, name: str) -> str:
    "What others have published for the config of this name, such as ppo/lunarlandercontinuous; –: nothing"
    return PUBLISHED.get((algo, name.rpartition("/")[2]), PUBLISHED.get((algo, env), "–"))


def latest(path: Path) -> list[dict[str, Any]]:
    "The newest line of each seed, of the newest config, at the newest length of training"
    rows = [r for r in history(path) if all(o.startswith("train.total_steps=") for o in r["overrides"])]
    return list({r["seed"]: r for r in rows if [r[k] for k in ("config_sha256", "overrides")] == [rows[-1][k] for k in ("config_sha256", "overrides")]}.values())


def results_table(algo: str = "*") -> Any:
    "What the stored results of one algorithm, or of all, say, as a table for a notebook"
    from IPython.display import Markdown
    lines = ["| config | env steps | seeds | mean return | spread over seeds | worst seed | published |", "|---|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob(f"{algo}/*.jsonl")):
        rows = latest(path)
        means = [r["eval_return_mean"] for r in rows]
        name = path.relative_to(RESULTS).with_suffix("").as_posix()
        lines.append(f"| `{name}` | {rows[0]['total_steps']:,} | {len(rows)} | {statistics.fmean(means):.1f} | {statistics.pstdev(means):.1f} "
                     f"| {min(means):.1f} | {published(rows[0]['algo'], rows[0]['env'], name)} |")
    return Markdown("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="files, then section.key=value for all of them")
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3], help="such as 1-10 or 1,4,7 (default: 1-3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threshold", type=float, help="count the seeds that reach this return")
    parser.add_argument("--engine", default="auto", help="as in settings.ini (default: auto)")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_intermixed_args()
    overrides = [c for c in options.configs if "=" in c]
    configs = [Path(c) for c in options.configs if "=" not in c]
    with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(options.jobs) as pool:
        todo = {c: [pool.submit(measure, c, s, overrides, workspace(runs, options.engine), options.jobs, not options.no_store) for s in options.seeds] for c in configs}
        for config, futures in todo.items(): print(summary(config, [f.result() for f in futures], options.threshold), flush=True)


if __name__ == "__main__": main()
