#!/usr/bin/env python
"""Measure the key figures of docs/kpi.md through the command line, compare them with the last measurement, and store them.

    python benchmarks/kpi.py              # speed, time to threshold, return, reproducibility: a few minutes
    python benchmarks/kpi.py --ci         # also coverage and CI time: runs .ci/run
    python benchmarks/kpi.py --busy       # a machine with other work: without the figures that are times
    python docs/make_kpi.py               # then the page and its picture
"""
import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, RLSTUDIO, ROOT, RunFailed, append, history, numbers, record, rlstudio, sha256, table

HISTORY = RESULTS / "kpi.jsonl"
TIMES = ("env_steps_per_second", "seconds_to_threshold", "ci_seconds")


def progress(metrics: Path) -> float:
    "How far a run is, in [0, 1], by its last whole record"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return next((json.loads(line)["train/progress"] for line in reversed(lines) if line.endswith("\n")), 0.0)


def killed_and_resumed(config: Path, seed: int, runs: str) -> str:
    "The hash of a run that gets SIGKILL at a random share of its steps, and is resumed"
    name = f"killed-{seed}"
    run = Path(runs) / name
    command = [str(RLSTUDIO), "run", str(config), f"train.seed={seed}", "checkpoint.every=10000", "--name", name, "--runs-dir", runs, "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, share = run / "metrics.jsonl", random.Random(seed).uniform(0.1, 0.8)
    while child.poll() is None and progress(metrics) < share: time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if child.returncode == 0: raise RunFailed(f"seed {seed} ended before it could be killed; choose a longer run")
    return str(rlstudio("resume", run)[0]["weights_sha256"])


def measure(config: Path, seeds: list[int], threshold: float) -> dict[str, Any]:
    "Three runs a seed: one that counts, the same again, and one that is killed and resumed"
    first, walls, same = [], [], []
    with tempfile.TemporaryDirectory() as runs:
        for seed in seeds:
            a, seconds = rlstudio("run", config, f"train.seed={seed}", "--runs-dir", runs)
            b, _ = rlstudio("run", config, f"train.seed={seed}", "--runs-dir", runs)
            c = killed_and_resumed(config, seed, runs)
            first.append(a); walls.append(seconds); same.append(a["weights_sha256"] == b["weights_sha256"] == c)
            print(f"seed {seed}: return {a['eval_return_mean']:.1f}, {seconds:.1f} s, reproduced: {same[-1]}", flush=True)
    reached = sorted(w if r["eval_return_mean"] >= threshold else float("inf") for w, r in zip(walls, first))
    middle = reached[(len(reached) - 1) // 2 if len(reached) % 2 else len(reached) // 2]
    return {
        "env_steps_per_second": round(statistics.median(r["env_steps_per_second"] for r in first)),
        "seconds_to_threshold": round(middle, 2) if middle < float("inf") else None,
        "eval_return_mean": round(statistics.fmean(r["eval_return_mean"] for r in first), 2),
        "reproduced": sum(same) / len(same),
    }


def ci() -> dict[str, Any]:
    "Coverage and seconds of the whole check"
    start = time.perf_counter()
    done = subprocess.run([ROOT / ".ci" / "run"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: raise RunFailed(done.stdout[-3000:] + done.stderr[-1000:])
    total = re.search(r"^TOTAL\s.*?([\d.]+)%", done.stdout, re.M)
    if not total: raise RunFailed(".ci/run printed no coverage")
    return {"coverage_percent": float(total[1]), "ci_seconds": round(time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs" / "ppo" / "cartpole.yaml")
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3], help="such as 1-5 (default: 1-3)")
    parser.add_argument("--threshold", type=float, default=475.0, help="the return that counts as solved (default: 475)")
    parser.add_argument("--ci", action="store_true", help="also run .ci/run")
    parser.add_argument("--busy", action="store_true", help="other programs are at work here, so leave out speed and time")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history alone")
    options = parser.parse_args()
    kpis = measure(options.config, options.seeds, options.threshold) | (ci() if options.ci else {})
    if options.busy: kpis = {k: v for k, v in kpis.items() if k not in TIMES}
    past = [h for h in history(HISTORY) if h.get("config", options.config.stem) == options.config.stem]
    before = {k: v for h in past for k, v in h["kpis"].items()}  # each figure's last measurement
    row = record(config=options.config.stem, config_sha256=sha256(options.config), seeds=options.seeds, threshold=options.threshold, kpis=kpis)
    if not options.no_store: append(HISTORY, row)
    print(table(("figure", "now", "before"), ((k, v, before.get(k, "–")) for k, v in kpis.items())))


if __name__ == "__main__": main()
