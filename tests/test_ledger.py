"The ledger of a run, and its audit: the smallest change is found, a kill at any byte leaves it whole, and a run is executed again in a new process."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import FaultyOS, half
from support import ROOT, child_env, run, said

from rlstudio.core.options import config_from_dict, to_dict
from rlstudio.evidence.audit import AuditError, audit, compare_runs, pieces_of
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.config import Settings, load_config
from rlstudio.runs.run import Run
from rlstudio.train import metrics
from rlstudio.train.ledger import (
    GLANCE,
    LEDGER,
    RATIO,
    Learned,
    Ledger,
    LedgerError,
    check_ledger,
    first_difference,
    kept,
    link,
    open_ledger,
    read_ledger,
)
from rlstudio.train.ledger import UNCHAINED as FIRST
from rlstudio.train.trainer import Callback, Trainer

FINE, OFF = Settings(ledger="fine"), Settings(ledger="off")
PPO = dict(env=dict(id="CartPole-v1", num_envs=4), algo=dict(name="ppo", num_steps=32, num_minibatches=2, num_epochs=2), net=dict(hidden=[8]), eval=dict(episodes=0), checkpoint=dict(every=256))
DQN = PPO | dict(algo=dict(name="dqn", learning_starts=32, num_steps=32, batch_size=16, buffer_size=500), env=dict(id="CartPole-v1", num_envs=1))
SAC = DQN | dict(algo=dict(name="sac", learning_starts=32, num_steps=32, batch_size=16, buffer_size=500), env=dict(id="Pendulum-v1", num_envs=1))
TD3, A2C = SAC | dict(algo=SAC["algo"] | dict(name="td3")), PPO | dict(algo=dict(name="a2c", num_steps=8))
ALL = dict(ppo=PPO, dqn=DQN, sac=SAC, td3=TD3, a2c=A2C)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def config(algo: str, total_steps: int, **sections: Any) -> Any: return config_from_dict({**ALL[algo], "train": dict(total_steps=total_steps, seed=1), **sections})


def made(algo: str, folder: Path, name: str, total_steps: int = 1024, settings: Settings = FINE, callbacks: tuple[Callback, ...] = (), **more: Any) -> Run:
    run_ = Run.from_config(config(algo, total_steps), more.pop("overrides", ()), folder, name, settings, **more)
    run_.train(callbacks)
    return run_


class StopAt(Callback):
    def __init__(self, step: int, for_now: bool = True): self.step, self.for_now = step, for_now
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.env_steps >= self.step: trainer.stop("so far", interrupt=self.for_now)


# It sees everything, and changes nothing

@pytest.mark.parametrize("algo", ALL)
@pytest.mark.parametrize("mode", ["on", "fine"])
def test_it_only_looks(algo: str, mode: str, tmp_path: Path) -> None:
    steps = 512 if algo in ("ppo", "a2c") else 160
    plain = Trainer(config(algo, steps)).train()
    watched = Trainer(config(algo, steps), [Ledger(tmp_path / LEDGER, {}, mode)]).train()
    assert weights_sha256(watched.algo.module) == weights_sha256(plain.algo.module) and watched.streams.state_dict() == plain.streams.state_dict()
    found = read_ledger(tmp_path / LEDGER)
    assert [*found.records][-1] == watched.iteration and not check_ledger(tmp_path / LEDGER) and (mode == "on" or len(found.records) == watched.iteration)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
def test_every_number_of_the_state_counts(algo: str) -> None:
    "Each tensor that a checkpoint holds of weights and optimiser is in one of the two hashes: nudge one number of each"
    trainer = Trainer(config(algo, 256)).train(128)
    learned, seen = Learned(trainer.algo), 0
    def names() -> tuple[str, str]:
        import hashlib

        from rlstudio.train.ledger import feed
        hashes = hashlib.sha256(), hashlib.sha256()
        for h, tree in zip(hashes, (learned.weights(), learned.optimizer())): feed(h, tree)
        return hashes[0].hexdigest(), hashes[1].hexdigest()
    def walk(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor): yield tree
        elif isinstance(tree, dict):
            for x in tree.values(): yield from walk(x)
    before, state = names(), trainer.algo.state_dict()
    for part, tree in enumerate((state["module"], state["parts"])):
        for x in walk(tree):
            if not x.is_floating_point(): continue
            old, flat = x.clone(), x.detach().reshape(-1)
            assert flat.data_ptr() == x.data_ptr()
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf, dtype=x.dtype))
            assert names()[part] != before[part], (x.shape, part)
            x.detach().copy_(old)
            seen += 1
    assert names() == before and seen >= 10


# The smallest change

def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    "benchmarks/ledger.py, whose trials these are"
    import importlib.util
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("ledger_benchmark", ROOT / "benchmarks" / "ledger.py")
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_smallest_change_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "By default after an update; with `fine` at a gradient step within one"
    bench, known = benchmark(monkeypatch), dict[Any, Any]()
    for case, mode, seed in [("ppo", "on", s) for s in range(4)] + [("dqn", "on", 0)] + [("ppo", "fine", s) for s in range(3)]:
        done, update, component, found = bench.trial(case, seed, mode, known, tmp_path)
        assert done and bench.is_found(update, component, found, mode), (case, mode, done, update, str(found))
    assert not bench.is_found(2, "weights", None) and not bench.is_found(2, "weights", first_difference(known["ppo", "on"], known["ppo", "on"]))


def test_a_moment_that_heals_needs_the_fine_ledger(tmp_path: Path) -> None:
    "The limit that the chapter states: within an update the default ledger may miss what leaves no trace; the fine one does not"
    class Blink(Callback):
        "Adam's first moment is another one between two gradient steps, and then the old one again"
        def on_collect_end(self, trainer: Trainer) -> None:
            part = trainer.algo.parts["agent"]
            if trainer.iteration != 2: part.__dict__.pop("step", None); return
            def step() -> Any:
                told = type(part).step(part)
                part.adam.mean[0] += 1
                trainer.algo.witness, tell = None, trainer.algo.witness
                tell(part, .5)
                part.adam.mean[0] -= 1
                trainer.algo.witness = tell
                return told
            part.step = step
    def ledger(mode: str, *callbacks: Callback) -> Any:
        Trainer(config("ppo", 512), [*callbacks, Ledger(tmp_path / LEDGER, {}, mode)]).train()
        found = read_ledger(tmp_path / LEDGER)
        (tmp_path / LEDGER).unlink()
        return found
    found = first_difference(ledger("fine"), ledger("fine", Blink()))
    assert found and found.iteration == 3 and "losses" in found.components


# A kill at any byte, a full disk, and a resume

@pytest.mark.faults(32)
def test_cut_at_any_byte(tmp_path: Path) -> None:
    "Whatever is left behind the checkpoint, half a line or none: the ledger ends as that of a run that nobody stopped"
    whole = Trainer(config("ppo", 1024), [Ledger(tmp_path / "whole", {}, "fine")]).train()
    first = Trainer(config("ppo", 1024), [Ledger(tmp_path / "first", {}, "fine")]).train(512)
    state, size, text = first.state_dict(), (tmp_path / "first").stat().st_size, (tmp_path / "whole").read_bytes()
    want = read_ledger(tmp_path / "whole").records
    assert text[:size] == (tmp_path / "first").read_bytes() and len(want) == whole.iteration
    for cut in [size, size + 1, size + 50, len(text) - 1, len(text), *random.Random(1).sample(range(size, len(text)), 4)]:
        (path := tmp_path / f"cut{cut}").write_bytes(text[:cut])
        t = Trainer(config("ppo", 1024), [Ledger(path, {}, "fine")])
        t.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            t.train()
        assert read_ledger(path).records == want and not check_ledger(path, want[8]["chain"])


def test_lines_that_are_lost_are_told(tmp_path: Path) -> None:
    first = Trainer(config("ppo", 1024), [Ledger(tmp_path / "a", {}, "fine")]).train(512)
    text = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(text[:-30])
    t = Trainer(config("ppo", 1024), [Ledger(tmp_path / "a", {}, "fine")])
    t.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="the lines between are lost"): t.train()
    assert read_ledger(tmp_path / "a").records.keys() == {1, 2, 3, 5, 6, 7, 8} and check_ledger(tmp_path / "a")


@pytest.mark.faults(8)
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A line goes in whole or not at all"
    ledger = Ledger(tmp_path / LEDGER, {}, "fine")
    t = Trainer(config("ppo", 1024), [ledger]).train(256)
    before = (tmp_path / LEDGER).read_bytes()
    ledger.out = open_ledger(tmp_path / LEDGER, ledger.size, t.iteration)
    monkeypatch.setattr(metrics, "os", FaultyOS(1, half))
    with pytest.raises(metrics.MetricError, match="the disk is full"): t.step()
    assert (tmp_path / LEDGER).read_bytes() == before and not check_ledger(tmp_path / LEDGER)


@pytest.mark.faults(1)
def test_killed_and_resumed(tmp_path: Path) -> None:
    "SIGKILL at a random time: the lines are those of an uninterrupted run, and the audit says so"
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(PPO | dict(train=dict(total_steps=16_384, seed=1), checkpoint=dict(every=2048), algo=PPO["algo"] | dict(num_steps=128))))
    whole = Run.from_config(file, runs_dir=tmp_path, name="whole")
    whole.train()
    folder = tmp_path / "killed"
    command = [Path(sys.executable).parent / "rlstudio", "run", file, "--runs-dir", tmp_path, "--name", "killed", "--quiet"]
    child = subprocess.Popen([str(a) for a in command], env=child_env(coverage=False), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end and not ((folder / LEDGER).is_file() and (folder / LEDGER).stat().st_size > 4_000): time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    Run.open(folder).train()
    a, b = read_ledger(whole.folder), read_ledger(folder)
    assert a.records == b.records and not check_ledger(folder) and len(b.begins) == 2
    done = run("rlstudio", "audit", folder, "--json", coverage=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["identical"] and found["until"] == 32 and found["level"] == "L3", said(done)


# Chains and files

def test_any_change_of_a_record_breaks_the_chain(tmp_path: Path) -> None:
    Trainer(config("ppo", 512), [Ledger(path := tmp_path / LEDGER, {}, "fine")]).train()
    text, rng = path.read_bytes(), random.Random(1)
    begin, head = text.index(b"\n") + 1, read_ledger(path).records[4]["chain"]
    for _ in range(200):
        at, bit = rng.randrange(begin, len(text)), 1 << rng.randrange(8)
        path.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1:])
        assert check_ledger(path, head), (at, bit)
    for size in rng.sample(range(begin, len(text)), 50):
        path.write_bytes(text[:size])
        assert check_ledger(path, head), size
    path.write_bytes(text)
    assert not check_ledger(path, head)


@pytest.mark.parametrize("text, why", [("", "no line"), ("[1]\n", ":1"), ('{"begin": true, "step": 0}\n', ":1"), ('{"begin":0,"step":1e400,"head":"' + FIRST + '"}\n', ":1"), ("[" * 100_000 + "\n", ":1"),
                                       ('{"iteration": 1, "step": 1, "chain": "x"}\n', ":1"), ("x" * 2**21 + "\n", ":1")])
def test_files_that_are_no_ledgers(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text(text)
    with pytest.raises(LedgerError, match=why): read_ledger(tmp_path)


def test_neither_link_nor_pipe(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / LEDGER).symlink_to(tmp_path / "secret")
    with pytest.raises(LedgerError, match="regular file"): read_ledger(tmp_path)
    with pytest.raises(metrics.MetricError): Trainer(config("ppo", 256), [Ledger(tmp_path / LEDGER)]).train()
    assert (tmp_path / "secret").read_text() == "x"
    (tmp_path / LEDGER).unlink()
    os.mkfifo(tmp_path / LEDGER)
    with pytest.raises(LedgerError, match="regular file"): read_ledger(tmp_path)


def test_what_a_stranger_writes(tmp_path: Path) -> None:
    "Facts of a ledger from elsewhere: no escape reaches a terminal, no odd type ends in a traceback, nothing is read without end"
    one = made("ppo", tmp_path, "one", 256)
    text = (one.folder / LEDGER).read_text().splitlines(keepends=True)
    for facts in dict(machine={"cpu": "\x1b[31mred"}, level=["L3"], why={"a": 1}), dict(versions=[1], machine=7, threads={}, mode=3), dict(level=None, config_hash=5):
        other = shutil.copytree(one.folder, tmp_path / f"other{len(facts)}{random.random()}")
        (other / LEDGER).write_text(json.dumps(json.loads(text[0]) | facts) + "\n" + "".join(text[1:]))
        found = compare_runs(one, other)
        assert found.identical and "\x1b" not in str(found) + json.dumps(found.to_dict())
        with pytest.raises(ValueError, match="expected") if "mode" in facts else nullcontext(): assert audit(other, process=False).identical
    with open(other / LEDGER, "r+b") as f: f.truncate(2**40)
    with pytest.raises(LedgerError, match="at most"): read_ledger(other)


def test_few_lines_for_many_updates() -> None:
    "1e6 points: about eleven thousand lines"
    n = 2**17
    assert sum(map(kept, range(1, n))) == 2047 + 6 * 1024 and all(map(kept, range(1, 2048)))
    assert link(FIRST, dict(a=1)) != link(link(FIRST, dict(a=0)), dict(a=1))


# Settings, and runs of before

def test_settings(tmp_path: Path) -> None:
    on, off = made("ppo", tmp_path, "on", settings=Settings()), made("ppo", tmp_path, "off", settings=OFF)
    assert on.read("result.json")["weights_sha256"] == off.read("result.json")["weights_sha256"] and on.manifest["config_hash"] == off.manifest["config_hash"]
    assert (on.folder / LEDGER).is_file() and not (off.folder / LEDGER).exists() and [*read_ledger(on.folder).records][-1] == 8
    with pytest.raises(LedgerError, match="ledger = off"): audit(off)
    assert "ledger" not in json.dumps(to_dict(on.config))   # a setting, and no key of a config


def test_a_run_from_before_the_ledger(tmp_path: Path) -> None:
    "It begins a ledger where it goes on, without a warning, and is audited from there"
    old = Run.from_config(config("ppo", 1024), (), tmp_path, "old", OFF)
    old.train([StopAt(512)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = Run.open(old.folder, settings=FINE)
        new.train()
    found = audit(new, process=False)
    assert [*read_ledger(new.folder).records] == [5, 6, 7, 8] and found.identical and found.lines == 4 and "begins at update 5" in found.notes[0]
    with pytest.raises(AuditError, match="no update to compare"): audit(new, updates=4, process=False)


def test_an_update_that_is_made_twice(tmp_path: Path) -> None:
    "A process dies behind its checkpoint; what the next one makes again must be the same, or the level sinks"
    class Flip(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            v = trainer.algo.parts["agent"].adam.mean
            if trainer.iteration == 3 and self.flips: v[0] = torch.nextafter(v[0], torch.tensor(9.))
            if trainer.iteration == 4 and self.dies: raise OSError("the power is out")
        def __init__(self, flips: bool, dies: bool): self.flips, self.dies = flips, dies
    for flips, level in (False, "L3"), (True, "L1"):
        run_ = Run.from_config(config("ppo", 1024), (), tmp_path, f"{flips}", FINE)
        with pytest.raises(OSError, match="power"): run_.train([Flip(flips, dies=True)])
        again = Run.open(run_.folder, settings=FINE)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again.train()
        told = [str(w.message) for w in said if "second time" in str(w.message)]
        assert again.manifest["level"] == again.read("result.json")["level"] == level and len(told) == flips, told
        if flips: assert "update 3 was made a second time after a resume, and is another one in optimizer" in told[0] and told[0][:40] in again.manifest["why"]
        assert audit(again, process=False).identical and "L1" in audit(again, process=False).promise or not flips


# An audit

@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_executed_again(algo: str, tmp_path: Path) -> None:
    done = made(algo, tmp_path, "run", 256)
    found = audit(done, process=False)
    assert found.identical and found.lines == 8 and audit(done, updates=3, process=False).until == 3


def test_legs_and_warm_starts(tmp_path: Path) -> None:
    source = made("ppo", tmp_path, "source", 512)
    first = made("ppo", tmp_path, "warm", 512, start_from=source.folder)
    for changes in "train.total_steps=1024 algo.learning_rate=1e-4", "train.total_steps=1536 algo.clip_range=0.1":
        leg = Run.open(first.folder, changes, settings=FINE)
        leg.train()
    assert [(p.step, p.config.algo.learning_rate, p.config.algo.clip_range) for p in pieces_of(first.folder)] == [(0, 3e-4, .2), (512, 1e-4, .2), (1024, 1e-4, .1)]
    found = audit(first, process=False)
    assert found.identical and found.lines == 12
    shutil.rmtree(first.folder / "start")    # without its first weights it is another run
    assert audit(first, process=False).difference.iteration == 1


def test_ended_early_and_in_two_halves(tmp_path: Path) -> None:
    early = made("ppo", tmp_path, "early", callbacks=(StopAt(640, for_now=False),))
    assert audit(early, process=False).until == 5
    sparse = made("ppo", tmp_path, "sparse", settings=Settings(), callbacks=(StopAt(640, for_now=False),))
    assert read_ledger(sparse.folder).records[5]["end"] and audit(sparse, process=False).until == 5
    halves = Run.from_config(config("ppo", 1024), (), tmp_path, "halves", FINE)
    for step in 384, 640, 10_000: halves.train([StopAt(step)])
    assert len(read_ledger(halves.folder).begins) == 3 and audit(halves, process=False).identical
    assert compare_runs(halves, made("ppo", tmp_path, "whole")).identical


def test_a_world_that_begins_anew_at_a_resume(tmp_path: Path) -> None:
    "Its resumes are part of the run: executed where they were, and told as level L1"
    boundary = config("ppo", 1024, env=dict(id="CartPole-v1", num_envs=4, backend="inprocess"))
    run_ = Run.from_config(boundary, (), tmp_path, "boundary", FINE)
    from rlstudio.envs.backends import InProcess
    level = InProcess.level
    try:
        InProcess.level = "boundary"
        for step in 384, 10_000: run_.train([StopAt(step)])
        found = audit(run_, process=False)
        assert run_.manifest["level"] == "L1" and "no fault" in found.promise and found.identical
        assert [p.step for p in pieces_of(run_.folder, [384])] == [0, 384]
    finally: InProcess.level = level


def test_levels_in_words(tmp_path: Path) -> None:
    two = made("ppo", tmp_path, "two", 512, Settings(ledger="fine", threads=2))
    found = audit(two, process=False)
    assert two.manifest["level"] == "L2" and found.promise.startswith("level L2 (2 arithmetic threads)") and found.then["threads"] == found.now["threads"] == 2


def test_the_command(tmp_path: Path) -> None:
    "0: identical, 3: different, with both environments; 2: cannot say"
    class Flip(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            v = trainer.algo.parts["agent"].adam.square
            if trainer.iteration == 3: v[0] = torch.nextafter(v[0], torch.tensor(9.))
    made("ppo", tmp_path, "good", 512)
    flipped = made("ppo", tmp_path, "flipped", 512, callbacks=(Flip(),))
    def command(*args: object) -> Any: return run("rlstudio", "audit", *args, coverage=False, cwd=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = command(flipped.folder)
    assert done.returncode == 3 and "update 3, after 384 env steps: optimizer" in done.stdout and "then" in done.stdout and "torch" in done.stdout and not done.stderr, said(done)
    done = command(tmp_path / "good", tmp_path / "flipped", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3 and found["difference"]["components"] == ["optimizer"] and found["environments"]["then"] == found["environments"]["now"]
    assert audit(flipped, updates=2, process=False).identical
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files      # an audit only reads
    shutil.copytree(tmp_path / "good", tmp_path / "gone")
    (tmp_path / "gone" / "config.yaml").write_text((tmp_path / "gone" / "config.yaml").read_text().replace("CartPole-v1", "NotInstalled-v9"))
    done = command(tmp_path / "gone")
    assert done.returncode == 2 and "cannot be executed again" in done.stderr and "NotInstalled-v9" in done.stderr and "Traceback" not in done.stderr, said(done)


def test_the_cost_is_counted_the_same_everywhere(tmp_path: Path) -> None:
    "Which updates have a line is a function of the config: neither time nor machine"
    lines = []
    for name in "ab":
        Trainer(config("a2c", 2048), [Ledger(tmp_path / name)]).train()
        lines.append([*read_ledger(tmp_path / name).records])
        time.sleep(.01)
    assert lines[0] == lines[1] and 2 < len(lines[0]) < 40 and np.diff(lines[0][:-1]).std() == 0


def aged(state: dict[str, Any]) -> dict[str, Any]:
    "A checkpoint from when a ledger did not name its ratio and took no glances"
    ledger = {k: x for k, x in state["callbacks"]["ledger"].items() if k != "glances"}
    return state | dict(callbacks=state["callbacks"] | dict(ledger=ledger | dict(pace={k: n for k, n in ledger["pace"].items() if k != "ratio"})))


def test_an_older_ledger_goes_on_as_it_began(tmp_path: Path) -> None:
    "Which updates have a line is part of its chain: one that names no ratio has the lines it always had; a new one has fewer, and glances"
    def lines(name: str, **how: Any) -> dict[int, Any]:
        Trainer(config("a2c", 4096), [Ledger(tmp_path / name, **how)]).train()
        return read_ledger(tmp_path / name).records
    whole, new = lines("whole", ratio=GLANCE), lines("new")
    assert len(whole) > 1.7 * len(new) and read_ledger(tmp_path / "new").begins[0]["ratio"] == RATIO
    state = Trainer(config("a2c", 4096), [Ledger(tmp_path / "half", ratio=GLANCE)]).train(1600).state_dict()
    t = Trainer(config("a2c", 4096), [Ledger(tmp_path / "half")])
    t.load_state_dict(aged(state))
    t.train()
    assert read_ledger(tmp_path / "half").records == whole and t.state_dict()["callbacks"]["ledger"]["pace"]["ratio"] == GLANCE


def test_glances_are_part_of_a_chain_that_was_cut(tmp_path: Path) -> None:
    "Stopped between a glance and its line, and resumed: the chain of the run that never stopped"
    def trainer(name: str) -> Trainer: return Trainer(config("a2c", 4096), [Ledger(tmp_path / name)])
    trainer("whole").train()
    want = read_ledger(tmp_path / "whole").records
    gap, held = [*want][2] - [*want][1], 0
    for part in 4, 2:
        step = ([*want][1] + gap - gap // part) * 32
        state = trainer(f"half{part}").train(step).state_dict()
        held += len(state["callbacks"]["ledger"]["glances"])
        t = trainer(f"half{part}")
        t.load_state_dict(state)
        t.train()
        assert read_ledger(tmp_path / f"half{part}").records == want and not check_ledger(tmp_path / f"half{part}", want[[*want][-2]]["chain"])
    assert held


def test_a_moment_that_heals_between_two_lines_is_seen_by_a_glance(tmp_path: Path) -> None:
    class Blink(Callback):
        "Adam's first moment is another one at the end of one update, and the old one again at the next"
        name = "blink"
        def __init__(self, at: int) -> None: self.at = at
        def on_iteration_end(self, trainer: Trainer) -> None:
            mean = trainer.algo.parts["agent"].adam.mean
            if trainer.iteration == self.at: self.old, mean[0] = mean[0].clone(), torch.nextafter(mean[0], torch.tensor(9.))
        def on_collect_end(self, trainer: Trainer) -> None:
            if trainer.iteration == self.at: trainer.algo.parts["agent"].adam.mean[0] = self.old
    def lines(name: str, *callbacks: Callback, **how: Any) -> Any:
        Trainer(load_config("a2c/cartpole", ["train.total_steps=5120"])[0], [*callbacks, Ledger(tmp_path / name, **how)]).train()
        return read_ledger(tmp_path / name)
    plain = lines("plain")
    first, second = [*plain.records][:2]
    names = {i: str(first_difference(plain, lines(f"blink{i}", Blink(i)))) for i in range(first + 1, second)}
    seen = [i for i, found in names.items() if found != "None"]
    assert len(seen) == 2 and all("optimizer" in names[i] and f"update {second}" in names[i] for i in seen), names   # its two glances
    old = lines("old", ratio=GLANCE)
    assert {i for i in old.records if first < i < second} == set(seen)   # where an older ledger had lines


def test_a_run_whose_ledger_names_no_ratio_is_audited_with_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlstudio.train import ledger
    with monkeypatch.context() as m:
        m.setattr(ledger.Ledger.__init__, "__defaults__", (None, "on", None, GLANCE))
        run_ = made("a2c", tmp_path, "old", 4096, settings=Settings())
    text = (run_.folder / LEDGER).read_text()
    assert f'"ratio":{GLANCE}' in text
    (run_.folder / LEDGER).write_text(text.replace(f',"ratio":{GLANCE}', ""))
    found = audit(run_, process=False)
    assert found.identical and found.lines == len(read_ledger(run_.folder).records) and not found.notes


@pytest.mark.parametrize("odd", [dict(pace=dict(points=1, work=0, line=-1)), dict(pace=dict(points=1, work=0, line=1, ratio="9")), dict(pace=dict(more=1)), dict(glances=[["a"]]), dict(glances=[-1])])
def test_a_pace_from_anybody(odd: dict[str, Any], tmp_path: Path) -> None:
    state = Ledger(tmp_path / LEDGER).state_dict()
    with pytest.raises(ValueError, match=f"ledger: {next(iter(odd))}: given"): Ledger(tmp_path / LEDGER).load_state_dict(state | odd)


def test_a_faster_engine_has_fewer_lines(tmp_path: Path) -> None:
    "A line costs the same with every engine, so machine code, whose updates cost less, has fewer; the first and the last update have one"
    def updates(engine: str) -> list[int]:
        config = load_config("a2c/cartpole", ["train.total_steps=5120"])[0]
        Trainer(config, [Ledger(tmp_path / engine)], engine=engine).train()
        return list(read_ledger(tmp_path / engine).records)
    many, few = updates("tape"), updates("compiled")
    assert len(many) > len(few) >= 2 and (many[0], many[-1]) == (few[0], few[-1]) == (1, 80)
