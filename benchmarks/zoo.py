#!/usr/bin/env python
"""The zoo: every packaged config over enough seeds, what is there and what is missing.

    python benchmarks/zoo.py                                  # which seeds of which config are missing; nothing is run
    nice python benchmarks/zoo.py --run --minutes 30          # run what is missing, short trainings first; again, and it goes on
    nice python benchmarks/zoo.py --run --only 'dqn/*' --seeds 5 --jobs 2
    nice python benchmarks/zoo.py --run --only 'sac/h*' --engine compiled
    python docs/make_zoo.py                                   # then the page

A seed is there if benchmarks/results has its line with the config as it is today, at the length of training that `SHORTER` names, and without other overrides, whatever its engine: the line and the page name it. A config file may be worded anew and mean the same, so what is compared is the resolved config; for lines that were stored
before it stood in them, benchmarks/results/configs.json knows it (`--configs` finds it anew, from the history of the files). Each run is `rlstudio run CONFIG --seed N --json` in a process of its own, and its line is stored as soon as it has ended:
whoever stops this script loses the run that is going on.
"""
import argparse
import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, RunFailed, history, table
from learning import measure, results_path, workspace

from rlstudio.core.options import Config, ConfigError, config_hash
from rlstudio.runs.config import load_config

CONFIGS, WORDINGS = ROOT / "configs", RESULTS / "configs.json"
SEEDS = {"mujoco": 5, "atari": 3}   # wanted by family of worlds; all others: 10
SHORTER = {f"{algo}/{world}": 300_000 for algo in ("sac", "td3") for world in ("halfcheetah", "hopper", "walker2d")}   # a third of the published length, over 3 seeds: dear runs
MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Ant", "Humanoid")


def family(config: Config) -> str:
    "Which packages bring the world"
    world = config.env.id
    return "mujoco" if world.startswith(MUJOCO) else "atari" if world.startswith("ALE/") else "box2d" if world.startswith(("LunarLander", "BipedalWalker")) else "classic"


def overrides(name: str) -> list[str]:
    "What the zoo changes in a packaged config"
    return [f"train.total_steps={SHORTER[name]}"] if name in SHORTER else []


def entries() -> Iterator[tuple[str, Path, Config]]:
    "Every packaged config: its name, its file, and what the zoo runs"
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        yield name, path, load_config(path, overrides(name))[0]


def wordings() -> dict[str, str]:
    "SHA-256 of a config file, today's or an old one → hash of the config that it means"
    return dict(json.loads(WORDINGS.read_text())) if WORDINGS.exists() else {}


def find_wordings() -> None:
    "Resolve every version of every config file with which something was measured"
    def git(*args: str) -> bytes: return subprocess.run(["git", *args], cwd=ROOT, capture_output=True).stdout
    found = {}
    for _, path, _ in entries():
        wanted_texts = {r["config_sha256"] for r in history(results_path(path))}
        for commit in git("log", "--format=%h", "--", str(path)).decode().split():
            text = git("show", f"{commit}:{path.relative_to(ROOT)}")
            if (key := hashlib.sha256(text).hexdigest()) not in wanted_texts: continue
            with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
                Path(file.name).write_bytes(text)
                try: found[key] = config_hash(load_config(file.name)[0])
                except ConfigError: pass   # of keys that are no more
    WORDINGS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def stored(path: Path, config: Config) -> dict[int, dict[str, Any]]:
    "The newest line of each seed, of the config as it is today"
    now, known = config_hash(config), wordings()
    return {r["seed"]: r for r in history(results_path(path)) if all(o.startswith("train.total_steps=") for o in r["overrides"]) and now == (r.get("config_hash") or known.get(r["config_sha256"]))}


def wanted(name: str, config: Config) -> int:
    "How many seeds this config should have"
    return 3 if name in SHORTER else SEEDS.get(family(config), 10)


def missing(only: str = "*", seeds: int | None = None) -> list[tuple[str, Path, Config, list[int]]]:
    "Configs with the seeds that they lack, those with the shortest trainings first"
    found = [(name, path, c, [s for s in range(1, (seeds or wanted(name, c)) + 1) if s not in stored(path, c)]) for name, path, c in entries() if fnmatchcase(name, only)]
    return sorted((f for f in found if f[3]), key=lambda f: (f[2].algo.name not in ("a2c", "ppo"), f[2].train.total_steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run what is missing")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="such as 'ppo/*'")
    parser.add_argument("--seeds", type=int, help="so many for each config, instead of what its world wants")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--engine", default="auto", help="as in settings.ini (default: auto)")
    parser.add_argument("--device", default="cpu", help="as in settings.ini; for the engine graphs: cuda (default: cpu)")
    parser.add_argument("--configs", action="store_true", help="write benchmarks/results/configs.json anew")
    options = parser.parse_args()
    if options.configs: return find_wordings()
    todo, end = missing(options.only, options.seeds), time.monotonic() + 60 * options.minutes
    print(table(("config", "env steps", "has", "lacks seeds"), [(name, f"{c.train.total_steps:,}", len(stored(path, c)), ", ".join(map(str, lacks))) for name, path, c, lacks in todo]) if todo
          else "nothing is missing", flush=True)
    if not options.run: return
    def one(name: str, path: Path, seed: int) -> None:
        if time.monotonic() > end: return
        try: measure(path, seed, overrides(name), workspace(runs, options.engine, options.device), options.jobs, True)
        except RunFailed as e: print(e, flush=True)   # such as a world that is not installed
    with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(options.jobs) as pool:
        for f in [pool.submit(one, name, path, s) for name, path, _, lacks in todo for s in lacks]: f.result()


if __name__ == "__main__": main()
