"The wheel in an environment that holds it and the core dependencies alone, used outside the checkout."
import json
import sys
import venv
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from closure import closure
from support import chapters, copy_tree, run, said


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A wheel and a source distribution, built from a copy of the project"
    copy = copy_tree(tmp_path_factory.mktemp("source"))
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", "dist", cwd=copy, coverage=False)
    assert done.returncode == 0, said(done)
    return copy / "dist"


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
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {"rlstudio/py.typed", "rlstudio/configs/ppo/cartpole.yaml", "rlstudio/evidence/golden.json", *(f"{c.module.replace('.', '/')}.py" for c in chapters())}
    assert not wanted - set(names)
    assert any(n.endswith("dist-info/licenses/NOTICE.md") for n in names)
    assert not [n for n in names if n.startswith(("tests", "nbs", "benchmarks"))]


def test_sdist_holds_the_book(dist: Path) -> None:
    import tarfile
    with tarfile.open(next(dist.glob("*.tar.gz"))) as tar: names = {n.partition("/")[2] for n in tar.getnames()}
    assert names >= {"NOTICE.md", "constraints.txt", "settings.ini", "configs/ppo/cartpole.yaml", "evidence/golden.json", "nbs/30_data.returns.ipynb", "tests/test_wheel.py",
                     ".ci/run", "pyproject.toml", "conftest.py"}


def test_no_extra_is_there(bare: Path, outside: Path) -> None:
    "Else the tests below would prove nothing"
    for module in ("tensorboard", "pytest", "nbdev", "IPython", "Box2D", "mujoco", "ale_py"):
        assert run(bare / "python", "-c", f"import {module}", cwd=outside, coverage=False).returncode == 1, module
    where = run(bare / "python", "-c", "import rlstudio; print(rlstudio.__file__)", cwd=outside, coverage=False)
    assert Path(where.stdout.strip()).is_relative_to(bare.parent), said(where)


@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.module)
def test_every_module_imports(bare: Path, outside: Path, chapter) -> None:
    done = run(bare / "python", "-W", "error", "-c", f"import {chapter.module}", cwd=outside, coverage=False)
    if chapter.module.startswith("rlstudio.fast."): assert done.returncode == 1 and "pip install 'rlstudio[fast]'" in done.stderr, said(done)   # its engine is asked for by name
    else: assert done.returncode == 0, said(done)


def command(bare: Path, outside: Path, *args: object) -> CompletedProcess[str]:
    done = run(bare / "rlstudio", *args, cwd=outside, coverage=False)
    assert done.returncode == 0, said(done)
    return done


@pytest.mark.parametrize("config", ["configs/ppo/cartpole.yaml", "ppo/cartpole"])
def test_every_command(bare: Path, outside: Path, config: str) -> None:
    "A packaged config is found by the name that the README uses, and by the name that `rlstudio list configs` prints"
    said_ = command(bare, outside, "run", config, "train.total_steps=2048", "eval.episodes=2", "checkpoint.every=1024", "--json")
    path = Path(json.loads(said_.stdout)["run"])
    assert (outside / path).resolve().is_relative_to((outside / "runs").resolve())
    resumed = command(bare, outside, "resume", path, "--json")
    assert json.loads(resumed.stdout)["weights_sha256"] == json.loads(said_.stdout)["weights_sha256"]
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
