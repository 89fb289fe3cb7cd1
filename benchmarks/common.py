"What the benchmark scripts share: running the command line in its own process, and records that say where they come from."
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RLSTUDIO = Path(sys.executable).parent / "rlstudio"


def versions() -> dict[str, str]:
    "What a result depends on"
    packages = ("rlstudio", "torch", "numpy", "gymnasium")
    return {"python": platform.python_version()} | {p: version(p) for p in packages}


def machine() -> dict[str, Any]:
    "The kind of machine, without its name"
    try: cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError: cpu = None
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count()}


def commit() -> str:
    "The commit of the checkout, with a mark when files differ from it"
    def git(*args: str) -> str: return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "rlstudio", "configs") else "")


def record(**fields: Any) -> dict[str, Any]:
    "One measurement: when, of what, on what, and its figures"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time": now, "commit": commit(), "versions": versions(), "machine": machine()} | fields


def append(path: Path, row: dict[str, Any]) -> None:
    "Add one line to a stored history"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f: f.write(json.dumps(row, allow_nan=False) + "\n")


def history(path: Path) -> list[dict[str, Any]]:
    "The lines stored so far"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class RunFailed(RuntimeError):
    "A command ended with an error; the message holds what it said"


def rlstudio(*args: object, cwd: Path | None = None) -> tuple[dict[str, Any], float]:
    "Run one `rlstudio … --json` to its end, in a workspace: its JSON object, and seconds from the start of the process to its end"
    command, start = [str(RLSTUDIO), *map(str, args), "--json"], time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=cwd)
    seconds = time.perf_counter() - start
    if done.returncode: raise RunFailed(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout), seconds


def make_venv(folder: Path, *packages: str, constrained: bool = True) -> Path:
    "An environment for the peers: their own packages, and torch and gymnasium borrowed from this one by a path; the one that is there, if it is whole"
    python, whole = folder / "bin" / "python", folder / "installed.txt"
    if whole.exists() and whole.read_text() == "\n".join(packages): return python
    if not python.exists(): subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    (Path(own.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    limits = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", *limits, *packages], check=True, stdout=sys.stderr)
    whole.write_text("\n".join(packages))
    return python


def one_thread() -> dict[str, str]:
    "The variables of a process that calculates with one thread"
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def figures(result: dict[str, Any]) -> dict[str, Any]:
    "The result without the place where it lies"
    return {k: v for k, v in result.items() if k != "run"}


def sha256(path: Path) -> str:
    "Which version of a file gave a result"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def numbers(text: str) -> list[int]:
    "`1-3,7` → 1, 2, 3, 7"
    spans = [part.partition("-") for part in text.split(",")]
    return [n for first, _, last in spans for n in range(int(first), int(last or first) + 1)]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    "Columns that line up, as GitHub's markdown"
    cells = [list(head), *([f"{c:,.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])
