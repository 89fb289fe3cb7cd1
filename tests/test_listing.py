"Runs in a folder: listed, filtered, sorted, shown and deleted, from outside."
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support import ROOT, child_env, run, said, snapshot

from rlstudio.core.options import config_from_dict
from rlstudio.runs.config import to_yaml

SHORT = ("train.total_steps=2048", "eval.episodes=2")


def trained(shelf: Path, name: str, *more: str) -> Path:
    done = run("rlstudio", "run", "ppo/cartpole", *SHORT, *more, "--runs-dir", shelf, "--name", name, "--quiet")
    assert done.returncode == 0, said(done)
    return shelf / name


def made(shelf: Path, name: str, algo: str = "ppo", env: str = "CartPole-v1", mean: float | None = None, status: str = "completed", **keys: object) -> Path:
    "A run's small files, without a training"
    (folder := shelf / name).mkdir(parents=True)
    config = config_from_dict(dict(env=dict(id=env), algo=dict(name=algo, **keys), train=dict(seed=len(name))))
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "manifest.json").write_text(json.dumps(dict(schema_version=2, status=status, created=f"2026-01-01T00:00:{len(name):02}+00:00", env_steps=100 * len(name))))
    (folder / "run.lock").touch()
    if mean is not None: (folder / "result.json").write_text(json.dumps(dict(
        run=name, seed=1, status=status, total_steps=100, train_seconds=1., eval_return_mean=mean, eval_return_std=0., eval_episodes=2, goal=475., solved=mean >= 475)))
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shelf = tmp_path_factory.mktemp("shelf")
    (shelf / "settings.ini").write_text("[DEFAULT]\nruns_dir = runs\n")
    made(shelf / "runs", "a", mean=500.)
    made(shelf / "runs", "bb", "dqn", mean=120., buffer_size=5000)
    made(shelf / "runs", "ccc", "sac", "Pendulum-v1", mean=-150.)
    made(shelf / "runs", "dddd", status="running", gamma=.9)
    made(shelf / "runs", "eeeee", status="interrupted")
    (shelf / "runs" / "broken").mkdir()
    (shelf / "runs" / "broken" / "config.yaml").write_text("algo: [")
    return shelf


def listed(shelf: Path, *args: str) -> list[str]:
    done = run("rlstudio", "list", "runs", *args, "--json", cwd=shelf)
    assert done.returncode == 0, said(done)
    return [Path(r["run"]).name for r in json.loads(done.stdout)["runs"] if r["status"] != "damaged" or "damaged" in args]


@pytest.mark.parametrize("args, names", [
    ([], "eeeee dddd ccc bb a"), (["--algo", "ppo"], "eeeee dddd a"), (["--env", "pend*"], "ccc"), (["--status", "killed"], "dddd"), (["--status", "damaged"], "broken"),
    (["--where", "eval>100"], "bb a"), (["--where", "eval>100", "--where", "solved=false"], "bb"), (["--where", "algo.gamma<0.99"], "dddd"), (["--where", "algo.buffer_size=5000"], "bb"),
    (["--where", "seed!=1"], "eeeee dddd ccc bb"), (["--sort", "eval"], "ccc bb a eeeee dddd"), (["--sort", "-eval", "--limit", "2"], "a bb"), (["--sort", "name"], "a bb ccc dddd eeeee"),
    (["--algo", "td3"], ""),
], ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_filters_and_sorting(shelf: Path, args: list[str], names: str) -> None:
    assert listed(shelf, *args) == names.split()


def test_for_people(shelf: Path) -> None:
    "Names where they are enough, short headings, and columns that fit into the terminal"
    done = run("rlstudio", "list", "runs", "--env", "cart*", "--sort", "eval", cwd=shelf)
    assert done.stdout.splitlines()[:2] == ["run    algo  env          seed  status       steps  eval", "bb     dqn   CartPole-v1  2     completed    200    120.0"], said(done)
    elsewhere = run("rlstudio", "list", "runs", "--runs-dir", shelf / "runs", cwd=shelf.parent)
    assert str(shelf / "runs" / "bb") in elsewhere.stdout, said(elsewhere)


def test_a_killed_run_is_dead(shelf: Path) -> None:
    "Nobody holds its lock, so it does not run, whatever its manifest says"
    done = run("rlstudio", "list", "runs", cwd=shelf)
    row = next(line for line in done.stdout.splitlines() if "dddd" in line)
    assert "killed" in row and "running" not in done.stdout, said(done)
    assert "killed" in run("rlstudio", "show", "dddd", cwd=shelf).stdout


@pytest.mark.parametrize("args, hint", [
    (["list", "runs", "--status", "complete"], "did you mean 'completed'"), (["list", "runs", "--where", "gamma"], "a key, a sign"), (["list", "runs", "--where", "eval>"], "expected a number after >"), (["list", "runs", "--where", "gama=1"], "no run has 'gama'"),
    (["list", "runs", "--sort", "color"], "no run has that"), (["list", "envs", "--algo", "ppo"], "is for runs"), (["show", "eeee"], "did you mean 'eeeee'"), (["delete", "zzz"], "not a run"),
], ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_mistakes(shelf: Path, args: list[str], hint: str) -> None:
    done = run("rlstudio", *args, cwd=shelf)
    assert done.returncode == 2 and "Traceback" not in done.stderr and hint in done.stderr, said(done)


def test_a_run_of_somebody_else_is_printable(shelf: Path) -> None:
    evil = made(shelf / "other", "evil", status="\x1b[2Jgone")
    for args in (("show", evil), ("list", "runs", "--runs-dir", shelf / "other")):
        done = run("rlstudio", *args, cwd=shelf)
        assert done.returncode == 0 and "gone" in done.stdout and "\x1b" not in done.stdout + done.stderr, said(done)


def test_thousands_are_listed_without_torch(tmp_path: Path) -> None:
    "Each run costs a few small reads; what would make it slow is torch, an algorithm, or a whole YAML reader for each"
    one = made(tmp_path / "runs", "one", mean=1.)
    for i in range(2000):
        (tmp_path / "runs" / f"r{i}").mkdir()
        for f in one.iterdir(): os.link(f, tmp_path / "runs" / f"r{i}" / f.name)
    done = run("rlstudio", "list", "runs", "--where", "algo.gamma=0.99", "--limit", "3", cwd=tmp_path, coverage=False, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "and 1,998 more" in done.stdout, said(done)
    modules = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.M))
    assert "rlstudio.studio.catalog" in modules and not modules & {"torch", "matplotlib", "gymnasium", "rlstudio.algos.ppo"}


# Show

def test_show_prints_what_was_decided(shelf: Path) -> None:
    done = run("rlstudio", "show", "bb", cwd=shelf)
    assert "algo.buffer_size=5000  (default 100000)" in done.stdout and "tau" not in done.stdout, said(done)
    assert "--config" in done.stdout
    whole = run("rlstudio", "show", "bb", "--config", cwd=shelf)
    assert "tau: " in whole.stdout and "rotate_mb" in whole.stdout, said(whole)


def test_show_of_an_unknown_algorithm(shelf: Path) -> None:
    "Its defaults are not known, so all of its section is shown; its code is not looked for"
    folder = made(shelf / "other", "own")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("name: ppo", "name: mine"))
    done = run("rlstudio", "show", folder)
    assert done.returncode == 0 and "algo.gamma=0.99" in done.stdout and "net.hidden" not in done.stdout, said(done)


def test_show_of_a_damaged_result(shelf: Path) -> None:
    folder = made(shelf / "other", "half", mean=1.)
    (folder / "result.json").write_text('{"eval_return_mean": 1}')
    done = run("rlstudio", "show", folder)
    assert done.returncode == 2 and "result.json: damaged" in done.stderr and "Traceback" not in done.stderr, said(done)


def test_show_tells_the_legs(shelf: Path) -> None:
    folder = made(shelf / "other", "legs")
    manifest = json.loads((folder / "manifest.json").read_text())
    legs = [dict(step=0, changed={}), dict(step=4096, changed={"train.total_steps": [4096, 8192], "x": 3}), "nonsense"]
    (folder / "manifest.json").write_text(json.dumps(manifest | dict(legs=legs)))
    done = run("rlstudio", "show", folder)
    assert done.returncode == 0 and "from step 4,096: train.total_steps 4096 → 8192" in done.stdout, said(done)


# Delete

def test_delete_asks(tmp_path: Path) -> None:
    "In a terminal it shows what goes, and waits for a word"
    folder = trained(tmp_path, "mine")
    assert answered(tmp_path, "n", folder) == 1 and folder.exists()
    assert answered(tmp_path, "y", folder) == 0 and not folder.exists() and not list(tmp_path.iterdir())


def answered(cwd: Path, answer: str, folder: Path) -> int:
    "The exit code of a delete that is answered in a terminal"
    master, slave = pty.openpty()
    child = subprocess.Popen(["rlstudio", "delete", str(folder)], cwd=cwd, env=child_env(coverage=False), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    text = ""
    while "[y/N]" not in text: text += os.read(master, 4096).decode()
    os.write(master, f"{answer}\n".encode())
    try:
        while data := os.read(master, 4096): text += data.decode()
    except OSError: pass
    os.close(master)
    assert "2048" in text and "completed" in text, text
    return child.wait(60)


def test_delete_in_a_script(tmp_path: Path) -> None:
    "Nobody can be asked: refused with what to type, and nothing goes"
    one, two = (made(tmp_path, n) for n in ("one", "two"))
    done = run("rlstudio", "delete", one, two, cwd=tmp_path)
    assert done.returncode == 2 and f"rlstudio delete {one} {two} --yes" in done.stderr and one.exists(), said(done)
    done = run("rlstudio", "delete", one, two, one, "--yes", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout) == {"deleted": [str(one), str(two)]}, said(done)
    assert not list(tmp_path.iterdir())


def test_delete_stays_inside(tmp_path: Path) -> None:
    "Links in a run are removed, and not what they lead to; what is no run, or only a link to one, is refused; one refusal keeps all"
    (home := tmp_path / "home").mkdir()
    (home / "thesis.txt").write_text("years of work")
    before = snapshot(home)
    run_ = made(tmp_path / "runs", "run")
    (run_ / "home").symlink_to(home)
    (run_ / "videos").mkdir()
    (run_ / "videos" / "thesis.webp").symlink_to(home / "thesis.txt")
    (run_ / "run.lock").unlink()
    (run_ / "run.lock").symlink_to(home / "thesis.txt")
    (alias := tmp_path / "runs" / "alias").symlink_to(run_)
    (project := tmp_path / "project").mkdir()
    (project / "config.yaml").write_text("name: my web site\n")
    (project / "index.html").touch()
    other = made(tmp_path / "runs", "other")
    for wrong, why in ((alias, "it is a link"), (project, "remove it by hand"), (home, "not a run"), (tmp_path / "runs", "not a run"), (tmp_path / "gone", "not a run")):
        done = run("rlstudio", "delete", "--yes", other, wrong, cwd=tmp_path)
        assert done.returncode == 2 and why in done.stderr and other.exists() and wrong.exists() == (wrong.name != "gone"), said(done)
    done = run("rlstudio", "delete", "--yes", ".", cwd=other)
    assert done.returncode == 2 and "you stand in it" in done.stderr and other.exists(), said(done)
    done = run("rlstudio", "delete", "--yes", run_, cwd=tmp_path)
    assert done.returncode == 0 and not run_.exists() and snapshot(home) == before, said(done)


def test_delete_refuses_a_run_at_work(tmp_path: Path) -> None:
    child = subprocess.Popen(["rlstudio", "run", "ppo/cartpole", "train.total_steps=100000000", "--runs-dir", str(tmp_path), "--name", "busy", "--quiet"],
                             env=child_env(coverage=False), stdin=subprocess.DEVNULL)
    try:
        while child.poll() is None and not list(tmp_path.glob("busy/checkpoints/step_*")): pass
        done = run("rlstudio", "delete", "--yes", tmp_path / "busy")
        assert done.returncode == 2 and "a process is working on it" in done.stderr and (tmp_path / "busy" / "config.yaml").exists(), said(done)
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)
    assert run("rlstudio", "delete", "--yes", tmp_path / "busy").returncode == 0 and not (tmp_path / "busy").exists()


def test_a_damaged_run_can_go(tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(ROOT / "tests/fixtures/v1/ppo-completed", old)
    broken = made(tmp_path, "broken")
    (broken / "manifest.json").write_text('{"status": ')
    done = run("rlstudio", "delete", "--yes", old, broken)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), said(done)
