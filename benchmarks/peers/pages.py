#!/usr/bin/env python
"""The code of other libraries in docs/pages/coming-from, run in their own environments: what a page shows of a peer works with the peer's version named here.

    python benchmarks/peers/pages.py                       # every page
    python benchmarks/peers/pages.py --only tianshou       # one; its rows are written anew

A block with `<!-- not run: peer -->` is the peer's. `<!-- test: OLD => NEW -->` above it makes its budget tiny, as for blocks of ours. The blocks of a page run in order and in one folder: Python in one process, each line of a shell in a
process of its own. Every block is a row of results/peer_pages.jsonl, with a hash of what was run; tests/test_pages.py wants a row for each block that is on a page now. A peer's environment is made in build/peers as for the speeds.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "tests")]   # the other scripts, and how pages are read

from common import RESULTS, ROOT, history, make_venv, record, table  # noqa: E402
from test_pages import Block, blocks  # noqa: E402

PAGES, ROWS = ROOT / "docs/pages/coming-from", RESULTS / "peer_pages.jsonl"
PEERS: dict[str, tuple[str, list[str], list[str]]] = {   # page → environment, what it needs, whose versions are noted
    "cleanrl": ("cleanrl-files", ["tyro", "tensorboard"], ["gymnasium", "torch"]),
    "rllib": ("rllib", ["ray[rllib]"], ["ray", "gymnasium"]),
    "stable-baselines3": ("sb3-zoo", ["stable-baselines3", "rl_zoo3"], ["stable_baselines3", "rl_zoo3"]),
    "tianshou": ("tianshou-pages", ["tianshou[eval]"], ["tianshou"]),
}
CLEANRL = "https://github.com/vwxyzjn/cleanrl"   # files, no package; a folder or another address may be given
SETUP = {"rllib": """import ray
for left in range(9, -1, -1):
    try: ray.init(num_cpus=4, include_dashboard=False, logging_level='error')
    except Exception:
        ray.shutdown()
        if not left: raise
    else: break"""}   # before the first block: a small cluster; a busy machine may need more than the half minute that Ray waits for itself
LIMIT = 600   # seconds of a block


def theirs(page: str) -> list[Block]:
    "The peer's blocks of a page"
    return [b for b in blocks((PAGES / f"{page}.md").read_text()) if "peer" in b.said("not run")]


def identity(b: Block) -> str:
    "Of what is run: the block with its tiny budget"
    return hashlib.sha256(b.ready().encode()).hexdigest()[:16]


def python_with(code: str, before: list[str]) -> str:
    "A program: the earlier blocks of the page, then this one; it ends with their names in use, so that worker processes may import it"
    return "if __name__ == '__main__':\n" + "\n".join(f"    {line}" if line.strip() else "" for text in (*before, code) for line in text.splitlines()) + "\n"


def child(command: list[str], folder: Path, python: Path) -> str:
    "Nothing, or what went wrong"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))} | dict(
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1", WANDB_MODE="offline", RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        RAY_AIR_NEW_OUTPUT="0", MPLBACKEND="agg", SDL_VIDEODRIVER="dummy")
    try: done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired: return f"not over after {LIMIT} s"
    lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {done.returncode}")[:300] if done.returncode else ""


def versions_of(python: Path, names: list[str]) -> dict[str, str]:
    "What is installed there"
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names!r}}}))"
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout))


def cleanrl_files(source: str, folder: Path) -> str:
    "CleanRL's files in a folder, and which commit they are"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", source if "://" in source else f"file://{Path(source).resolve()}", folder], check=True)
    return subprocess.run(["git", "log", "-1", "--format=%h of %cs"], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def tried(page: str, home: Path, source: str = CLEANRL) -> list[dict[str, Any]]:
    "A row for each block of a peer"
    place, packages, told = PEERS[page]
    python, rows, before = make_venv(home / place, *packages, constrained=False), [], [SETUP[page]] if page in SETUP else []
    with tempfile.TemporaryDirectory() as where:
        files = dict(cleanrl=cleanrl_files(source, Path(where))) if page == "cleanrl" else {}
        for b in theirs(page):
            start, code, folder = time.perf_counter(), b.ready(), Path(where)
            if b.language == "python":
                (folder / "page.py").write_text(python_with(code, before))
                why = child([str(python), "page.py"], folder, python)
                if not why: before.append(code)
            else: why = next((f"{line}: {bad}" for line in code.splitlines() if line.strip() and (bad := child(["bash", "-c", line], folder, python))), "")
            rows.append(record(page=page, block=identity(b), begins=code.strip().partition("\n")[0], ok=not why, **(dict(why=why) if why else {}), peer=versions_of(python, told) | files,
                               seconds=round(time.perf_counter() - start, 1)))
            print(f"{page}: {'ok' if not why else 'FAILED'} {rows[-1]['begins']} {why}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="pages, apart by commas")
    parser.add_argument("--environments", type=Path, default=ROOT / "build/peers", help="where the peers' environments are, or are made")
    parser.add_argument("--cleanrl", default=CLEANRL, help="a clone of CleanRL, or its address")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [*PEERS]
    rows = [row for page in chosen for row in tried(page, options.environments, options.cleanrl)]
    rows += [r for r in history(ROWS) if r["page"] not in chosen]
    ROWS.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in sorted(rows, key=lambda r: r["page"])))
    print(table(("page", "begins", "ok", "seconds"), [[r["page"], r["begins"], r["ok"], r["seconds"]] for r in rows]))
    return 0 if all(r["ok"] for r in rows) else 3


if __name__ == "__main__": sys.exit(main())
