#!/usr/bin/env python
"""From nothing to a solved CartPole: the seconds from the start of the process to an evaluation over 100 fresh greedy episodes, in turns with the peers, each with its best settings.

    python benchmarks/peers/solve.py --rounds 5
    python benchmarks/peers/solve.py --ten --rounds 3     # ten seeds on two cores: a study, and ten runs of Stable-Baselines3, two at a time
    python benchmarks/peers/solve.py                      # what is stored

What is compiled is kept between runs (numba's cache, JAX's), so the first run of a session, which fills the caches, is told apart (`cold`); Stable-Baselines3 compiles nothing. Settings: ours are those of configs/ppo/cartpole.yaml, and
PureJaxRL has the same, since they need a fourth of its own steps; Stable-Baselines3 and SBX have those of the zoo of Stable-Baselines3 (100k steps). RLStudio tells two times: when the evaluation stands in the run's folder, and when the
command has ended, with checkpoints, a curve and a film. A run counts only if it reaches 475. Each row of results/solve.jsonl is a run; each process is bound to one core.
"""
import argparse
import json
import os
import resource
import runpy
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))   # the other scripts

from common import RESULTS, RLSTUDIO, RunFailed, append, history, record, table  # noqa: E402

ROWS, GOAL = RESULTS / "solve.jsonl", 475.
NAMES = ("rlstudio-compiled", "rlstudio", "purejaxrl", "sbx", "sb3")
STEPS = 122_880, 100_000   # ours and PureJaxRL's; the zoo's


@cache
def peers() -> dict[str, Any]:
    "What benchmarks/peers knows of the others, and how it starts them"
    return runpy.run_path(str(HERE.parent / "__main__.py"))


def look_for_verdict(home: Path, found: list[float], over: threading.Event) -> None:
    "Note when the evaluation of the last weights stands in the run's folder"
    while not found and not over.wait(.01):
        for path in home.glob("runs/*/evaluations.json"):
            last = json.loads(path.read_text())[-1]   # the file is put there whole
            if last["env_steps"] == STEPS[0] and len(last["returns"]) == 100: found.append(time.time())


def ours(engine: str, seed: int) -> dict[str, float]:
    "One command in a workspace of its own"
    with tempfile.TemporaryDirectory() as home:
        Path(home, "settings.ini").write_text(f"[DEFAULT]\nengine = {engine}\n")
        verdict, over = list[float](), threading.Event()
        watch = threading.Thread(target=look_for_verdict, args=(Path(home), verdict, over))
        begun = time.time()
        watch.start()
        try: result = json.loads(peers()["child"]([str(RLSTUDIO), "run", "ppo/cartpole", "--seed", str(seed), "--quiet", "--json"], 1, home))
        finally: over.set()
        return dict(seconds=verdict[0] - begun, whole=time.time() - begun, score=result["eval_return_mean"])


def theirs(name: str, python: Path, seed: int, cache: Path, cores: int = 1) -> dict[str, float]:
    "One process of a peer"
    worker = HERE.parent / f"work_{'sb3' if name == 'sbx' else name}.py"
    task = json.dumps(dict(library=name, case="solve", seed=seed, steps=STEPS[0 if name == "purejaxrl" else 1], warm=0, episodes=100, world="CartPole-v1", envs=8, cores=cores))
    os.environ |= dict(JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")
    begun = time.time()
    found = json.loads(peers()["child"]([str(python), "-P", str(worker), task], cores).splitlines()[-1])
    return dict(seconds=time.time() - begun, score=found["eval_return_mean"])


def one(name: str, python: Path, seed: int, home: Path) -> dict[str, Any]:
    "A run, with the processor time that it took"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = ours("compiled" if name == "rlstudio-compiled" else "auto", seed) if name in peers()["OURS"] else theirs(name, python, seed, home / "jax")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {k: round(v, 2) for k, v in (found | dict(cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)).items()}


def measure(rounds: int, names: list[str], session: str, home: Path, store: bool) -> list[dict[str, Any]]:
    "Rounds in turns; before them one run of each with empty caches"
    rows, pythons = [], peers()["environments"](names, home)
    with tempfile.TemporaryDirectory() as caches:
        os.environ["NUMBA_CACHE_DIR"] = str(Path(caches, "numba"))
        for n in range(rounds + 1):
            turn = n % len(names)
            for name in names[turn:] + names[:turn]:
                if name not in pythons: continue
                try: found = one(name, pythons[name], n + 1, Path(caches))
                except RunFailed as e:
                    print(f"{name} failed: {e}", file=sys.stderr, flush=True)
                    continue
                rows.append(record(session=session, round=n, library=name, cold=n == 0, load=round(os.getloadavg()[0], 1), **found))
                if store: append(ROWS, rows[-1])
                print(f"{'cold' if n == 0 else f'round {n}'}: {name} {found['seconds']:.1f} s, return {found['score']:.0f}", flush=True)
    return rows


def study(home: Path) -> list[float]:
    "Ten seeds by one command, two at a time: their scores"
    Path(home, "settings.ini").write_text("[DEFAULT]\nengine = compiled\n")
    peers()["child"]([str(RLSTUDIO), "study", "ppo/cartpole", "--seeds", "1-10", "--jobs", "2", "--name", "ten", "--quiet"], 2, str(home))
    return [json.loads(path.read_text())["eval_return_mean"] for path in sorted(home.glob("runs/ten/*/result.json"))]


def ten_of_sb3(python: Path, home: Path) -> list[float]:
    "Ten processes, two at a time"
    with ThreadPoolExecutor(2) as pool: return [f["score"] for f in pool.map(lambda seed: theirs("sb3", python, seed, home, cores=2), range(1, 11))]


def measure_ten(rounds: int, session: str, venvs: Path, store: bool) -> list[dict[str, Any]]:
    "Ten seeds on two cores, in turns"
    python, rows = peers()["environments"](["sb3"], venvs)["sb3"], []
    for n in range(1, rounds + 1):
        for name in ("rlstudio-compiled", "sb3")[:: 1 if n % 2 else -1]:
            with tempfile.TemporaryDirectory() as home:
                begun = time.time()
                scores = study(Path(home)) if name != "sb3" else ten_of_sb3(python, Path(home))
                rows.append(record(session=session, round=n, library=name, ten=True, load=round(os.getloadavg()[0], 1), seconds=round(time.time() - begun, 2), solved=sum(s >= GOAL for s in scores), runs=len(scores)))
            if store: append(ROWS, rows[-1])
            print(f"round {n}: {name}, {rows[-1]['solved']} of {rows[-1]['runs']} solved in {rows[-1]['seconds']:.0f} s", flush=True)
    return rows


def ten_line(rows: list[dict[str, Any]]) -> str:
    "What the rounds of ten say; '' if there are none"
    by = {name: {r["round"]: r for r in rows if r.get("ten") and r["library"] == name} for name in ("rlstudio-compiled", "sb3")}
    mine, their = by.values()
    if not (both := sorted({*mine} & {*their})): return ""
    ratio = statistics.median(their[n]["seconds"] / mine[n]["seconds"] for n in both)
    a, b = (statistics.median(d[n]["seconds"] for n in both) for d in (mine, their))
    solved, other = (f"{min(d[n]['solved'] for n in both)} of {d[both[0]]['runs']}" for d in (mine, their))
    return f"Ten seeds on two cores: {a:.0f} s by a study ({solved} solved), {b:.0f} s by ten runs of Stable-Baselines3, two at a time ({other} solved): {ratio:.1f} ×."


def summary(rows: list[dict[str, Any]]) -> list[list[object]]:
    "A line a library: median, least and most of what reached the goal, how often it did, the ratio to RLStudio within rounds, and the cold run"
    rows = [r for r in rows if not r.get("ten")]
    best = {r["round"]: r["seconds"] for r in rows if r["library"] == "rlstudio-compiled" and not r["cold"]}
    lines: list[list[object]] = []
    for name in dict.fromkeys(r["library"] for r in rows):
        warm = [r for r in rows if r["library"] == name and not r["cold"]]
        good, cold = [r for r in warm if r["score"] >= GOAL], next((r["seconds"] for r in rows if r["library"] == name and r["cold"]), None)
        if not good: continue
        times, ratios = [r["seconds"] for r in good], [r["seconds"] / best[r["round"]] for r in good if r["round"] in best]
        lines.append([name, f"{len(good)} of {len(warm)}", statistics.median(times), min(times), max(times), statistics.median(ratios) if ratios else "–",
                      statistics.median(r["whole"] for r in good) if "whole" in good[0] else "–", "–" if cold is None else cold])
    return sorted(lines, key=lambda line: float(str(line[2])))


def newest() -> list[dict[str, Any]]:
    "The rows of the newest session of each kind"
    rows, last = history(ROWS), {bool(r.get("ten")): r["session"] for r in history(ROWS)}
    return [r for r in rows if r["session"] == last[bool(r.get("ten"))]]


def sentence() -> str:
    "What is stored, for the page 'Make it fast'; '' if nothing is"
    lines = {str(line[0]): line for line in summary(newest())} if ROWS.exists() else {}
    if not (mine := lines.pop("rlstudio-compiled", None)): return ""
    own = f" and {lines.pop('rlstudio')[2]:.1f} s as it comes" if "rlstudio" in lines else ""
    titles = {"purejaxrl": "PureJaxRL", "sbx": "SBX", "sb3": "Stable-Baselines3"}
    others = ", ".join(f"{titles[name]} {line[2]:.1f} s" for name, line in lines.items())
    return f"From the start of the process to a solved CartPole, evaluated over 100 episodes, with what is compiled in its cache: {mine[2]:.1f} s with `compiled`{own}; {others} ([solve.py](../../../benchmarks/peers/solve.py)). {ten_line(newest())}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="measure so many (default: tell what is stored)")
    parser.add_argument("--only", default=",".join(NAMES), help="some of " + ", ".join(NAMES))
    parser.add_argument("--session", default=time.strftime("%Y-%m-%dT%H:%M", time.gmtime()), help="a name for these rounds")
    parser.add_argument("--venvs", type=Path, default=HERE.parents[2] / "build/peers", help="where the peers' environments are kept (default: build/peers)")
    parser.add_argument("--ten", action="store_true", help="measure ten seeds on two cores")
    parser.add_argument("--no-store", action="store_true", help="a trial: print only")
    options = parser.parse_args()
    if odd := set(options.only.split(",")) - set(NAMES): parser.error(f"--only: given {', '.join(odd)}, expected some of {', '.join(NAMES)}")
    if options.ten: print(ten_line(measure_ten(options.rounds or 3, options.session, options.venvs, not options.no_store)))
    if options.ten: return
    rows = measure(options.rounds, options.only.split(","), options.session, options.venvs, not options.no_store) if options.rounds else newest()
    print(table(("library", "solved", "median s", "least", "most", "× RLStudio", "whole command", "cold s"), summary(rows)))
    if line := ten_line(rows): print(f"\n{line}")


if __name__ == "__main__": main()
