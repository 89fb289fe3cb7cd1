"""Run folders from strangers: a malicious corpus with a canary, and random damage in any file under every command.

Commands run in this process (a traceback is an exception that reaches the test); a few run as real children, with a bound on their memory."""
import ast
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from faults import memory_folder
from support import child_env, said, snapshot
from typer.testing import CliRunner

import rlstudio.core.files
import rlstudio.runs.checkpoint
import rlstudio.runs.run
import rlstudio.train.metrics
from rlstudio.runs.checkpoint import ARRAYS, MANIFEST, TREE, CheckpointError, load_checkpoint, save_checkpoint, spell
from rlstudio.runs.export import load_agent, save_agent
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app
from rlstudio.train.agent import AgentError
from rlstudio.train.trainer import Callback, Trainer

SMALL = ("train.total_steps=128", "env.num_envs=2", "algo.num_steps=32", "algo.num_minibatches=1", "algo.num_epochs=1", "net.hidden=[4]",
         "eval.episodes=1", "eval.max_steps=20", "checkpoint.every=64")
SECONDS = 20   # for one command, on a machine with other work; each takes a fraction of one


class Stop(Callback):
    "Interrupts a training after its first iteration"
    def on_iteration_end(self, trainer: Trainer) -> None: trainer.stop("a test", interrupt=True)


@pytest.fixture(scope="module")
def origin() -> Iterator[Path]:
    "A run that was trained to its end, and beside it one that was stopped on its way"
    with memory_folder() as shelf, pytest.MonkeyPatch.context() as patch:
        patch.chdir(shelf)
        Run.from_config("ppo/cartpole", SMALL, shelf / "runs", "done").train()
        Run.from_config("ppo/cartpole", SMALL, shelf / "runs", "half").train([Stop()])
        yield shelf


class Place:
    "A workspace with one run from a stranger, a neighbour, and things of the user that must stay as they are"
    def __init__(self, root: Path, run: Path) -> None:
        self.root, self.run, self.mine = root, root / "runs" / "stranger", root / "mine"
        shutil.copytree(run, self.run, symlinks=True)
        shutil.copytree(run, root / "runs" / "neighbour", symlinks=True)
        (self.mine / ".tmp-folder").mkdir(parents=True)
        for name in ("file.txt", ".tmp-folder/x", "step_000000000001"): (self.mine / name).write_text("precious")
        (root / "canary.py").write_text(f"from pathlib import Path\nPath({str(root / 'RAN')!r}).touch()\n")   # found by an import from here
        self.before = self.seen()

    @property
    def file(self) -> Path: return self.mine / "file.txt"

    def seen(self) -> dict[str, bytes]: return snapshot(self.mine) | {"canary": b"ran" * (self.root / "RAN").exists()}

    def checkpoint(self) -> Path: return sorted((self.run / "checkpoints").glob("step_*"))[-1]

    def untouched(self) -> None:
        assert self.seen() == self.before, "something outside of the folder changed, or a stranger's code ran"
        assert not (self.root.parent / "x").exists()


@contextmanager
def place(origin: Path, which: str = "done") -> Iterator[Place]:
    with memory_folder() as root, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", [*sys.path, str(root)])
        yield Place(root, origin / "runs" / which)
        sys.modules.pop("canary", None)


def call(*args: object) -> Result:
    "One command in this process, within its time; what it prints is printable, and nothing but an exit leaves it"
    late: list[int] = []
    def alarm(number: int, frame: Any) -> None:
        late.append(number)
        raise KeyboardInterrupt
    old = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")   # as in a process of its own
            done = CliRunner().invoke(app, [str(a) for a in args])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    told = f"rlstudio {' '.join(map(str, args))}\nexit code {done.exit_code}\n{done.output[-2000:]}"
    assert not late, f"too slow: {told}"
    if done.exception and not isinstance(done.exception, SystemExit): raise AssertionError(f"a traceback: {done.exception!r}\n{told}") from done.exception
    assert done.exit_code in (0, 1, 2, 3) and "Traceback" not in done.output, told
    assert all(c.isprintable() or c == "\n" for c in done.output), f"not printable: {ascii(told)}"
    assert done.exit_code == 0 or done.output.strip(), f"no word: {told}"
    return done


COMMANDS: dict[str, Callable[[Place], tuple[object, ...]]] = {
    "show": lambda p: ("show", p.run), "show --json": lambda p: ("show", p.run, "--json"), "show --config": lambda p: ("show", p.run, "--config"),
    "list": lambda p: ("list", "runs", "--runs-dir", p.root / "runs"), "list --sort": lambda p: ("list", "runs", "--runs-dir", p.root / "runs", "--sort", "-eval", "--where", "seed>=0"),
    "evaluate": lambda p: ("evaluate", p.run, "--episodes", 1, "--max-steps", 9), "resume": lambda p: ("resume", p.run, "--quiet"),
    "resume on": lambda p: ("resume", p.run, "train.total_steps=192", "--quiet"), "export": lambda p: ("export", p.run, p.root / "agent"),
    "run --from": lambda p: ("run", "ppo/cartpole", *SMALL, "--from", p.run, "--runs-dir", p.root / "new", "--quiet"),
    "verify": lambda p: ("verify", p.run), "audit": lambda p: ("audit", p.run, p.root / "runs" / "neighbour"), "migrate": lambda p: ("migrate", p.run, "--dry-run"),
    "delete": lambda p: ("delete", p.run, "--yes")}


# ---- the malicious corpus ----------------------------------------------------------------------------------------------

Plant = Callable[[Place], None]
CORPUS: dict[str, tuple[str, Plant]] = {}   # name → (which run, plants it)


def put(path: Path, data: bytes | str) -> None:
    if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
    else: path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)   # a run that was stopped has no plots yet
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def link(path: Path, to: object) -> None:
    put(path, b"")
    path.unlink()
    path.symlink_to(str(to))


def fifo(path: Path) -> None:
    put(path, b"")
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    put(path, b"")
    path.unlink()
    path.mkdir()


def sparse(path: Path, size: int = 400 * 2**20) -> None:
    put(path, b"")
    os.truncate(path, size)


def plug(path: Path) -> None:
    put(path, b"")
    path.unlink()
    os.chdir(path.parent)   # its path is short from here
    with socket.socket(socket.AF_UNIX) as s: s.bind(path.name)


def signed(p: Place, state: dict[str, Any] | None = None, meta: dict[str, Any] | None = None) -> None:
    "Write the newest checkpoint anew, with hashes that are right"
    saved, path = load_checkpoint(p.checkpoint()), p.checkpoint()
    shutil.rmtree(path)
    save_checkpoint(path.parent, saved.step, saved.state if state is None else state, saved.meta if meta is None else meta)


def stamped(p: Place, tree: bytes | None = None, arrays: bytes | None = None) -> None:
    "Put other bytes into the newest checkpoint, under a manifest whose hashes fit them"
    path = p.checkpoint()
    manifest = json.loads((path / MANIFEST).read_text())
    for name, data in ((TREE, tree), (ARRAYS, arrays)):
        if data is None: continue
        (path / name).write_bytes(data)
        manifest["files"][name] = dict(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    del manifest["sha256"]
    (path / MANIFEST).write_bytes(spell(manifest | dict(sha256=hashlib.sha256(spell(manifest)).hexdigest())))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]: return os.system, ("touch RAN",)


def entry(name: str, plant: Plant, which: str = "half") -> None:
    "A stranger can make hashes that fit, or send none; without them more of a folder is reached"
    def unhashed(p: Place) -> None:
        plant(p)
        if "hashes.json" not in name: (p.run / "hashes.json").unlink(missing_ok=True)
    CORPUS[name] = which, unhashed


for name in ("manifest.json", "result.json", "evaluations.json", "config.yaml", "run.lock", "metrics.jsonl", "ledger.jsonl", "hashes.json"):
    whose = "done" if name == "result.json" else "half"
    entry(f"{name}: link to a file of the user", lambda p, name=name: link(p.run / name, p.file), whose)
    entry(f"{name}: link to /dev/zero", lambda p, name=name: link(p.run / name, "/dev/zero"), whose)
    entry(f"{name}: pipe", lambda p, name=name: fifo(p.run / name), whose)
    entry(f"{name}: folder", lambda p, name=name: folder(p.run / name), whose)
    entry(f"{name}: socket", lambda p, name=name: plug(p.run / name), whose)
    entry(f"{name}: 400 MB", lambda p, name=name: sparse(p.run / name), whose)
for name in ("manifest.json", "result.json", "evaluations.json", "hashes.json"):
    for case, text in {"brackets": "[" * 10**5, "many lists": "[" + "[]," * 2**21 + "[]]", "NaN": '{"a": NaN}', "1e400": '{"env_steps": 1e400}', "10^400": '{"env_steps": 1' + "0" * 400 + "}",
                       "two keys": '{"a": 1, "a": 2}', "a list": "[1]", "an object": '{"a": 1}'}.items():
        entry(f"{name}: {case}", lambda p, name=name, text=text: put(p.run / name, text), "done")
for name in (".manifest.json.tmp", ".result.json.tmp", ".evaluations.json.tmp", ".config.yaml.tmp", "plots/.learning_curve.png.tmp", "videos/.rollout.webp.tmp", "metrics.aside",
             "plots/learning_curve.png", "videos/rollout.webp", "config.leg1.yaml", "metrics.000001.jsonl"):
    entry(f"{name}: link where a file is written", lambda p, name=name: link(p.run / name, p.file))
for name in ("checkpoints", "checkpoints/best", "plots", "videos", "start", "trackers", "tensorboard"):
    entry(f"{name}: link to a folder of the user", lambda p, name=name: link(p.run / name, p.mine))
entry("checkpoints/.tmp-x: link to a folder of the user", lambda p: link(p.run / "checkpoints" / ".tmp-x", p.mine))
entry("checkpoints/.tmp-x: a file", lambda p: put(p.run / "checkpoints" / ".tmp-x", "x"))
entry("checkpoints/best/.tmp-x: link to a folder of the user", lambda p: link(p.run / "checkpoints" / "best" / ".tmp-x", p.mine), "done")
entry("a checkpoint is a link", lambda p: link(p.run / "checkpoints" / "step_000000999999", p.mine))


def second_name(p: Place) -> None:
    (p.run / "metrics.jsonl").unlink()
    os.link(p.file, p.run / "metrics.jsonl")


entry("metrics.jsonl: a second name of a file of the user", second_name)
entry("metrics.jsonl: a line of 2 GB", lambda p: sparse(p.run / "metrics.jsonl", 2**31))
for case, line in {"10^400": '{"step": 1' + "0" * 400 + ', "episode/return_mean": 1e999}', "texts": '{"step": "x", "episode/return_mean": [1]}', "ANSI": '{"step": 1, "a\\u001b[2Jb\\n<script>": 1, "episode/return_mean": "\\u001b[2J"}',
                   "deep": '{"step": ' + "[" * 10**5, "true": '{"step": true, "episode/return_mean": {"a": 1}}'}.items():
    entry(f"metrics.jsonl: {case}", lambda p, line=line: put(p.run / "metrics.jsonl", (p.run / "metrics.jsonl").read_text() + line + "\n"))
for key, value in {"status": "\x1b[2Jgone", "why": "\x1b]0;title\x07", "error": "\x1b[8m\u202ehidden", "level": "L3\r\x1b[Kfine", "created": "\x1b[1A"}.items():
    entry(f"manifest.json: escape codes in {key}", lambda p, key=key, value=value: put(p.run / "manifest.json", json.dumps(json.loads((p.run / "manifest.json").read_text()) | {key: value})))
entry("manifest.json: a module to import", lambda p: put(p.run / "manifest.json", json.dumps(json.loads((p.run / "manifest.json").read_text()) | dict(imports=["canary"]))))
entry("manifest.json: a module by a path", lambda p: put(p.run / "manifest.json", json.dumps(json.loads((p.run / "manifest.json").read_text()) | dict(imports=["../canary", "canary;x", "os"]))))
for case, version in {"999": "999", '"1"': '"1"', "true": "true", "-1": "-1", "1e400": "1e400", "null": "null"}.items():
    entry(f"manifest.json: version {case}", lambda p, version=version: put(p.run / "manifest.json", (p.run / "manifest.json").read_text().replace('"schema_version": 2', f'"schema_version": {version}')))


for case, old, new in (
        ("a tag", "name: ppo", "name: !!python/object/apply:os.system ['touch RAN']"), ("a class", "name: ppo", "_target_: os.system\n  name: ppo"), ("an env by module", "id: CartPole-v1", "id: os:system"),
        ("an env of the canary", "id: CartPole-v1", "id: canary:Env-v0"), ("an algorithm by path", "name: ppo", "name: ../../canary"), ("an encoder by module", "encoder: auto", "encoder: canary.Encoder"),
        ("a wrapper by module", "wrappers: []", "wrappers: [canary]"), ("escape codes", "id: CartPole-v1", 'id: "\\x1b[2JCartPole"'), ("aliases", "env:", "x: &a [1,1]\ny: &b [*a,*a,*a]\nz: [*b,*b,*b]\nenv:"),
        ("a large text", "id: CartPole-v1", f"id: {'x' * 50 * 2**20}"), ("an entry that is no text", "id: CartPole-v1", "id: [1, {a: b}]"), ("huge sizes", "hidden: [4]", "hidden: [1000000000000]"),
        ("not UTF-8", "name: ppo", "name: p\udcffo")):
    entry(f"config.yaml: {case}", lambda p, old=old, new=new: put(p.run / "config.yaml", (p.run / "config.yaml").read_text().replace(old, new).encode(errors="surrogateescape")))


def record(p: Place, **more: Any) -> None:
    "A record of hashes that says something else, with its own hash right"
    doc = json.loads((p.run / "hashes.json").read_text()) | more
    del doc["sha256"]
    def spelled(doc: Any) -> str: return json.dumps(doc, sort_keys=True, indent=1) + "\n"
    put(p.run / "hashes.json", spelled(doc | dict(sha256=hashlib.sha256(spelled(doc).encode()).hexdigest())))


for case, names in {"names that climb": ["../../mine/file.txt", "checkpoints/../../../mine/"], "whole paths": ["/dev/zero", "/etc/passwd"], "escape codes": ["\x1b[2J", "a\nb"]}.items():
    for key in ("files", "changing", "lines"):
        entry(f"hashes.json: {case} in {key}", lambda p, key=key, names=names: record(p, **{key: {n: dict(bytes=1, sha256="0" * 64) for n in names}}))
entry("settings.ini of the run's folder", lambda p: (put(p.run / "settings.ini", "[DEFAULT]\nimports = canary\n"), os.chdir(p.run))[0])
entry("settings.ini: 400 MB", lambda p: sparse(p.root / "settings.ini"))
entry("settings.ini: link to /dev/zero", lambda p: link(p.root / "settings.ini", "/dev/zero"))
entry("settings.ini: pipe", lambda p: fifo(p.root / "settings.ini"))
entry("checkpoint: pickle as safetensors", lambda p: stamped(p, arrays=pickle.dumps(Bomb())))
entry("checkpoint: pickle as state", lambda p: stamped(p, tree=pickle.dumps(Bomb())))
entry("checkpoint: header of 2^63", lambda p: stamped(p, arrays=struct.pack("<Q", 2**63) + b"{}"))
entry("checkpoint: an array of 1 TiB", lambda p: stamped(p, arrays=struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,4]}}'.ljust(64)))
entry("checkpoint: an extra file", lambda p: put(p.checkpoint() / "evil.pkl", pickle.dumps(Bomb())))
entry("checkpoint: its state is empty", lambda p: signed(p, {}))
entry("checkpoint: its state is texts", lambda p: signed(p, {k: "x" for k in load_checkpoint(p.checkpoint()).state}))
entry("checkpoint: its meta is empty", lambda p: signed(p, meta={}))
entry("checkpoint: its config is a text", lambda p: signed(p, meta=dict(config="x")))
entry("checkpoint: names that climb", lambda p: put(p.checkpoint() / MANIFEST, (p.checkpoint() / MANIFEST).read_text().replace(ARRAYS, "../../../../mine/file.txt")))


def nan_weights(p: Place) -> None:
    saved = load_checkpoint(p.checkpoint())
    module = saved.state["algo"]["module"]
    for x in module.values():
        if x.is_floating_point(): x.fill_(float("nan"))
    signed(p, saved.state)


entry("checkpoint: NaN weights", nan_weights)


def test_the_corpus_is_large() -> None: assert len(CORPUS) >= 60


@pytest.mark.faults(35)
@pytest.mark.parametrize("name", CORPUS)
def test_malicious_folder(origin: Path, name: str) -> None:
    "Every command ends in time, prints what is printable, follows nothing and runs nothing; a neighbour stays listed"
    which, plant = CORPUS[name]
    with place(origin, which) as p:
        plant(p)
        listed = call(*COMMANDS["list"](p))
        if "settings.ini" not in name: assert listed.exit_code == 0 and "neighbour" in listed.output and "stranger" in listed.output
        for command in ("show", "verify", "audit", "migrate", "evaluate", "resume on" if which == "done" else "resume", "delete"):
            call(*COMMANDS[command](p))
            p.untouched()


@pytest.mark.faults(35)
@pytest.mark.parametrize("name, command, word", [
    ("manifest.json: pipe", "show", "manifest.json: given a pipe"), ("manifest.json: link to a file of the user", "resume", "manifest.json: given a link"), ("manifest.json: 400 MB", "show", "more than 67,108,864 bytes"),
    ("result.json: a list", "show", "result.json: damaged (given [1], expected an object)"), ("evaluations.json: an object", "resume on", "evaluations.json: damaged"), ("checkpoints: link to a folder of the user", "resume", "checkpoints: given a link"),
    ("plots: link to a folder of the user", "resume", "plots: given a link"), ("metrics.jsonl: a second name of a file of the user", "resume", "hard link"), ("checkpoint: its state is texts", "resume", "content does not fit"),
    ("checkpoint: NaN weights", "evaluate", "NaN"), ("settings.ini of the run's folder", "resume", "inside the folder of a run"), ("manifest.json: a module to import", "resume", "that is code: if you trust it"),
    ("config.yaml: link to a file of the user", "show", "not a run"), ("settings.ini: pipe", "list", "settings.ini"),
])
def test_refused_with_a_reason(origin: Path, name: str, command: str, word: str) -> None:
    which, plant = CORPUS[name]
    with place(origin, which) as p:
        plant(p)
        done = call(*COMMANDS[command](p))
        assert done.exit_code == 2 and word in " ".join(done.output.replace("│", " ").split()), done.output   # wrapped in a box
        p.untouched()


@pytest.mark.parametrize("harm", ["file", "code", "temporary"])
def test_the_canary_can_die(origin: Path, harm: str) -> None:
    "What the corpus tries is noticed where it succeeds"
    with place(origin) as p:
        if harm == "file": p.file.write_text("changed")
        if harm == "code": __import__("canary")
        if harm == "temporary": shutil.rmtree(p.mine / ".tmp-folder")
        with pytest.raises(AssertionError, match="outside of the folder"): p.untouched()


def test_a_traceback_is_noticed(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Without the care for the content of a checkpoint the same folder brings one up"
    monkeypatch.setattr(rlstudio.runs.run, "content_of", lambda saved: nullcontext())
    with place(origin, "half") as p:
        CORPUS["checkpoint: its state is texts"][1](p)
        with pytest.raises(AssertionError, match="a traceback"): call(*COMMANDS["resume"](p))


# ---- damage twice, and a disk that fills up while a failure is noted ---------------------------------------------------

def test_the_same_checkpoint_damaged_twice(origin: Path) -> None:
    "Each time it moves aside under a free name, and the run goes on from the one before"
    with place(origin, "half") as p:
        name = p.checkpoint().name
        for time in (1, 2, 3):
            (p.run / "checkpoints" / name / ARRAYS).write_bytes(b"damaged")
            with pytest.warns(UserWarning, match=f"{name} is damaged"): Run.open(p.run).train([Stop()])
            assert len(list((p.run / "checkpoints").glob(f"damaged_{name}*"))) == time
            assert load_checkpoint(p.checkpoint()).path.name == name
        assert call("resume", p.run, "--quiet").exit_code == 0


class FullDisk:
    "The module `os` of a machine whose disk is full from some moment on"
    def __init__(self) -> None: self.full = False

    def __getattr__(self, name: str) -> Any: return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        if self.full: raise OSError(28, os.strerror(28))
        return os.write(fd, data)


class FillsUp(Callback):
    "Fills the disk, then fails"
    def __init__(self, disk: FullDisk, error: type[BaseException] | None) -> None: self.disk, self.error = disk, error

    def on_iteration_end(self, trainer: Trainer) -> None:
        self.disk.full = True
        if self.error: raise self.error("the reason")
        trainer.stop("a test", interrupt=True)


@pytest.mark.parametrize("error, expected, word", [(ZeroDivisionError, ZeroDivisionError, "the reason"), (SystemExit, SystemExit, "the reason"), (None, Exception, "No space left on device")])
def test_the_disk_is_full_while_the_failure_is_noted(origin: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None, expected: type[BaseException], word: str) -> None:
    "The error that led here is the one that is told; the status is true in this process and, by the lock, in any other; with room again the run goes on"
    with place(origin, "half") as p, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        disk = FullDisk()
        for module in (rlstudio.core.files, rlstudio.train.metrics, rlstudio.runs.checkpoint): monkeypatch.setattr(module, "os", disk)
        run = Run.open(p.run)
        with pytest.raises(expected, match=word): run.train([FillsUp(disk, error)])
        assert any("could not be noted" in str(w.message) and "No space left" in str(w.message) for w in told)
        assert run.status == "failed" and Run.open(p.run).status == "killed"
        assert not [f for f in p.run.rglob(".*") if f.name.endswith(".tmp")]
        disk.full = False
        assert run.train()["status"] == "completed" and run.status == "completed"


# ---- an agent's folder -------------------------------------------------------------------------------------------------

@pytest.mark.faults(35)
@pytest.mark.parametrize("name", ["agent.json", "weights.safetensors"])
@pytest.mark.parametrize("plant", [lambda f, p: link(f, p.file), lambda f, p: link(f, "/dev/zero"), lambda f, p: fifo(f), lambda f, p: folder(f), lambda f, p: sparse(f), lambda f, p: put(f, pickle.dumps(Bomb())), lambda f, p: put(f, "")],
                         ids=["link", "zero", "pipe", "folder", "400 MB", "pickle", "empty"])
def test_malicious_agent(origin: Path, name: str, plant: Callable[[Path, Place], None]) -> None:
    with place(origin) as p:
        agent = save_agent(p.run, p.root / "agent")
        plant(agent / name, p)
        with pytest.raises(AgentError, match=name): load_agent(agent)
        p.untouched()


# ---- random damage -----------------------------------------------------------------------------------------------------

def values_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    "The path of every value in a JSON value"
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path, *(found for k, v in inner for found in values_in(v, (*path, k)))]


WRONG: tuple[Any, ...] = (None, True, -1, 10**400, 1e308, "", "x", "\x1b[2J\n", "9" * 50, [], [1], {}, {"a": 1}, [[[]]], -1.5, 2**63, "../../x", ["a", None])


def replaced(value: Any, dice: random.Random) -> Any:
    "The same with one value that is wrong, lost, or twice"
    paths = [path for path in values_in(value) if path]
    if not paths or dice.random() < .05: return dice.choice(WRONG)
    *way, last = dice.choice(paths)
    at = value
    for k in way: at = at[k]
    if isinstance(at, dict) and dice.random() < .2: del at[last]
    else: at[last] = dice.choice(WRONG)
    return value


def damage(p: Place, dice: random.Random) -> str:
    "Do one thing to one file of the folder; the word for it"
    files = sorted(f for f in p.run.rglob("*") if f.is_file() and f.suffix in (".json", ".yaml", ".jsonl", ".lock", ".safetensors"))
    small = [f for f in files if f.parent == p.run]
    file = dice.choice(small if dice.random() < .7 else files)
    kind = dice.choice(["json"] * 5 + ["state"] * 2 + ["flip", "cut", "empty", "noise", "lost", "link", "pipe", "folder", "twice", "line"])
    data = file.read_bytes()
    try: state, value = load_checkpoint(p.checkpoint()), json.loads(data) if file.suffix == ".json" else None
    except (CheckpointError, ValueError): kind, state = "noise", None   # of what was damaged before
    if state and kind == "state":
        if dice.random() < .5: signed(p, replaced(state.state, dice) if isinstance(state.state, dict) else {})
        else: signed(p, meta=plain if isinstance(plain := replaced(json.loads(json.dumps(state.meta)), dice), dict) else {})
    elif kind == "json" and file.suffix == ".json": put(file, json.dumps(replaced(value, dice)))
    elif kind in ("json", "line"):
        lines = data.decode("latin-1").splitlines() or [""]
        i = dice.randrange(len(lines))
        lines[i] = dice.choice([lines[i][: len(lines[i]) // 2], lines[i] + dice.choice(lines), "", f"{lines[i].partition(':')[0]}: {dice.choice(WRONG)}", "\t" + lines[i], "- x", '{"step": 1e999}', "[]"])
        put(file, "\n".join(lines) + "\n")
    elif kind == "flip" and data:
        i = dice.randrange(len(data))
        put(file, data[:i] + bytes([data[i] ^ 1 << dice.randrange(8)]) + data[i + 1:])
    elif kind == "cut": put(file, data[: dice.randrange(len(data) + 1)])
    elif kind == "noise": put(file, dice.randbytes(200))
    elif kind == "twice": put(file, data * 2)
    elif kind == "lost": file.unlink()
    elif kind == "link": link(file, p.file)
    elif kind == "pipe": fifo(file)
    elif kind == "folder": folder(file)
    else: put(file, b"")
    return f"{kind} in {file.relative_to(p.run)}"


MUTATIONS, PARTS = 510, 10


@pytest.mark.faults(35)
@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_folders(origin: Path, part: int) -> None:
    "Whatever was done to a folder: an answer or one message, by every command, and never a traceback"
    heavy = ("evaluate", "resume", "resume on", "export", "run --from", "delete", "show --config", "audit", "migrate")
    for seed in range(part, MUTATIONS, PARTS):
        dice = random.Random(seed)
        with place(origin, ("done", "half")[seed % 2]) as p:
            if dice.random() < .7: (p.run / "hashes.json").unlink()   # else few damages are reached
            what = [damage(p, dice) for _ in range(dice.choice([1, 1, 2]))]
            try:
                for command in ("list", "show", "show --json", "list --sort", "verify", heavy[seed // 2 % len(heavy)]): call(*COMMANDS[command](p))
                p.untouched()
            except (AssertionError, OSError) as e: raise AssertionError(f"mutation {seed}: {what}") from e


# ---- real children -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, command, code", [("manifest.json: link to /dev/zero", "show", 2), ("manifest.json: pipe", "list", 0), ("evaluations.json: many lists", "resume on", 2)])
def test_as_a_process_of_its_own(origin: Path, name: str, command: str, code: int) -> None:
    "The same from a shell, with 4 GiB of address space at most"
    which, plant = CORPUS[name]
    with place(origin, which) as p:
        plant(p)
        bounded = ["bash", "-c", 'ulimit -v 4194304; exec "$@"', "bash", "rlstudio", *map(str, COMMANDS[command](p))]
        done = subprocess.run(bounded, cwd=p.root, env=child_env(coverage=False, OPENBLAS_NUM_THREADS="1"), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == code and "Traceback" not in done.stderr and "MemoryError" not in done.stderr, said(done)
        p.untouched()


# ---- one reader, one writer --------------------------------------------------------------------------------------------

OWN = {  # what reads no folder of a run: files of the system, of the package, metadata of what is installed, of a process that it has started, and descriptors that are open already
    "core/arithmetic.py": {"processor"}, "data/storage.py": {"memory_limit", "is_tmpfs"}, "runs/folder.py": {"module_hash", "code_hash", "locked", "is_busy"}, "studio/cli.py": {"about", "open_descriptors"},
    "studio/catalog.py": {"written_classes"}, "evidence/audit.py": {"execute_alone", "in_new_process"}, "evidence/migrate.py": {"copy_file"},
    "studio/plugins.py": {"origin_of"}, "evidence/study.py": {"work_on_cells"}}


def readers(source: str) -> list[str]:
    "The functions that open, read or write a file by its path in their own way"
    found = []
    for f in ast.walk(ast.parse(source)):
        if not isinstance(f, ast.FunctionDef): continue
        for call in (n for n in ast.walk(f) if isinstance(n, ast.Call)):
            name = ast.unparse(call.func)
            if name in ("open", "io.open", "os.open") or name.rpartition(".")[2] in ("read_text", "read_bytes", "write_text", "write_bytes") or name in ("np.load", "np.save"): found.append(f.name)
    return found


def test_there_is_one_reader_and_one_writer() -> None:
    package = Path(rlstudio.core.files.__file__).parents[1]
    own = {f.relative_to(package).as_posix(): set(readers(f.read_text())) for f in package.rglob("*.py") if f.name != "_modidx.py" and f.parent.name + "/" + f.name != "core/files.py"}
    strays = {name: functions - OWN.get(name, set()) for name, functions in own.items() if functions - OWN.get(name, set())}
    assert not strays, f"read_file, read_json, put_file, put_json, append_to or open_plain of 08_core.files: {strays}"


@pytest.mark.parametrize("source, found", [("def f(p): return open(p).read()", ["f"]), ("def f(p): return p.read_text()", ["f"]), ("def f(p): return os.open(p, 0)", ["f"]), ("def f(p): return read_file(p)", []), ("def f(p): return os.fdopen(open_plain(p))", [])])
def test_another_reader_is_found(source: str, found: list[str]) -> None: assert readers(source) == found
