"""The fault catalogue: what other test files do not show, for whole runs through the command line.

`pytest -m faults` runs every test that shows a number of the catalogue. docs/faults.md is the table of them, written by `python docs/make_faults.py`. With RLSTUDIO_FAULTS=all in the environment the longer versions run.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import Forked, Nursery, memory_folder
from support import ROOT, child_env, run, said

from rlstudio.runs.checkpoint import CRASH_POINTS, checkpoints
from rlstudio.runs.folder import RunFolder

ALL = os.environ.get("RLSTUDIO_FAULTS") == "all"   # the longer versions
STEPS = 4096
SHORT = ["ppo/cartpole", f"train.total_steps={STEPS}", "algo.num_steps=64", "algo.num_epochs=2", "env.num_envs=4", "checkpoint.every=512", "eval.episodes=2", "eval.num_envs=2", "train.seed=1"]

ODD = """
import sys, time
import gymnasium as gym
import numpy as np
from rlstudio.runs import background

background.HANG_SECONDS, background.PATIENCE = 1., 1.

class Odd(gym.Env):
    "Misbehaves late: in its n-th step, counted over all copies"
    observation_space, action_space, steps = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), 0
    def __init__(self, trouble='', after=400): self.trouble, self.after = trouble, after
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        if self.trouble == 'exits in reset' and Odd.steps > self.after: sys.exit(0)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        Odd.steps += 1
        self.age += 1
        if Odd.steps > self.after: self.act()
        return np.zeros(2, np.float32), 1., False, self.age == 20, {}
    def act(self):
        if self.trouble == 'exits': sys.exit(0)
        if self.trouble == 'exit code 3': sys.exit(3)
        if self.trouble == 'quits': raise SystemExit
        if self.trouble == 'raises': raise KeyError('lost')
        if self.trouble == 'sleeps': time.sleep(1000)
        while self.trouble == 'spins': pass
        while self.trouble == 'swallows':
            try: time.sleep(1000)
            except BaseException: pass
        if self.trouble == 'is slow': time.sleep(.005)
        if self.trouble == 'is slow once': self.trouble = time.sleep(3)
    def close(self):
        if self.trouble == 'exits in close' and Odd.steps > self.after: sys.exit(0)
        if self.trouble == 'hangs in close' and Odd.steps > self.after: time.sleep(1000)

gym.register('Odd-v0', Odd)
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with memory_folder() as path: yield path


@pytest.fixture(scope="module")
def nursery(folder: Path) -> Iterator[Nursery]:
    made = Nursery(folder, ODD)
    yield made
    made.close()


def wait_for(true: Callable[[], Any], child: Forked, seconds: float = 60) -> None:
    "Until it is true, or the child has ended"
    end = time.monotonic() + seconds
    while not true() and child.poll() is None and time.monotonic() < end: time.sleep(.005)


def records(path: Path) -> int: return (path / "metrics.jsonl").read_bytes().count(b"\n") if (path / "metrics.jsonl").exists() else 0


def saved(path: Path) -> list[int]: return sorted(int(p.name[5:]) for p in checkpoints(path / "checkpoints"))


def clean(child: Forked, code: int) -> str:
    "What it said; it ended with this code and without a traceback"
    assert child.wait() == code and "Traceback" not in child.said and "Exception ignored" not in child.said, child.said + child.trace
    return child.stdout + child.stderr


def begin(nursery: Nursery, path: Path, *more: object, **kwargs: Any) -> Forked:
    return nursery.start("run", *SHORT, *more, "--runs-dir", path.parent, "--name", path.name, **kwargs)


def end_of(nursery: Nursery, path: Path) -> str:
    "The weights at the end of a run that goes on, and no record of metrics missing or there twice"
    child = nursery.run("resume", path, "--json")
    clean(child, 0)
    steps = [r["step"] for r in RunFolder(path).history if "step" in r]
    assert steps == list(range(256, STEPS + 1, 256)), steps
    return json.loads(child.stdout)["weights_sha256"]


@pytest.fixture(scope="module")
def reference(nursery: Nursery, folder: Path) -> str:
    "The weights of a run that nobody disturbed"
    child = begin(nursery, folder / "reference", "--json")
    clean(child, 0)
    return json.loads(child.stdout)["weights_sha256"]


# Kills

@pytest.mark.faults(1, 4)
@pytest.mark.parametrize("seed", range(20 if ALL else 3))
def test_killed_also_while_it_resumes(nursery: Nursery, folder: Path, reference: str, seed: int) -> None:
    "Three kills: one while it trains, one at a random moment of a resume, one while the next resume trains"
    path, dice = folder / f"kills-{seed}", random.Random(seed)
    child = begin(nursery, path)
    wait_for(lambda: records(path) >= dice.randint(1, 6), child)
    child.kill()
    child = nursery.start("resume", path)
    time.sleep(dice.uniform(0, .4))
    child.kill()
    child = nursery.start("resume", path)
    more = records(path) + dice.randint(1, 3)
    wait_for(lambda: records(path) >= more, child)
    child.kill()
    assert RunFolder(path).status in ("killed", "completed") and end_of(nursery, path) == reference


ARM = """
import os
from rlstudio.train.trainer import Trainer
plain = Trainer.step
def step(self):
    out = plain(self)
    if self.env_steps >= {step}: os.environ['RLSTUDIO_CRASH_AT'] = {point!r}
    return out
Trainer.step = step
"""


@pytest.mark.faults(2, 5, 6)
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_each_point_of_a_save(nursery: Nursery, folder: Path, reference: str, point: str) -> None:
    "Also between publishing and pruning; what is left of the torn save is ignored, and cleaned up"
    path = folder / point.replace(" ", "-")
    child = begin(nursery, path, code=ARM.format(step=2300, point=point))
    assert child.wait() == -signal.SIGKILL, child.said
    left = list((path / "checkpoints").glob(".*"))
    assert bool(left) == (point not in ("folder renamed", "parent synced")), left
    assert saved(path)[-1] == (2560 if point in ("folder renamed", "parent synced", "old renamed") else 2048)
    assert end_of(nursery, path) == reference and not list((path / "checkpoints").glob(".*"))


BEHIND = """
import os, signal
from rlstudio.runs import run
run.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults(1)
@pytest.mark.parametrize("steps", [STEPS - 256, STEPS])   # with a last line of the ledger that was due, and with one that was not
def test_killed_behind_the_training(nursery: Nursery, folder: Path, steps: int) -> None:
    "Trained to the end, and killed before its evaluation: the process that finishes it makes no update, and the run stays exact"
    path = folder / f"behind-{steps}"
    assert begin(nursery, path, f"train.total_steps={steps}", code=BEHIND).wait() == -signal.SIGKILL
    def updates() -> list[str]: return [line for line in (path / "ledger.jsonl").read_text().splitlines() if "weights" in line]
    before = updates()
    child = nursery.run("resume", path, "--json")
    clean(child, 0)
    assert json.loads(child.stdout)["level"] == "L3" and "second time" not in child.stderr, child.said
    assert updates() == before and ('"end"' in before[-1]) == (steps == STEPS)


@pytest.mark.faults(7)
def test_a_lock_of_the_dead(nursery: Nursery, folder: Path, reference: str) -> None:
    "The lock is the process's, not the file's: one that a killed process left is taken over; a living one is not"
    path = folder / "lock"
    child = begin(nursery, path)
    wait_for(lambda: records(path) >= 2, child)
    child.send_signal(signal.SIGSTOP)   # it lives, and waits
    second = nursery.run("resume", path)
    assert "another process is working on this run" in clean(second, 2)
    child.kill()
    assert (path / "run.lock").exists() and RunFolder(path).status == "killed" and end_of(nursery, path) == reference


# Signals

@pytest.mark.faults(3)
@pytest.mark.parametrize("code", ["", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"], ids=["plain", "nohup"])
def test_a_hang_up_saves_and_goes_on(nursery: Nursery, folder: Path, reference: str, code: str) -> None:
    "SIGHUP writes a checkpoint at the next end of an iteration, and the run comes to the same end"
    path = folder / f"hup-{bool(code)}"
    child = begin(nursery, path, "checkpoint.every=0", code=code)
    wait_for(lambda: records(path) >= 3, child)
    child.send_signal(signal.SIGHUP)
    text = clean(child, 0)
    found = re.search(r"SIGHUP: a checkpoint of step ([\d,]+) is written, and the training goes on", text)
    assert found and int(found[1].replace(",", "")) in set(saved(path)) - {0, STEPS}, (text, saved(path))
    assert RunFolder(path).read("result.json")["weights_sha256"] == reference and RunFolder(path).status == "completed"


@pytest.mark.faults(3)
def test_a_kill_after_a_hang_up_loses_little(nursery: Nursery, folder: Path, reference: str) -> None:
    "As a machine that goes down: SIGHUP, then SIGKILL. The run goes on from the checkpoint that the hang-up left"
    path = folder / "hup-kill"
    child = begin(nursery, path, "checkpoint.every=0")
    wait_for(lambda: records(path) >= 3, child)
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: len(saved(path)) > 1, child)
    child.kill()
    assert child.returncode == -signal.SIGKILL and saved(path)[-1] > 0 and end_of(nursery, path) == reference


@pytest.mark.faults(3)
@pytest.mark.parametrize("presses, pause", [(2, .0), (2, .05), (3, .0), (3, .02), (3, .1), (5, .03)] + [(3, k / 50) for k in range(3, 15 if ALL else 0)])
def test_ctrl_c_again_and_again(nursery: Nursery, folder: Path, reference: str, presses: int, pause: float) -> None:
    "No traceback, exit code 130, a status that is true, and the same end"
    path = folder / f"impatient-{presses}-{pause}"
    child = begin(nursery, path)
    wait_for(lambda: records(path) >= 2, child)
    for _ in range(presses):
        child.send_signal(signal.SIGINT)
        time.sleep(pause)
    text = clean(child, 130)
    assert RunFolder(path).status in ("interrupted", "killed"), text
    row = next(r for r in json.loads(nursery.run("list", "runs", "--runs-dir", folder, "--json").stdout)["runs"] if Path(r["run"]).name == path.name)
    assert row["status"] == RunFolder(path).status and end_of(nursery, path) == reference


@pytest.mark.faults(3)
def test_what_goes_wrong_while_ctrl_c_unwinds(nursery: Nursery, folder: Path, reference: str) -> None:
    "A file that is closed a second time on the way out: the run was interrupted, and nothing else is its end"
    code = """
import os, signal
from rlstudio.train.ledger import Ledger
def torn(self, trainer): os.close(-1)
def press(self, trainer):
    if trainer.iteration == 3:
        for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
Ledger.on_error, Ledger.on_collect_end = torn, press
"""
    path = folder / "torn"
    text = clean(begin(nursery, path, code=code), 130)
    assert "OSError on the way out: [Errno 9]" in text and "ended at once at step" in text, text
    assert RunFolder(path).status == "interrupted" and end_of(nursery, path) == reference


@pytest.mark.faults(3)
def test_signals_in_a_script(folder: Path) -> None:
    "Without the command line, too: the first SIGTERM asks, the second one interrupts, and `train` comes back with a summary"
    script = """
import os, signal, sys
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback
class Press(Callback):
    def on_collect_end(self, trainer):
        if trainer.iteration == 1: os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(2 * (trainer.iteration == 3)): os.kill(os.getpid(), signal.SIGTERM)
run = Run.from_config('ppo/cartpole', total_steps=20480, runs_dir=sys.argv[1], name='script')
print(run.train([Press()])['status'], run.manifest['stopped_by'], signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
    done = run(sys.executable, "-c", script, folder, coverage=False)
    assert done.stdout == "interrupted SIGTERM True\n" and "SIGHUP: a checkpoint of step 2,048 is written" in done.stderr, said(done)
    assert saved(folder / "script") == [0, 2048]   # the iteration that was interrupted is lost
    assert re.search(r"ended at once at step 4,096; resume goes on from the checkpoint of step 2,048", done.stderr), said(done)


# An environment that fails, exits, or does not come back

def odd(nursery: Nursery, folder: Path, trouble: str, *more: str, after: int = 1500) -> tuple[Forked, Path]:
    "A run in a world that misbehaves"
    config, path = folder / "odd.yaml", folder / f"{trouble.replace(' ', '-')}-{nursery.count}"
    config.write_text("env: {id: Odd-v0, num_envs: 2, kwargs: {trouble: '', after: 400}}\nalgo: {name: ppo, num_steps: 32}\nnet: {hidden: [16]}\n"
                      "train: {total_steps: 2048}\neval: {episodes: 2, num_envs: 2}\ncheckpoint: {every: 64}\n")
    return nursery.start("run", config, f"env.kwargs.trouble={trouble}", f"env.kwargs.after={after}", "--runs-dir", folder, "--name", path.name, *more), path


@pytest.mark.faults(24, 26)
@pytest.mark.parametrize("trouble", ["exits", "exit code 3", "quits", "exits in reset", "raises"])
def test_an_env_that_exits(nursery: Nursery, folder: Path, trouble: str) -> None:
    "Exit code 1, and a message with env, copy, step and action; what was learned is kept"
    child, path = odd(nursery, folder, trouble, "--json")
    clean(child, 1)
    what = "(reset|the reset after an episode)" if "reset" in trouble else r"step \d+ with action [01]"
    why = "KeyError" if trouble == "raises" else "SystemExit"
    assert re.search(rf"EnvError: Odd-v0: sub-env [01] failed in {what}.*{why}", child.stderr), child.said
    assert json.loads(child.stdout)["status"] == RunFolder(path).status == "failed" and saved(path)[-1] > 0


@pytest.mark.faults(26)
def test_an_env_that_exits_when_it_is_closed(nursery: Nursery, folder: Path) -> None:
    "What was learned is not lost over it"
    child, path = odd(nursery, folder, "exits in close")
    assert "SystemExit" in clean(child, 0) and RunFolder(path).status == "completed"


HANGS = r"Odd-v0: sub-env [01] in step \d+ with action [01] has not come back for [12] s; it may hang: Ctrl-C, or kill \d+, ends the run"


@pytest.mark.faults(25)
@pytest.mark.parametrize("trouble, number", [("sleeps", signal.SIGTERM), ("sleeps", signal.SIGINT), ("spins", signal.SIGTERM), ("swallows", signal.SIGTERM)])
def test_an_env_that_hangs(nursery: Nursery, folder: Path, trouble: str, number: signal.Signals) -> None:
    "A line says which and for how long, and one signal ends it: status, exit code and checkpoints are right"
    child, path = odd(nursery, folder, trouble)
    wait_for(lambda: "not come back" in child.stderr, child)
    assert re.search(HANGS, child.stderr), child.said
    child.send_signal(number)
    text = clean(child, 128 + number)
    assert ("the process ends" if trouble == "swallows" else "is interrupted") + f" ({number.name})" in text.replace("does not come back: ", ""), text
    assert RunFolder(path).status == "interrupted" and RunFolder(path).manifest["stopped_by"] == number.name and saved(path)[-1] > 0, text


@pytest.mark.faults(25)
def test_an_env_that_hangs_where_it_is_closed(nursery: Nursery, folder: Path) -> None:
    "One signal ends it, whichever copy hangs: that of the film, which is closed first, and those of the training behind it"
    child, path = odd(nursery, folder, "hangs in close")
    wait_for(lambda: "in close has not come back" in child.stderr, child)
    child.send_signal(signal.SIGTERM)
    clean(child, 143)
    assert RunFolder(path).status == "interrupted" and saved(path)[-1] == 2048


@pytest.mark.faults(27)
@pytest.mark.parametrize("trouble, warned", [("is slow", False), ("is slow once", True)])
def test_a_slow_env_is_no_hanging_one(nursery: Nursery, folder: Path, trouble: str, warned: bool) -> None:
    "Nothing is interrupted while nobody asks for it; only what lasts is named"
    child, path = odd(nursery, folder, trouble, after=1900)
    text = clean(child, 0)
    assert ("has not come back" in text) == warned and "interrupted" not in text and RunFolder(path).status == "completed"


# Disks

@contextmanager
def mounted(options: str) -> Iterator[Path]:
    "A file system of our own, where we may mount one"
    with tempfile.TemporaryDirectory() as at:
        try: refused = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", at], capture_output=True, text=True)
        except FileNotFoundError: pytest.skip("no `mount` here, so no file system of a known size")
        if refused.returncode: pytest.skip(f"no file system may be mounted here: {refused.stderr.strip()}")
        try: yield Path(at)
        finally: subprocess.run(["umount", "--lazy", at], check=True)


@pytest.mark.faults(8, 11)
def test_a_full_file_system(nursery: Nursery, reference: str) -> None:
    "One MiB, and a run that needs more: a clear error, and the same end once there is space"
    with mounted("size=1m") as disk:
        (disk / "ballast").write_bytes(b"x" * 700_000)
        path = disk / "full"
        child = begin(nursery, path, "checkpoint.keep=20")
        text = clean(child, 1)
        assert "No space left on device" in text and "was not saved" in text, text
        kept = saved(path)
        assert kept and kept[-1] < STEPS and RunFolder(path).status in ("failed", "killed")
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert end_of(nursery, path) == reference


FULL = """
import errno, os
from rlstudio.train.trainer import Trainer
from rlstudio.runs import folder
plain, write = Trainer.step, folder.RunFolder.write
def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
def step(self):
    if self.env_steps >= 1024:
        folder.RunFolder.write = full
        raise KeyError('the first error')
    return plain(self)
Trainer.step = step
"""


@pytest.mark.faults(8)
def test_a_full_disk_while_the_failure_is_noted(nursery: Nursery, folder: Path, reference: str) -> None:
    "The first error is the one that is shown; that it could not be noted is a warning with the fix; the run can go on"
    path = folder / "unnoted"
    child = begin(nursery, path, code=FULL.replace("KeyError('the first error')", "FloatingPointError('the first error')"))
    text = clean(child, 1)
    assert "the first error" in text.splitlines()[-1] and "failure could not be noted in manifest.json" in text and "No space left" in text, text
    assert RunFolder(path).status == "killed" and end_of(nursery, path) == reference


@pytest.mark.faults(10)
@pytest.mark.parametrize("limit, code", [(2_000, 2), (30_000, 1)])
def test_files_may_not_grow(nursery: Nursery, folder: Path, reference: str, limit: int, code: int) -> None:
    "RLIMIT_FSIZE: a clear error, before the training or in it; no torn checkpoint, and the same end without the limit"
    path = folder / f"limit-{limit}"
    child = begin(nursery, path, code=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))")
    text = clean(child, code)
    assert "File too large" in text, text
    if limit > 10_000: assert end_of(nursery, path) == reference


@pytest.mark.faults(12)
@pytest.mark.parametrize("when", ["before", "later"])
def test_a_read_only_file_system(nursery: Nursery, reference: str, when: str) -> None:
    "Before the training: said before anything is trained. On its way: a clear error, and the same end once it can be written"
    with mounted("size=64m") as disk:
        path = disk / "run"
        if when == "later":
            child = begin(nursery, path)
            wait_for(lambda: records(path) >= 2, child)
            child.kill()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        child = begin(nursery, path) if when == "before" else nursery.start("resume", path)
        text = clean(child, 2 if when == "before" else child.wait())
        assert child.returncode in (1, 2) and "ead-only file system" in text and "env steps, return" not in text, text
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if when == "later": assert end_of(nursery, path) == reference


# Damage

@pytest.mark.faults(13, 17)
@pytest.mark.parametrize("bad", [2, 9])
def test_the_newest_are_damaged(nursery: Nursery, folder: Path, reference: str, bad: int) -> None:
    "Two of three: the third is used, and that is said. All: an error, and nothing begins from scratch"
    path = folder / f"damaged-{bad}"
    child = begin(nursery, path)
    wait_for(lambda: len(saved(path)) >= 3 and saved(path)[-1] >= 1536, child)
    child.kill()
    for one in checkpoints(path / "checkpoints")[:bad]:
        data = bytearray((one / "state.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (one / "state.safetensors").write_bytes(data)
    before = saved(path)
    if bad == 2:
        assert end_of(nursery, path) == reference
        return
    text = clean(nursery.run("resume", path), 2)
    assert "no usable checkpoint" in text and saved(path) == before, text


@pytest.mark.faults(18)
def test_a_clock_that_runs_backwards(nursery: Nursery, folder: Path, reference: str) -> None:
    "Checkpoints are ordered by step; neither their dates nor the clock of a resume matter"
    path = folder / "clock"
    child = begin(nursery, path)
    wait_for(lambda: len(saved(path)) >= 3, child)
    child.kill()
    for age, one in enumerate(checkpoints(path / "checkpoints")):   # newest first: it gets the oldest date
        for file in (*one.iterdir(), one): os.utime(file, (10**9 * (1 + .1 * age),) * 2)
    back = ("import time\nreal, start = time.time, time.time()\ntime.time = lambda: start - 10**8 - 60 * (real() - start)\n"
            "import rlstudio.runs.run as run, rlstudio.runs.folder as folder\nrun.now = folder.now = lambda: '1999-12-31T23:59:59+00:00'\n")
    child = nursery.run("resume", path, "--json", code=back)
    clean(child, 0)
    assert json.loads(child.stdout)["weights_sha256"] == reference and saved(path)[-1] == STEPS and RunFolder(path).manifest["ended"].startswith("1999")


# Plugins

def distribution(site: Path, name: str, code: str, points: str) -> None:
    "What pip leaves of a distribution"
    (info := site / f"{name}-1.0.dist-info").mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    (site / f"{name}.py").write_text(f"from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n{code}\n")


PLUGINS = {  # name → its code, its entry points, what is asked for, what is said
    "raising": ("1 / 0", "[rlstudio.envs]\nRaising-v0 = raising:Env\n", "env.id=Raising-v0", "plugin raising 1.0 failed to load its environment 'Raising-v0': ZeroDivisionError"),
    "leaving": ("raise SystemExit", "[rlstudio.envs]\nLeaving-v0 = leaving:Env\n", "env.id=Leaving-v0", "plugin leaving 1.0 failed to load its environment 'Leaving-v0': SystemExit"),
    "shadowing": ("class PPO: pass", "[rlstudio.algos]\nppo = shadowing:PPO\n", "algo.name=ppo", "plugin 'shadowing' claims the algorithm 'ppo', but that name is taken"),
    "twin_a": ("class Env: pass", "[rlstudio.envs]\nTwin-v0 = twin_a:Env\n", "env.id=Twin-v0", "'Twin-v0' is claimed by the plugins twin-a and twin-b"),
}


@pytest.mark.faults(34)
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_misbehaves(tmp_path: Path, name: str) -> None:
    "Named and left out; not allowed, it is not even imported; the built-in things work beside it"
    code, points, asked, answer = PLUGINS[name]
    distribution(tmp_path, name, code, points)
    if name == "twin_a": distribution(tmp_path, "twin_b", code, points.replace("twin_a", "twin_b"))
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")

    def shell(*args: object) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(["rlstudio", *map(str, args)], cwd=tmp_path, env=child_env(coverage=False, PYTHONPATH=str(tmp_path)), text=True, capture_output=True, timeout=60)
        assert "Traceback" not in done.stdout + done.stderr, said(done)
        return done
    listed = shell("list", "envs" if "envs" in points else "algos")
    assert listed.returncode == 0 and name.replace("_", "-") in listed.stdout or name == "shadowing", said(listed)
    if name != "shadowing": assert "not allowed" in shell("check-env", asked[7:]).stderr
    assert not list(tmp_path.glob("*.imported")), "a plugin was imported before it was allowed"
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\nplugins = {name.replace('_', '-')}{' twin-b' if name == 'twin_a' else ''}\n")
    done = shell("run", *SHORT, asked)
    assert done.returncode == 2 and answer in done.stderr, said(done)


# A command of its own process, as a check of the forks

@pytest.mark.faults(1, 3)
def test_forks_are_like_commands(folder: Path, reference: str) -> None:
    "The commands above are forks of a process that has imported the library. Here is a new one: it comes to the same end"
    done = run("rlstudio", "run", *SHORT, "--runs-dir", folder, "--name", "new", "--json", coverage=False)
    assert done.returncode == 0 and json.loads(done.stdout)["weights_sha256"] == reference, said(done)
    assert (ROOT / "rlstudio").is_dir() and shutil.which("rlstudio")
