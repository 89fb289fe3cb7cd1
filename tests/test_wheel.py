"The archives of a release, and the wheel in an environment that holds it and the core dependencies alone, used outside the checkout."
import hashlib
import io
import json
import shutil
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import release
from check_download import problems
from closure import closure
from support import ROOT, chapters, project_files, run, said


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A wheel and a source distribution, built twice, in folders with other names, rights and times, to the same bytes"
    out = tmp_path_factory.mktemp("dist")
    for name, data in release.build_twice(tmp_path_factory.mktemp("source")).items(): (out / name).write_bytes(data)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path: return next(dist.glob("*.whl"))


def link(dist: Distribution, site: Path) -> None:
    "Make an installed distribution visible in another environment"
    for top in {f.parts[0] for f in dist.files or [] if f.parts[0] not in ("..", "__pycache__") and not f.is_absolute()}:
        source = Path(str(dist.locate_file(top)))
        if source.exists() and not (site / top).exists(): (site / top).symlink_to(source)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "An environment with nothing but the wheel and what it needs without extras; its folder of scripts"
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    for dependency in closure().values(): link(dependency, site)
    done = run(sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--no-deps", "--no-index", wheel, coverage=False)
    assert done.returncode == 0, said(done)
    return home / "bin"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path: return tmp_path_factory.mktemp("outside")


def test_wheel_holds_what_it_needs(wheel: Path) -> None:
    "The package, its configs and evidence, and not a file more"
    homes = {"rlstudio": "", "configs": "rlstudio/", "evidence/golden.json": "rlstudio/", "evidence/gates": "rlstudio/"}
    wanted = {prefix + f.as_posix() for f in project_files() for home, prefix in homes.items() if f.is_relative_to(home)}
    info = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/NOTICE.md"}
    names = {n.split(".dist-info/")[-1] if ".dist-info/" in n else n for n in zipfile.ZipFile(wheel).namelist()}
    assert names == wanted | info
    assert names > {"rlstudio/py.typed", "rlstudio/configs/ppo/cartpole.yaml", "rlstudio/evidence/golden.json", *(f"{c.module.replace('.', '/')}.py" for c in chapters())}


def test_sdist_is_the_project(dist: Path) -> None:
    "Every file of the repository, notebooks, configs, NOTICE and tests among them, and not a file more"
    with tarfile.open(next(dist.glob("*.tar.gz"))) as tar: names = {n.partition("/")[2] for n in tar.getnames()}
    assert names == {f.as_posix() for f in project_files()} | {"PKG-INFO"}
    assert names > {"NOTICE.md", "constraints.txt", "configs/ppo/cartpole.yaml", "nbs/30_data.returns.ipynb", "tests/test_wheel.py", ".ci/run", ".ci/release"}


def test_builds_that_differ_are_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Here the time of the files reaches the archives"
    times = iter(["1700000000", "1700000002"])
    monkeypatch.setattr(release, "commit_time", lambda: next(times))
    with pytest.raises(SystemExit, match=r"two builds of the same files differ: rlstudio-\S+\.whl, rlstudio-\S+\.tar\.gz"): release.build_twice(tmp_path)


def test_every_extra_has_a_trial() -> None:
    assert {"", *release.extras()} == release.TRIALS.keys() and all(release.TRIALS.values())


def test_a_trial_names_the_line_that_failed(tmp_path: Path) -> None:
    "Lines run in an empty folder, one after the other; a row takes the place of the one for the same Python and extra"
    assert release.tried(tmp_path, ["test -z \"$(ls)\"", "echo 1 > a", "test -s a"]) == ""
    assert release.tried(tmp_path, ["true", "echo WARNING: no >&2; echo oops >&2; exit 3", "touch after"]) == "echo WARNING: no >&2; echo oops >&2; exit 3: oops"
    for row in (dict(python="3.12", extra="", ok=False), dict(python="3.11", extra="fast", ok=True), dict(python="3.12", extra="", ok=True)): release.store(tmp_path / "tried.jsonl", row)
    assert [json.loads(line) for line in (tmp_path / "tried.jsonl").read_text().splitlines()] == [dict(python="3.11", extra="fast", ok=True), dict(python="3.12", extra="", ok=True)]


def test_what_was_tried_is_stored() -> None:
    "Each row is of an extra that there is, and a failure says why"
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/release.jsonl").read_text().splitlines()]
    assert {r["python"] for r in rows} and {r["extra"] for r in rows} <= release.TRIALS.keys() and all(r["ok"] or r["why"] for r in rows)
    assert len({(r["python"], r["extra"]) for r in rows}) == len(rows)


@pytest.fixture
def download(dist: Path, tmp_path: Path) -> Path:
    "What somebody has fetched"
    shutil.copytree(dist, home := tmp_path / "download")
    shutil.copyfile(ROOT / "tests/check_download.py", home / "check_download.py")
    (home / "SHA256SUMS").write_text(release.sums(home))
    return home


def test_a_whole_download(download: Path) -> None:
    "The script runs alone, with nothing but Python"
    done = run(sys.executable, "-I", download / "check_download.py", coverage=False)
    assert done.returncode == 0 and done.stdout == "3 files are what was released\n", said(done)


def test_a_damaged_download_is_named(download: Path) -> None:
    wheel, sdist = next(download.glob("*.whl")), next(download.glob("*.tar.gz"))
    sdist.write_bytes(sdist.read_bytes()[:-1] + b"x")
    (download / "rlstudio-9.9.9-py3-none-any.whl").write_bytes(b"")
    done = run(sys.executable, "-I", download / "check_download.py", coverage=False)
    assert done.returncode == 3 and [line.partition(",")[0] for line in done.stdout.splitlines()] == [f"{sdist.name}: damaged", "rlstudio-9.9.9-py3-none-any.whl: not of this release"], said(done)
    wheel.unlink()
    assert f"{wheel.name}: missing" in problems(download)
    (download / "SHA256SUMS").unlink()
    assert "there is no SHA256SUMS" in problems(download)[0]


def test_archives_that_do_not_fit_their_own_record(download: Path) -> None:
    "Whoever writes the sums anew is found by the wheel's record; a source distribution with a link, or with a path that leads out, is refused"
    wheel, sdist = next(download.glob("*.whl")), next(download.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel, "a") as z: z.writestr("rlstudio/extra.py", "x = 1")
    with tarfile.open(sdist, "w:gz") as tar:
        link = tarfile.TarInfo(f"{sdist.name.removesuffix('.tar.gz')}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        for info in (link, tarfile.TarInfo("../out")): tar.addfile(info, io.BytesIO())
    (download / "SHA256SUMS").write_text(release.sums(download))
    found = problems(download)
    assert any(f"{wheel.name}: rlstudio/extra.py is not in its record" in p for p in found) and sum("is no plain file below" in p for p in found) == 2, found
    (download / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  ../out\n")
    assert "not a line of sha256sum" in problems(download)[0]


def test_no_extra_is_there(bare: Path, outside: Path) -> None:
    "Else the tests below would prove nothing"
    for module in ("tensorboard", "pytest", "nbdev", "IPython", "Box2D", "mujoco", "ale_py"):
        assert run(bare / "python", "-c", f"import {module}", cwd=outside, coverage=False).returncode == 1, module
    where = run(bare / "python", "-c", "import rlstudio; print(rlstudio.__file__)", cwd=outside, coverage=False)
    assert Path(where.stdout.strip()).is_relative_to(bare.parent), said(where)


IMPORTS = """
import importlib, os, sys, traceback
import gymnasium, numpy, torch   # what each of them needs, once; a child for each module knows nothing of ours before
for module in sys.argv[1:]:
    sys.stdout.flush()
    if child := os.fork(): code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]); print(code, module, flush=True); continue
    try: importlib.import_module(module)
    except BaseException: traceback.print_exc(); os._exit(1)
    os._exit(0)
"""


def test_every_module_imports(bare: Path, outside: Path) -> None:
    "Each in a process of its own, without a warning; those of the engine that is asked for by name say which extra they need"
    modules = [c.module for c in chapters()]
    done = run(bare / "python", "-W", "error", "-c", IMPORTS, *modules, cwd=outside, coverage=False)
    codes = dict(line.split()[::-1] for line in done.stdout.splitlines())
    fast = [m for m in modules if m.startswith("rlstudio.fast.")]
    assert done.returncode == 0 and codes.keys() == {*modules}, said(done)
    assert [m for m in modules if codes[m] != "0"] == [m for m in fast if codes[m] != "0"] and done.stderr.count("pip install 'rlstudio[fast]'") >= sum(codes[m] != "0" for m in fast) > 0, said(done)


def command(bare: Path, outside: Path, *args: object) -> CompletedProcess[str]:
    done = run(bare / "rlstudio", *args, cwd=outside, coverage=False)
    assert done.returncode == 0, said(done)
    return done


def test_every_command(bare: Path, outside: Path) -> None:
    "A packaged config is found by the name that the README uses, and by the name that `rlstudio list configs` prints"
    small = ("train.total_steps=2048", "eval.episodes=2", "checkpoint.every=1024", "--json")
    told = json.loads(command(bare, outside, "run", "configs/ppo/cartpole.yaml", *small).stdout)
    path = Path(told["run"])
    assert (outside / path).resolve().is_relative_to((outside / "runs").resolve())
    assert json.loads(command(bare, outside, "run", "ppo/cartpole", *small).stdout)["weights_sha256"] == told["weights_sha256"]
    resumed = command(bare, outside, "resume", path, "--json")
    assert json.loads(resumed.stdout)["weights_sha256"] == told["weights_sha256"]
    assert json.loads(command(bare, outside, "evaluate", path, "--episodes", "2", "--json").stdout)["eval_episodes"] == 2
    assert "CartPole-v1" in command(bare, outside, "show", path).stdout
    listed = {what: command(bare, outside, "list", what).stdout for what in ("algos", "envs", "configs", "runs")}
    assert "ppo" in listed["algos"] and "CartPole-v1" in listed["envs"] and "ppo/cartpole" in listed["configs"] and path.name in listed["runs"]


def test_drift_without_extras(bare: Path, outside: Path) -> None:
    "The packaged hashes are found, and what is not installed is no failure"
    told = json.loads(command(bare, outside, "drift", "--case", "ppo/cartpole", "--case", "*/hopper", "--json").stdout)
    assert told["machines"] >= 1 and told["cases"]["ppo/cartpole"]["verdict"] in ("equal", "close")
    assert told["cases"]["td3/hopper"]["verdict"] == "skipped" and "mujoco" in told["cases"]["td3/hopper"]["why"]


@pytest.mark.parametrize("args, extra", [
    (["run", "configs/ppo/lunarlander.yaml"], "rlstudio[box2d]"),
    (["run", "configs/sac/halfcheetah.yaml"], "rlstudio[mujoco]"),
    (["run", "configs/ppo/cartpole.yaml", "env.id=ALE/Pong-v5"], "rlstudio[atari]"),
], ids=lambda a: str(a))
def test_a_missing_extra_is_named(bare: Path, outside: Path, args: list[str], extra: str) -> None:
    done = run(bare / "rlstudio", *args, cwd=outside, coverage=False)
    assert done.returncode == 2 and extra in done.stderr and "Traceback" not in done.stderr, said(done)
