#!/usr/bin/env python
"""A table of thousands of small runs: seconds of processor time, and memory, from cold, from the rows that were kept, and after a few runs have changed.

    python benchmarks/table.py --runs 5000

One run of a few thousand steps is trained for real. Its small files are copied, with another seed and another score in each, and hashes that fit: ten arms of equal size in one folder.
Then the table is read in a process of its own, each time: cold (nothing was kept), warm, and after 100 runs have changed; and the command line writes CSV and Parquet. A broken run lies among them and must be named.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, RLSTUDIO, append, record, table

READ = """
import json, resource, sys, time
from rlstudio.evidence.table import arms, read_table, summary
def used(): return resource.getrusage(resource.RUSAGE_SELF)
start, began = used(), time.perf_counter()
found = read_table(sys.argv[1])
end, wall = used(), time.perf_counter() - began
summary(found)
print(json.dumps(dict(runs=len(found), arms=len(arms(found)), broken=len(found.broken), cpu_s=end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, wall_s=wall,
                      mib=end.ru_maxrss / 1024, mib_before=start.ru_maxrss / 1024)))
"""


def small_run(folder: Path) -> Path:
    "A run that was trained"
    subprocess.run([RLSTUDIO, "run", "ppo/cartpole", "train.total_steps=4096", "eval.episodes=5", "eval.every=1024", "--runs-dir", folder, "--name", "origin", "--quiet"], check=True, capture_output=True)
    return folder / "origin"


def copies(origin: Path, folder: Path, count: int) -> None:
    "Many runs like it, each with its own seed and score, in ten arms"
    from rlstudio.runs.folder import read_record, spell_record, stamp_of
    config, result, seen = (origin / "config.yaml").read_text(), json.loads((origin / "result.json").read_text()), read_record(origin)
    assert seen is not None
    for i in range(count):
        run = folder / f"ppo-cartpole_algo.gamma={.9 + i % 10 / 100:g}_s{i // 10 + 1}"
        run.mkdir(parents=True)
        score = json.dumps(result | dict(eval_return_mean=100. + 37 * i % 400, seed=i // 10 + 1), indent=2).encode()
        text = re.sub(r"\n  seed: \d+", f"\n  seed: {i // 10 + 1}", re.sub(r"\n  gamma: \S+", f"\n  gamma: {.9 + i % 10 / 100:g}", config)).encode()
        seen.files |= {"result.json": stamp_of(score), "config.yaml": stamp_of(text)}
        for name, data in {"config.yaml": text, "result.json": score, "hashes.json": spell_record(seen)}.items(): (run / name).write_bytes(data)
        for name in ("manifest.json", "metrics.jsonl", "evaluations.json", "run.lock"): shutil.copy(origin / name, run / name)


def measured(what: str, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    "One reading in a process of its own"
    done = subprocess.run([sys.executable, "-c", READ, str(folder)], env=env, check=True, capture_output=True, text=True)
    return dict(what=what) | json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--no-record", action="store_true", help="print, and store nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        study, env = Path(tmp) / "study", dict(os.environ, XDG_CACHE_HOME=f"{tmp}/cache", OMP_NUM_THREADS="1")
        copies(small_run(Path(tmp)), study, args.runs)
        (study / "broken").mkdir()
        (study / "broken" / "config.yaml").write_text("algo: [")
        time.sleep(3)   # what was written just now is not kept
        rows = [measured("cold", study, env), measured("warm", study, env)]
        changed = sorted(study.glob("ppo*"))[::args.runs // 100]
        for run in changed: os.utime(run / "manifest.json")
        rows.append(measured(f"warm, {len(changed)} changed", study, env))
        for kind in ("csv", "parquet"):
            began = os.times()
            subprocess.run([RLSTUDIO, "table", study, f"--{kind}", f"{tmp}/out.{kind}"], env=env, check=True, capture_output=True)
            end = os.times()
            rows.append(dict(what=f"rlstudio table --{kind}", cpu_s=end.children_user + end.children_system - began.children_user - began.children_system,
                             kib=Path(f"{tmp}/out.{kind}").stat().st_size // 1024))
        kept = sum(f.stat().st_size for f in Path(tmp, "cache").rglob("*.json")) // 1024
    for row in rows: row |= {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}
    assert all(r["runs"] == args.runs and r["arms"] == 10 and r["broken"] == 1 for r in rows[:3]), rows
    print(table(("reading", "runs", "CPU s", "s", "MiB", "MiB before"), [(r["what"], r.get("runs", ""), r["cpu_s"], r.get("wall_s", ""), r.get("mib", ""), r.get("mib_before", "")) for r in rows]))
    print(f"kept rows: {kept:,} KiB")
    if not args.no_record: append(RESULTS / "table.jsonl", record(runs=args.runs, kept_kib=kept, rows=rows))


if __name__ == "__main__": main()
