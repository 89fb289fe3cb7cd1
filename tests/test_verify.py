"A run's record of hashes: every flipped bit is found and named, and no kill at any moment looks like damage (chapter evidence.verify)."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyOS, fails, memory_folder
from support import child_env, said
from support import run as sh

from rlstudio import Run
from rlstudio.core import files as files_module
from rlstudio.core.files import FileError
from rlstudio.evidence.verify import Verified, verify
from rlstudio.runs.checkpoint import CheckpointError, checkpoints
from rlstudio.runs.config import Settings
from rlstudio.runs.folder import HASHES, Hashes, RunError, checkpoint_of, hash_file, read_record, spell_record, stamp_of
from rlstudio.train import metrics
from rlstudio.train.trainer import Callback, Trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")   # a bandit cannot be filmed

CONFIG: dict[str, Any] = dict(env=dict(id="rlstudio/Bandit-v0", num_envs=2), algo=dict(name="ppo", num_steps=16, num_minibatches=2, num_epochs=1),
                              net=dict(hidden=[8]), train=dict(total_steps=256, seed=1), eval=dict(every=64, episodes=2), checkpoint=dict(every=64, keep=2))


def make(folder: Path, name: str = "a", **changes: Any) -> Run:
    "A small run of its own"
    return Run.from_config(CONFIG, changes, runs_dir=folder, name=name, settings=Settings())


def names(run: Any) -> list[str]:
    "The files that are damaged"
    return [d.file for d in verify(run).damage]


def files_of(folder: Path) -> list[str]:
    "All files but the lock, which is empty"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock")


@pytest.fixture(scope="module")
def finished() -> Iterator[Path]:
    "A finished run with legs, rotated metrics, checkpoints, a best one, a curve, and films; to be left as it is"
    with memory_folder() as folder, pytest.MonkeyPatch.context() as patch:
        small_files(patch)
        run = make(folder)
        run.train()
        again = Run.open(run.folder, {"train.total_steps": 512}, settings=Settings())
        again.train()
        again.evaluate(episodes=3)
        (run.folder / "videos").mkdir(exist_ok=True)
        with Hashes(run.folder).changing(["videos/rollout.webp"]): (run.folder / "videos" / "rollout.webp").write_bytes(b"RIFF" * 100)
        assert {"config.leg1.yaml", "result.leg1.json", "metrics.000001.jsonl", "plots/learning_curve.png", "videos/rollout.webp"} <= set(files_of(run.folder))
        assert any("best" in name for name in files_of(run.folder)) and verify(run).whole and verify(run).sealed
        yield run.folder


def small_files(patch: pytest.MonkeyPatch) -> None:
    "Metrics files that are full after a few records"
    opened = metrics.JSONLSink.open

    def open_(self: Any, *args: Any) -> None:
        self.limit = 1200
        opened(self, *args)
    patch.setattr(metrics.JSONLSink, "open", open_)


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    "A file with another content inside; None: without it"
    good = path.read_bytes() if path.exists() else None
    path.unlink() if data is None else path.write_bytes(data)
    try: yield
    finally: path.unlink(missing_ok=True) if good is None else path.write_bytes(good)


# ---- damage ------------------------------------------------------------------------------------------------------------

@pytest.mark.faults(13)
def test_a_thousand_flipped_bits(finished: Path) -> None:
    dice, known = random.Random(7), files_of(finished)
    missed = []
    for _ in range(1000):
        name = dice.choice(known)
        data = bytearray((finished / name).read_bytes())
        bit = dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        with changed(finished / name, bytes(data)):
            if name not in names(finished): missed.append((name, bit))
    assert missed == [] and verify(finished).whole


@pytest.mark.faults(14)
def test_every_truncation_and_every_longer_file(finished: Path) -> None:
    for name in files_of(finished):
        data = (finished / name).read_bytes()
        lines = [i + 1 for i, b in enumerate(data) if b == 10][:-1]
        ends = {0, 1, len(data) // 2, len(data) - 1, *random.Random(name).sample(lines, min(3, len(lines)))}
        half = len(data) // 2
        for bad in [*(data[:n] for n in ends if n < len(data)), data + b"\n", data + b"\0", data + data, data[:half] + bytes(len(data) - half)]:
            with changed(finished / name, bad): assert name in names(finished), (name, len(bad), len(data))


@pytest.mark.faults(15)
def test_deleted_files(finished: Path) -> None:
    for name in files_of(finished):
        with changed(finished / name, None): assert name in names(finished), name
    kept = finished.parent / "checkpoint"
    shutil.move(newest := checkpoints(finished / "checkpoints")[0], kept)
    assert names(finished) == [f"checkpoints/{newest.name}/manifest.json"]
    shutil.move(kept, newest)
    assert verify(finished).whole


@pytest.mark.faults(15)
@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "manifest.json.bak", "plots/old.png", "videos/x/y", "checkpoints/notes", "checkpoints/best/x", "new/folder/file",
                                  "metrics.000009.jsonl", "ledger.jsonl", "config.leg7.yaml", "checkpoints/step_000000000256/more"])
def test_a_foreign_file(finished: Path, name: str) -> None:
    before = {p for p in finished.rglob("*") if p.is_dir()}
    (finished / name).parent.mkdir(parents=True, exist_ok=True)
    with changed(finished / name, b"{}\n"):
        found = names(finished)
        assert name in found or name.startswith("metrics") and "metrics.jsonl" in found
    for folder in sorted({p for p in finished.rglob("*") if p.is_dir()} - before, reverse=True): folder.rmdir()
    assert verify(finished).whole


@pytest.mark.faults(15)
def test_swapped_files(finished: Path) -> None:
    known = files_of(finished)
    for a, b in zip(known, known[1:]):
        x, y = (finished / a).read_bytes(), (finished / b).read_bytes()
        if x == y: continue
        with changed(finished / a, y), changed(finished / b, x): found = set(names(finished))
        assert {a, b} <= found or HASHES in (a, b) and HASHES in found or checkpoint_of(a) == checkpoint_of(b) and a in found   # without its manifest nothing is known of a checkpoint's files
    new, old = checkpoints(finished / "checkpoints")[:2]   # whole checkpoints under each other's name
    for a, b in ((new, finished / "x"), (old, new), (finished / "x", old)): shutil.move(a, b)
    assert {f"checkpoints/{p.name}/manifest.json" for p in (new, old)} <= set(names(finished))
    for a, b in ((new, finished / "x"), (old, new), (finished / "x", old)): shutil.move(a, b)
    assert verify(finished).whole


def test_a_whole_checkpoint_of_another_run(finished: Path) -> None:
    with memory_folder() as folder:
        other = make(folder, **{"train.seed": 2, "train.total_steps": 512})
        other.train()
        newest = checkpoints(finished / "checkpoints")[0]
        theirs = other.folder / "checkpoints" / newest.name
        kept = shutil.move(newest, finished.parent / "kept")
        shutil.copytree(theirs, newest)
        assert names(finished) == [f"checkpoints/{newest.name}/manifest.json"]
        shutil.rmtree(newest)
        shutil.move(kept, newest)


def test_links_pipes_and_folders_are_no_files(finished: Path, tmp_path: Path) -> None:
    for name in ("result.json", "metrics.jsonl", HASHES, "plots/learning_curve.png"):
        path, kept = finished / name, tmp_path / "kept"
        shutil.move(path, kept)
        for put in (os.mkfifo, Path.mkdir, kept, "/dev/zero"):
            put(path) if callable(put) else path.symlink_to(put)
            assert name in names(finished), name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.move(kept, path)
    shutil.move(finished / "plots", tmp_path / "plots")
    (finished / "plots").symlink_to(tmp_path / "plots")
    assert {"plots", "plots/learning_curve.png"} <= set(names(finished))
    (finished / "plots").unlink()
    shutil.move(tmp_path / "plots", finished / "plots")
    assert verify(finished).whole


@pytest.mark.faults(16, 35)
def test_a_hostile_record(finished: Path) -> None:
    record = read_record(finished)
    assert record
    for bad in (b"[1]", b"{}", b"null", b"[" * 10**5, b'{"files": 1}', b"\xff", spell_record(record).replace(b'"version": 1', b'"version": 2')):
        with changed(finished / HASHES, bad): assert HASHES in names(finished)
    there = hash_file(Path("/etc/passwd"))
    for odd in ({"../../../etc/passwd": there}, {"/etc/passwd": there}, {"metrics.jsonl": there | {"bytes": -1}}):   # never opened: such a record is refused as a whole
        for part in ({"files": odd}, {"lines": odd}, {"marks": {"step_000000000256": odd}}, {"changing": odd}):
            with changed(finished / HASHES, spell_record(replace(record, **part))): assert names(finished) == [HASHES]


def test_a_copy_and_a_moved_folder_are_whole(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "elsewhere" / "b"))
    assert verify(copy).whole and verify(copy).sealed
    assert verify(shutil.move(copy, tmp_path / "c")).whole
    assert verify("c", runs_dir=tmp_path).whole


# ---- every kill point --------------------------------------------------------------------------------------------------

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}
watcher: list[Callable[[], None]] = []   # called before the disk changes


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not watcher or event not in WRITES: return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)): return
    call = watcher.pop()   # what it does itself is not watched
    try: call()
    finally: watcher.append(call)


@contextmanager
def at_each_write(call: Callable[[], None]) -> Iterator[None]:
    "Inside, `call` sees the disk as a kill would leave it: before each change of a name, and before each opening for writing"
    if not getattr(_audit, "added", False):
        sys.addaudithook(_audit)
        _audit.added = True   # type: ignore[attr-defined]
    watcher.append(call)
    try: yield
    finally: watcher.remove(call)


class StopAt(Callback):
    "Interrupts a training, as Ctrl-C does"
    name = "stop_at"

    def __init__(self, step: int) -> None: self.step = step

    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.env_steps >= self.step: trainer.stop("test", interrupt=True)


def life(folder: Path) -> Iterator[str]:
    "A run that is interrupted, loses its newest checkpoint, goes on, ends, is judged, and gets a second leg"
    run = make(folder)
    yield "made"
    run.train([StopAt(160)])
    yield "interrupted"
    newest = checkpoints(run.folder / "checkpoints")[0] / "state.json"
    newest.write_bytes(b"damaged" + newest.read_bytes())
    with pytest.warns(UserWarning, match="damaged"): Run.open(run.folder, settings=Settings()).train()
    yield "completed"
    Run.open(run.folder, settings=Settings()).evaluate(episodes=3)
    yield "judged"
    Run.open(run.folder, {"train.total_steps": 320}, settings=Settings()).train()
    yield "completed again"


def kills(folder: Path, keep: Path | None = None) -> tuple[int, list[str]]:
    "Live through a run; how many moments there were, and what looked damaged in one of them; every 17th is kept in a folder"
    moments, wrong = 0, []

    def look() -> None:
        nonlocal moments
        moments += 1
        if not (folder / "a" / "config.yaml").exists(): return
        found = verify(folder / "a")
        lost = [d for d in found.damage if "state.json" not in d.file or "damaged" not in str(d) and "expected" not in str(d)]
        if lost: wrong.append(f"{moments}: {found}")
        if keep and moments % 17 == 0 and not found.damage: shutil.copytree(folder / "a", keep / f"{moments}")

    with at_each_write(look):
        for part in life(folder):
            watcher.clear()
            if part != "interrupted": assert verify(folder / "a").whole, part
            watcher.append(look)
    return moments, wrong


@pytest.mark.faults(1, 2, 4)
def test_no_kill_at_any_moment_is_damage_and_each_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    with memory_folder() as folder, memory_folder() as keep:
        moments, wrong = kills(folder, keep)
        assert wrong == [] and moments > 300
        kept = sorted(keep.iterdir(), key=lambda p: int(p.name))
        assert len(kept) > 10
        for path in kept[:: max(1, len(kept) // 8)]:
            run = Run.open(path, settings=Settings())
            run.train()
            assert verify(path).whole and verify(path).sealed, path.name
            run.evaluate(episodes=2)
            assert verify(path).whole and verify(path).uncovered == ()


def test_the_walk_over_all_kills_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(self: Hashes, name: str, data: bytes) -> None:   # the hash after the file: wrong in between
        (self.folder / name).write_bytes(data)
        if record := self.load():
            record.files[name] = stamp_of(data)
            self.save(record)
    monkeypatch.setattr(Hashes, "put", put)
    with memory_folder() as folder: assert any("manifest.json" in w for w in kills(folder)[1])


def test_a_disk_that_fails_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_folder() as folder:
        whole = make(folder, "whole").train()["weights_sha256"]
        tried = 0
        for k in range(1, 150, 13):
            run = make(folder, f"k{k}")
            disk = FaultyOS(k, fails(28))
            with monkeypatch.context() as patch:
                patch.setattr(files_module, "os", disk)
                try: run.train()
                except (ValueError, OSError, CheckpointError): tried += 1
            assert verify(run).whole, f"{k}: {verify(run)}"
            assert Run.open(run.folder, settings=Settings()).train()["weights_sha256"] == whole, k
            assert verify(run).whole and verify(run).sealed, f"{k}: {verify(run)}"
        assert tried > 5


@pytest.mark.faults(1)
def test_killed_processes(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(CONFIG | dict(train=dict(total_steps=200_000, seed=1), checkpoint=dict(every=256), eval=dict(every=2048, episodes=2))))
    dice, args = random.Random(3), ["run", config, "--runs-dir", tmp_path, "--name", "k", "--quiet"]
    for _ in range(2):
        child = subprocess.Popen(["rlstudio", *map(str, args)], env=child_env(coverage=False), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        before = read_record(tmp_path / "k")
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(.05)
            try: now = read_record(tmp_path / "k")
            except FileError: pytest.fail("a record is replaced whole")
            if now and now.marks and now != before: break
        time.sleep(dice.random() / 2)
        assert child.poll() is None or child.returncode == 0, child.stderr
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = verify(tmp_path / "k")
        assert found.whole and found.recorded, str(found)
        args = ["resume", tmp_path / "k", "--quiet"]


# ---- while it trains ---------------------------------------------------------------------------------------------------

def test_a_run_that_trains_is_whole(tmp_path: Path) -> None:
    run = make(tmp_path, **{"train.total_steps": 2048, "checkpoint.every": 32, "eval.every": 256})
    training, looks = run.start(), 0
    while run.status in ("new", "running"):
        found = verify(run)
        assert found.whole, str(found)
        looks += 1
    training.wait()
    assert looks > 3 and verify(run).whole and verify(run).sealed


def test_lines_are_hashed_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n')
    hashes = Hashes(tmp_path)
    hashes.begin()
    hashes.seal()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 2}\n{"a": 3}\n')   # a checkpoint reads only what is new …
    hashes.seal()
    record = read_record(tmp_path)
    assert record and record.lines["metrics.000001.jsonl"] == stamp_of(b'{"a": 1}\n{"a": 3}\n')   # … so damage is never blessed
    Hashes(tmp_path).seal()   # nor by another process, which reads all of it
    assert read_record(tmp_path) == record


# ---- who believes what -------------------------------------------------------------------------------------------------

@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    "A copy that may be damaged"
    return Path(shutil.copytree(finished, tmp_path / "runs" / "a"))


def test_a_wrong_result_is_not_believed(copy: Path) -> None:
    result = copy / "result.json"
    facts = json.loads(result.read_text())
    result.write_text(json.dumps(facts | dict(eval_return_mean=1e9), indent=2))
    for call in (lambda: Run.open(copy, settings=Settings()).train(), lambda: Run.open(copy, settings=Settings()).read("result.json")):
        with pytest.raises(RunError, match=r"result\.json: damaged.*remove it"): call()
    result.unlink()
    assert Run.open(copy, settings=Settings()).train()["weights_sha256"] == facts["weights_sha256"]   # as the message says
    assert verify(copy).whole


def test_damage_is_not_blessed_by_training_on(copy: Path) -> None:
    manifest = copy / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(good.replace('"L3"', '"L2"', 1))
    with pytest.raises(RunError, match=r"manifest\.json: damaged"): Run.open(copy, {"train.total_steps": 600}, settings=Settings()).train()
    manifest.write_text(good)
    line = copy / "metrics.000001.jsonl"
    line.write_bytes(line.read_bytes().replace(b"1", b"2", 1))
    Run.open(copy, {"train.total_steps": 600}, settings=Settings()).train()
    assert names(copy) == ["metrics.000001.jsonl"]


def test_a_config_that_its_user_edits(copy: Path) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("total_steps: 512", "total_steps: 600  # more"))
    assert names(copy) == ["config.yaml"] and "takes that over" in str(verify(copy))
    Run.open(copy, settings=Settings()).train()
    assert verify(copy).whole and "# more" in config.read_text()


def test_damage_is_said_where_a_file_is_written_anew(copy: Path) -> None:
    evaluations = copy / "evaluations.json"
    evaluations.write_text(evaluations.read_text().replace("64", "65", 1))
    run = Run.open(copy, settings=Settings())
    with pytest.raises(RunError, match=r"evaluations\.json: damaged"): run.evaluate(episodes=2)
    with pytest.warns(UserWarning, match="written anew"): run.files.keep([])


def test_exit_codes(copy: Path, tmp_path: Path) -> None:
    done = sh("rlstudio", "verify", copy, "--json", cwd=tmp_path, coverage=False)
    assert done.returncode == 0 and json.loads(done.stdout)["whole"], said(done)
    curve = copy / "plots" / "learning_curve.png"
    curve.write_bytes(curve.read_bytes()[::-1])
    done = sh("rlstudio", "verify", "a", cwd=tmp_path, coverage=False)
    assert done.returncode == 3 and "plots/learning_curve.png: SHA-256" in done.stdout and "Traceback" not in done.stderr, said(done)
    done = sh("rlstudio", "verify", "nothing", cwd=tmp_path, coverage=False)
    assert done.returncode == 2 and "not a run" in done.stderr, said(done)


# ---- runs without a record ---------------------------------------------------------------------------------------------

def without_record(folder: Path) -> Path:
    "As an older RLStudio would have written it"
    (folder / HASHES).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("hashes")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_older_run_says_what_could_not_be_checked(copy: Path) -> None:
    assert HASHES in [p.name for p in copy.iterdir()]
    (copy / HASHES).rename(copy.parent / "x")
    assert names(copy) == [HASHES]   # it had one
    (copy.parent / "x").rename(copy / HASHES)
    found: Verified = verify(without_record(copy))
    assert found.whole and not found.recorded and {"config.yaml", "result.json", "plots/learning_curve.png"} <= set(found.uncovered)
    assert "only checkpoints are covered" in str(found)
    with changed(copy / "result.json", b'{"weights_sha256": "0"}'): assert names(copy) == ["result.json"]
    with changed(copy / "metrics.jsonl", b"{}\nno\n"): assert names(copy) == ["metrics.jsonl"]
    state = checkpoints(copy / "checkpoints")[0] / "state.json"
    with changed(state, b"{}"): assert names(copy) == [f"checkpoints/{state.parent.name}/state.json"]
    Run.open(copy, settings=Settings()).evaluate(episodes=2)
    assert not (copy / HASHES).exists()   # looking on makes no record …
    Run.open(copy, {"train.total_steps": 600}, settings=Settings()).train()
    assert verify(copy).whole and verify(copy).recorded and verify(copy).uncovered == ()   # … training on does


def test_a_note_within_a_save_is_no_damage(tmp_path: Path) -> None:
    "Another thread notes a fact while checkpoints are announced, and so does this one"
    run = make(tmp_path, "noted")
    run.train()
    files, told = run.files, threading.Event()
    files.hashes.begin(256)
    other = threading.Thread(target=lambda: (told.set(), files.note(other=1)))
    with files.hashes.changing(["checkpoints/"]):
        other.start()
        assert told.wait(10)
        files.note(own=1)
    other.join(10)
    files.hashes.seal()
    assert verify(run).whole and run.files.manifest["other"] == run.files.manifest["own"] == 1


def test_a_run_without_its_manifest_is_not_an_old_one(finished: Path, tmp_path: Path) -> None:
    "Whoever removes all that covers the files has not made them whole; nor does a manifest that is none"
    bare = shutil.copytree(finished, tmp_path / "bare")
    for name in ("manifest.json", HASHES, "ledger.jsonl", "result.json"): (bare / name).unlink(missing_ok=True)
    assert [str(d) for d in verify(bare).damage] == ["manifest.json: missing"]
    (bare / "manifest.json").write_text("[]")
    assert [d.file for d in verify(bare).damage] == ["manifest.json"]


def test_a_record_with_a_key_of_somebody_else(finished: Path, tmp_path: Path) -> None:
    "It is named, with what to do; and lines are added to no file that has a second name"
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / HASHES).write_text(json.dumps(json.loads((copy / HASHES).read_text()) | {"odd": 1}))
    with pytest.raises(FileError, match="given the key 'odd', expected one of version.*put it back from a copy, or remove it"): read_record(copy)
    linked = shutil.copytree(shutil.copytree(finished, tmp_path / "plain"), tmp_path / "linked", copy_function=os.link)
    with pytest.raises(FileError, match="a second name"): Run.open(linked, {"train.total_steps": 1024}).train(display="silent")
    assert verify(linked).whole and verify(tmp_path / "plain").whole
