"""A release, made and tried on this machine; `.ci/release` calls it, and nothing is published.

- `python tests/release.py build OUT`: wheel and source distribution, built twice from copies in different folders and compared byte by byte; beside them the bill of
  materials, the sums and the script that checks a download.
- `python tests/release.py try OUT --python python3.12 --work DIR`: the wheel in new environments of that Python, first without extras, then with each extra, outside of the
  checkout, each with the command that shows what the extra is for; what was tried is written to OUT/tried.jsonl, one row for each Python and extra.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from support import ROOT, project_files, said

Row = dict[str, Any]
SINK = "printf '[DEFAULT]\\nsinks = jsonl, {0}\\n' > settings.ini"
SMALL = "rlstudio run ppo/cartpole train.total_steps=2048 eval.episodes=2 --name small --quiet"

# What shows that an extra does its work, as lines of a shell in an empty folder. '' is the main job, without any extra.
TRIALS: dict[str, list[str]] = {
    "": [SMALL, "rlstudio resume small train.total_steps=4096 --quiet", "rlstudio verify small", "rlstudio audit small --updates 2", "rlstudio evaluate small --episodes 2",
         "rlstudio list algos", "rlstudio show small", "rlstudio export small folder", "rlstudio run dqn/cartpole train.total_steps=3000 eval.episodes=2 --quiet"],
    "atari": ["rlstudio run ppo/pong-ram train.total_steps=1024 eval.episodes=1 eval.max_steps=100 --quiet"],
    "box2d": ["rlstudio run dqn/lunarlander train.total_steps=2000 eval.episodes=1 --quiet"],
    "mujoco": ["rlstudio run td3/hopper train.total_steps=1200 algo.learning_starts=500 eval.episodes=1 --quiet"],
    "track": [SINK.format("tensorboard"), SMALL, "find runs -name 'events.out.tfevents*' | grep ."],
    "wandb": [SINK.format("wandb"), SMALL, "find runs -name '*.wandb' | grep ."],
    "mlflow": [SINK.format("mlflow"), SMALL, "find runs -path '*ml*' -name '*.db' -o -path '*mlruns*' -type f | grep ."],
    "trackio": [SINK.format("trackio"), SMALL],
    "export": [SMALL, "rlstudio export small pole.onnx", "test -s pole.onnx"],
    "hub": ["python -c 'from rlstudio.runs.hub import hub_package; print(hub_package().__version__)'"],
    "search": ["rlstudio study ppo/cartpole train.total_steps=1024 eval.episodes=1 --search algo.gamma=0.9..0.99 --trials 2 --name s --quiet", "rlstudio table s"],
    "ray": ["rlstudio study ppo/cartpole train.total_steps=1024 eval.episodes=1 --seeds 1-2 --executor ray --name s --quiet", "rlstudio table s"],
    "slurm": ["rlstudio study ppo/cartpole train.total_steps=1024 eval.episodes=1 --seeds 1 --executor slurm --name s --quiet", "rlstudio table s"],
    "frames": [SMALL, "rlstudio table --parquet runs.parquet", "test -s runs.parquet"],
    "fast": ["printf '[DEFAULT]\\nengine = compiled\\n' > settings.ini", SMALL, "grep -q numba runs/small/manifest.json"],
    "notebook": ["python -c 'import ipywidgets, jupytext; from rlstudio.studio.panel import Panel; print(Panel)'", "jupyter lab --version"],
}
UNPINNED = {"trackio"}   # its gradio wants older packages than constraints.txt has, so it is installed without them, and cannot live beside every other extra
GOAL = 475.0   # of the main job, the README's first command


def extras() -> list[str]:
    "The extras of pyproject.toml but for `dev`, which .ci/run installs whole, and `docs`, which works on a checkout"
    return [e for e in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"] if e not in ("dev", "docs")]


def copy_to(to: Path, umask: int) -> Path:
    "The project's files under another path, with other rights and times: none of it may reach the archives"
    for f in project_files():
        (to / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / f, to / f)
        (to / f).chmod((0o777 if os.access(ROOT / f, os.X_OK) else 0o666) & ~umask)
        os.utime(to / f, (umask, umask))
    return to


def built(source: Path, epoch: str) -> dict[str, bytes]:
    "name → bytes of what hatchling makes of a copy"
    done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", "dist"], cwd=source, capture_output=True, text=True,
                          env=os.environ | {"SOURCE_DATE_EPOCH": epoch})
    if done.returncode: sys.exit(f"release: the build failed\n{said(done)}")
    return {p.name: p.read_bytes() for p in sorted((source / "dist").iterdir())}


def commit_time() -> str:
    "Seconds of the last commit: the time that every file in the archives has"
    return subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "1767225600"


def build_twice(where: Path) -> dict[str, bytes]:
    "Two builds in two folders; the bytes, if they are the same"
    one = built(copy_to(where / "one", 0o022), commit_time())
    two = built(copy_to(where / "another" / "path", 0o077), commit_time())
    if differ := [n for n in one.keys() | two.keys() if one.get(n) != two.get(n)]: sys.exit(f"release: two builds of the same files differ: {', '.join(sorted(differ))}")
    return one


def sums(folder: Path) -> str:
    "SHA256SUMS, as sha256sum writes it"
    files = sorted(p for p in folder.iterdir() if p.name not in ("SHA256SUMS", "tried.jsonl"))
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)


def build(out: Path) -> None:
    "All files of a release"
    out.mkdir(parents=True, exist_ok=True)
    if strangers := [p.name for p in out.iterdir()]: sys.exit(f"release: {out} is not empty ({', '.join(sorted(strangers)[:3])}); name a new folder")
    with tempfile.TemporaryDirectory() as where:
        for name, data in build_twice(Path(where)).items(): (out / name).write_bytes(data)
    bill = subprocess.run([sys.executable, ROOT / "tests/sbom.py"], capture_output=True, text=True, check=True)
    (out / "sbom.cdx.json").write_text(bill.stdout)
    for f in ("tests/check_download.py", "constraints.txt", "NOTICE.md", "CHANGELOG.md"): shutil.copyfile(ROOT / f, out / Path(f).name)
    (out / "SHA256SUMS").write_text(sums(out))
    print((out / "SHA256SUMS").read_text(), end="")


def environment(home: Path, python: str, wheel: str, below: Path | None = None, pinned: bool = True) -> tuple[str, float]:
    """A new environment with the wheel, or the one that stands there; one that lies `below` lends its packages, so that torch is installed once for each Python.
    What went wrong, and how long it took."""
    start = time.perf_counter()
    if not (home / "bin/python").exists(): subprocess.run([python, "-m", "venv", *(["--without-pip"] if below else []), home], check=True)
    site, = home.glob("lib/python*/site-packages")
    if below: (site / "below.pth").write_text(str(next(below.glob("lib/python*/site-packages"))) + "\n")
    pip = [(below or home) / "bin/python", "-m", "pip", "--python", home / "bin/python", "install", "-q", *(["-c", ROOT / "constraints.txt"] if pinned else [])]
    for line in ([*pip, wheel], [*pip, "--no-deps", "--force-reinstall", wheel.partition("[")[0]]):
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
        if done.returncode: break
    return last_line(done) if done.returncode else "", time.perf_counter() - start


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    "What a child said last, on standard error or else on standard output"
    lines = [s for s in (done.stderr.strip() or done.stdout.strip()).splitlines() if s.strip() and not s.startswith(("WARNING", "[notice]"))]
    return next((s for s in lines if s.startswith("ERROR")), lines[-1] if lines else f"exit code {done.returncode}")[:300]


def tried(home: Path, lines: list[str]) -> str:
    "Nothing, or the line that failed and what it said"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV", "VIRTUAL"))} | dict(
        PATH=f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", NO_COLOR="1", TERM="dumb", WANDB_MODE="offline", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory() as workspace:
        for line in lines:
            done = subprocess.run(["sh", "-c", line], cwd=workspace, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
            if done.returncode: return f"{line}: {last_line(done)}"
    return ""


def main_job(home: Path) -> Row:
    "The README's first command with the config's own budget, from outside of the checkout"
    with tempfile.TemporaryDirectory() as workspace:
        start = time.perf_counter()
        done = subprocess.run([home / "bin/rlstudio", "run", "ppo/cartpole", "--seed", "1", "--json"], cwd=workspace, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode: return dict(why=last_line(done))
        told = json.loads(done.stdout)
        missed = dict(why=f"eval {told['eval_return_mean']} of {GOAL}") if told["eval_return_mean"] < GOAL else {}
        return dict(eval_return_mean=told["eval_return_mean"], seconds_main_job=round(time.perf_counter() - start, 1), weights_sha256=told["weights_sha256"]) | missed


def versions(home: Path) -> dict[str, str]:
    "What an environment holds of what matters most"
    code = "import json, platform, torch, numpy, gymnasium, rlstudio as r; print(json.dumps(dict(python=platform.python_version(), rlstudio=r.__version__, torch=torch.__version__, numpy=numpy.__version__, gymnasium=gymnasium.__version__)))"
    return json.loads(subprocess.run([home / "bin/python", "-c", code], capture_output=True, text=True, check=True, cwd=home).stdout)


def try_out(out: Path, python: str, work: Path, chosen: list[str] | None = None) -> bool:
    "The wheel on one Python: without extras, then with each"
    wheel = next(out.glob("*.whl")).resolve()
    version = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True).stdout.strip()
    base, good = (work / version).absolute(), True

    def note(extra: str, took: float, why: str, **more: Any) -> None:
        nonlocal good
        good = good and not why
        store(out / "tried.jsonl", row := dict(python=version, extra=extra, ok=not why) | (dict(why=why) if why else {}) | dict(seconds_install=round(took, 1), wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()) | more)
        print(told_row(row), flush=True)

    why, took = environment(base, python, str(wheel))
    if why: note("", took, why); return False
    if chosen is None or "none" in chosen:
        about = dict(versions=versions(base)) | main_job(base)
        note("", took, about.pop("why", "") or tried(base, TRIALS[""]), **about)
    for extra in extras() if chosen is None else [e for e in chosen if e != "none"]:
        home = base.with_name(f"{version}-{extra}")
        why, took = environment(home, python, f"{wheel}[{extra}]", base, extra not in UNPINNED)
        note(extra, took, why or tried(home, TRIALS[extra]), **({"pinned": False} if extra in UNPINNED else {}))
        shutil.rmtree(home)
    return good


def store(path: Path, row: Row) -> None:
    "A row in the place of the one for the same Python and extra"
    found = {(r["python"], r["extra"]): r for r in [*(map(json.loads, path.read_text().splitlines()) if path.exists() else ()), row]}
    path.write_text("".join(json.dumps(found[key]) + "\n" for key in sorted(found)))


def told_row(row: Row) -> str:
    "One line of a trial"
    return f"{row['python']:5} {row['extra'] or 'no extra':10} {'ok' if row['ok'] else 'FAILED'} {row.get('why', row.get('weights_sha256', ''))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "try"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to try the wheel with (default: this one)")
    parser.add_argument("--work", type=Path, help="where environments are made; one that stands there is used again (default: a temporary folder)")
    parser.add_argument("--extras", help="only these, apart by commas; none is the main job without extras")
    options = parser.parse_args()
    if options.what == "build": build(options.out); return 0
    chosen = None if options.extras is None else options.extras.split(",")
    if unknown := {*(chosen or ())} - {"none", *extras()}: parser.error(f"--extras: {', '.join(sorted(unknown))}: no extra of pyproject.toml; there are none, {', '.join(extras())}")
    with tempfile.TemporaryDirectory() as temporary:
        return 0 if try_out(options.out, options.python, options.work or Path(temporary), chosen) else 3


if __name__ == "__main__": sys.exit(main())
