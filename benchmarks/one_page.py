#!/usr/bin/env python
"""How well the page of nbs/prologue/03_ppo_on_a_page.ipynb learns: its very cells, seed by seed, raw results kept.

    python benchmarks/one_page.py --seeds 1-5

The cells with the tag `page` are the whole program. Each line of benchmarks/results/one_page.jsonl is one seed: its curve in training, the return
of every episode of the evaluation, and the hash of the cells, so that a page that changed afterwards is found (tests/test_prologue.py).
"""
import argparse
import hashlib
import json
import time
from typing import Any

from common import RESULTS, ROOT, append, numbers, record

NOTEBOOK = ROOT / "nbs" / "prologue" / "03_ppo_on_a_page.ipynb"
PATH = RESULTS / "one_page.jsonl"


def page() -> str:
    "The source of the cells that are the page, in order"
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if "page" in c["metadata"].get("tags", [])) + "\n"


def program() -> dict[str, Any]:
    "What the page defines"
    names: dict[str, Any] = {}
    exec(compile(page(), NOTEBOOK.name, "exec"), names)
    return names


def measure(seed: int) -> dict[str, Any]:
    "Train and judge one seed, and store the line"
    names, start, cpu = program(), time.perf_counter(), time.process_time()
    actor, curve = names["train"](seed)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    returns = names["evaluate"](actor)
    row = record(page_sha256=hashlib.sha256(page().encode()).hexdigest(), env="CartPole-v1", seed=seed, total_steps=1024 * len(curve),
                 train_seconds=round(seconds, 1), cpu_seconds=round(cpu_seconds, 1), curve=[round(float(x), 1) for x in curve],
                 eval_return_mean=float(returns.mean()), eval_returns=returns.tolist())
    append(PATH, row)
    print(f"seed {seed}: {row['eval_return_mean']:.1f}, worst episode {returns.min():.0f}, {seconds:.0f} s ({cpu_seconds:.0f} s of one core)", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3, 4, 5], help="such as 1-5 or 1,4,7 (default: 1-5)")
    rows = [measure(seed) for seed in parser.parse_args().seeds]
    print(f"{sum(r['eval_return_mean'] >= 475 for r in rows)} of {len(rows)} reach 475")


if __name__ == "__main__": main()
