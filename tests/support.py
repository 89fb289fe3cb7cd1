"What the tests share: the project's files, its notebooks in reading order, child processes and copies of the tree."
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "rlstudio"
SKIP_FLAGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]["tst_flags"].split()


@dataclass(frozen=True)
class Chapter:
    "A notebook that exports a module"
    path: Path  # nbs/NN_package.module.ipynb
    module: str  # rlstudio.package.module

    @property
    def file(self) -> Path: return ROOT / (self.module.replace(".", "/") + ".py")


def cells(path: Path, kind: str = "code") -> list[str]:
    "The sources of a notebook's cells of one kind"
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def notebooks(folder: Path = NBS) -> list[Path]:
    "Every notebook directly in the folder, in reading order"
    return sorted(folder.glob("*.ipynb"))


WALKS = ("prologue", "tutorials")  # folders of notebooks that export nothing; every cell runs, and outputs are stored


def walks() -> list[Path]:
    "The notebooks of the prologue and the tutorials, in reading order"
    return [p for folder in WALKS for p in notebooks(NBS / folder)]


def chapters() -> list[Chapter]:
    "The notebooks with a `default_exp`, in reading order"
    found = ((p, re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(cells(p)), re.M)) for p in notebooks())
    return [Chapter(p, f"rlstudio.{m[1]}") for p, m in found if m]


def project_files() -> list[Path]:
    "Every file of the project that is or will be committed, relative to the root"
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(p for p in map(Path, set(out.stdout.split("\0")) - {""}) if (ROOT / p).is_file())


def copy_tree(to: Path) -> Path:
    "A copy of the project's files, to run commands on that may write"
    for f in project_files():
        (to / f).parent.mkdir(parents=True, exist_ok=True)
        (to / f).write_bytes((ROOT / f).read_bytes())
    return to


def snapshot(root: Path) -> dict[str, bytes]:
    "The bytes of every file under root, caches left out"
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def child_env(coverage: bool = True, **extra: str) -> dict[str, str]:
    "The environment for a child: this interpreter's tools first, no colours, and no coverage where time or output matters"
    env = {k: v for k, v in os.environ.items() if coverage or not k.startswith(("COVERAGE", "COV_CORE"))}
    env.pop("PYTHONPATH", None)
    return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "NO_COLOR": "1", "TERM": "dumb"} | extra


def disguise() -> dict[str, str]:
    "The environment in which every library chooses the kernels of a simpler processor than this one"
    import numpy as np

    from rlstudio.core.arithmetic import identity
    here, dispatched = identity(), np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    simple = {"x86_64": "Nehalem" if "Haswell" in here["blas"] else "Haswell"}.get(here["system"].split()[-1], "ARMV8")
    wide = [name for name in dispatched if re.search("AVX512|V4|SVE", name)]
    return {"OPENBLAS_CORETYPE": simple, "ATEN_CPU_CAPABILITY": "avx2" if here["torch_simd"] == "AVX512" else "default",
            "NPY_DISABLE_CPU_FEATURES": " ".join([*os.environ.get("NPY_DISABLE_CPU_FEATURES", "").split(), *(wide or dispatched)])}


def run(*args: object, cwd: Path = ROOT, timeout: float = 600, coverage: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    "Run a command to its end; the caller judges the return code"
    return subprocess.run([str(a) for a in args], cwd=cwd, env=child_env(coverage, **env), timeout=timeout,
                          text=True, capture_output=True, stdin=subprocess.DEVNULL)


def said(done: subprocess.CompletedProcess[str], last: int = 60) -> str:
    "The end of what a child printed, for an assertion's message"
    text = "\n".join((done.stdout + done.stderr).splitlines()[-last:])
    return f"{' '.join(map(str, done.args))}\nexit code {done.returncode}\n{text}"
