"Checkpoints under every kill, full disk, flipped bit and hostile file (chapter runs.checkpoint)."
import errno
import hashlib
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from checkpoint_cases import META, STATE, same, save
from faults import FaultyOS, child, fails, half, memory_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlstudio.core import files
from rlstudio.runs import checkpoint as module
from rlstudio.runs.checkpoint import (
    ARRAYS,
    CODES,
    CRASH_POINTS,
    MANIFEST,
    TREE,
    CheckpointError,
    checkpoint_path,
    checkpoints,
    crash_point,
    latest_checkpoint,
    layout_header,
    load_checkpoint,
    pack,
    parse_json,
    prune,
    save_checkpoint,
    spell,
)

FILES = (MANIFEST, TREE, ARRAYS)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as folder: yield folder


def why(path: Path) -> str:
    "The reason for which a checkpoint is refused, in one printable piece"
    with pytest.raises(CheckpointError) as e: load_checkpoint(path)
    assert len(str(e.value)) < 2000 and str(e.value).replace("\n", "").isprintable()
    return str(e.value)


def forge(path: Path, edit: Callable[[dict], Any] = lambda doc: None, **files: bytes) -> None:
    "What an attacker does: change files, and make every hash right again"
    doc = json.loads((path / MANIFEST).read_bytes())
    for name, data in files.items():
        name = {"tree": TREE, "arrays": ARRAYS}[name]
        (path / name).write_bytes(data)
        doc["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    doc = edit(doc) or doc
    doc.pop("sha256", None)
    (path / MANIFEST).write_bytes(spell(doc | {"sha256": hashlib.sha256(spell(doc)).hexdigest()}))


# ---- what goes in comes out --------------------------------------------------------------------------------------------

def test_round_trip(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 5))
    assert same(STATE | {"step": 5}, loaded.state) and loaded.meta == META and loaded.step == 5
    loaded.state["replay"][0] = 7  # the arrays are ours to change
    loaded.state["algo"]["module"]["actor.0.bias"].add_(1)
    assert "state" not in repr(loaded)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (3, 5), (2, 3, 4)])
def test_every_dtype_and_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(math.prod(shape)) % 5).reshape(shape).to(getattr(torch, name))
    state = {"t": tensor, "view": tensor.expand(2, *shape)}
    if name != "bfloat16":
        array = tensor.numpy()
        state |= {"a": array, "turned": array.T, "strided": np.stack([array, array])[::-1], "big": array.astype(array.dtype.newbyteorder(">"))}
    assert same(state, load_checkpoint(save_checkpoint(tmp_path, 0, state)).state)


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -2**63, 2**63, -2**64, 2**4095, True, False, None, 0.1, -0.0, 5e-324, 1.7e308, math.nan,
                                   math.inf, -math.inf, "", "ü\u2028\0\ud800$", [], {}, [[], {}], {"": 1}, ["$array"], "$array", (1, (2,))])
def test_every_value(tmp_path: Path, value: Any) -> None:
    assert same({"x": value}, load_checkpoint(save_checkpoint(tmp_path, 0, {"x": value})).state)


def test_nan_payloads_and_negative_zeros_keep_their_bits(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x7F800000], np.uint32).view(np.float32)
    assert same({"x": bits, "t": torch.from_numpy(bits)}, load_checkpoint(save_checkpoint(tmp_path, 0, {"x": bits, "t": torch.from_numpy(bits)})).state)


LEAVES = (st.none() | st.booleans() | st.integers(-2**200, 2**200) | st.floats() | st.text(max_size=9)
          | hnp.arrays(st.sampled_from(["?", "u1", "i8", "f4", "f8"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
KEYS = st.text(max_size=6).filter(lambda k: not k.startswith("$"))
TREES = st.dictionaries(KEYS, st.recursive(LEAVES, lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=4), max_leaves=12),
                        max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TREES)
def test_any_tree(state: dict) -> None:
    with memory_folder() as folder:
        try: path = save_checkpoint(folder, 1, state)
        except CheckpointError as e:
            assert "rename a key" in str(e)  # {'': …} and {'a/b': …} can name two arrays alike
            return
        loaded = load_checkpoint(path)
        assert same(state, loaded.state)
        assert load_checkpoint(save_checkpoint(folder, 2, loaded.state)).digest == loaded.digest


@pytest.mark.parametrize("state", [
    {1: 2}, {None: 1}, {b"a": 1}, {("a",): 1}, {"$array": "x"}, {"a": object()}, {"a": {1, 2}}, {"a": b"x"}, {"a": 1j}, {"a": 2**5000},
    {"a": np.array(["x"])}, {"a": np.array([object()])}, {"a": np.zeros(2, complex)}, {"a": np.zeros(2, "M8[s]")}, {"a": np.zeros(2, "f4,i4")},
    {"a": torch.zeros(2, dtype=torch.complex64)}, {"a": torch.eye(2).to_sparse()}, {"a": np.ma.zeros(2)}, {"__metadata__": np.zeros(2)},
    {"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)}, {"a": [np.zeros(1)], "a/0": np.zeros(1)}, {"a": "x" * 2**24}, {"a": lambda: 0}, {"a": pickle},
], ids=lambda s: ascii(next(iter(s.items())))[:30].partition(" at 0x")[0])
def test_what_cannot_be_kept_exactly_is_refused_and_leaves_nothing(tmp_path: Path, state: Any) -> None:
    with pytest.raises(CheckpointError): save_checkpoint(tmp_path, 0, state)
    assert list(tmp_path.iterdir()) == []


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    state: dict = {}
    state["self"] = state
    with pytest.raises(CheckpointError, match="nested deeper than 64"): save_checkpoint(tmp_path, 0, state)


def test_safetensors_reads_ours(tmp_path: Path) -> None:
    "An independent reader; it also checks alignment, order and the absence of holes"
    path = save(tmp_path, 1) / ARRAYS
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == {"algo/module/actor.0.weight", "algo/module/actor.0.bias", "algo/adam/m", "envs/0/obs", "envs/0/done",
                             "replay", "empty", "count"}
    assert theirs["algo/adam/m"].equal(STATE["algo"]["adam"]["m"]) and theirs["replay"].numpy().tolist() == STATE["replay"].tolist()
    plain = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.int8)}
    assert b"".join(pack(plain)) == safetensors.numpy.save(plain)  # even the same bytes


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    ours = save(tmp_path, 1)
    code = "import os, sys\nfrom checkpoint_cases import *\nos.chdir(sys.argv[1])\nsave(Path('elsewhere'), 1)"
    child(code, tmp_path, PYTHONHASHSEED="77", TZ="Asia/Kathmandu", LC_ALL="C")
    theirs = tmp_path / "elsewhere" / ours.name
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in FILES)


def test_generators_and_optimisers_go_on_where_they_were(tmp_path: Path) -> None:
    rng, mt, gen = np.random.default_rng(3), np.random.Generator(np.random.MT19937(3)), torch.Generator().manual_seed(3)
    for g in (rng, mt): g.normal(size=17)
    state = {"pcg": rng.bit_generator.state, "mt": mt.bit_generator.state, "torch": gen.get_state()}
    back = load_checkpoint(save_checkpoint(tmp_path, 0, state)).state
    other = np.random.default_rng(0)
    other.bit_generator.state = back["pcg"]
    assert (other.normal(size=9) == rng.normal(size=9)).all()
    twister = np.random.Generator(np.random.MT19937(0))
    twister.bit_generator.state = back["mt"]
    assert (twister.normal(size=9) == mt.normal(size=9)).all()
    again = torch.Generator()
    again.set_state(back["torch"])
    assert torch.rand(9, generator=again).equal(torch.rand(9, generator=gen))


# ---- killed ------------------------------------------------------------------------------------------------------------

KILL_AT_EACH_CALL = """
import os, signal, sys
from pathlib import Path
from faults import FaultyOS
from rlstudio.runs import checkpoint
from rlstudio.core import files
from checkpoint_cases import save
for at in range(1, int(sys.argv[2]) + 1):
    pid = os.fork()
    if pid: os.waitpid(pid, 0); continue
    folder = Path(sys.argv[1])/str(at)
    checkpoint.os = files.os = FaultyOS(at, lambda *a: os.kill(os.getpid(), signal.SIGKILL))
    try:
        for step in (20, 30): save(folder, step)
        checkpoint.prune(folder, keep=1)
        (folder/'done').touch()
    finally: os._exit(0)
"""


@pytest.mark.faults(2, 5, 6)
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path) -> None:
    "Step 10 is whole, 20 is there but damaged: the child replaces 20, adds 30, prunes, and dies at its k-th call"
    calls, newest = 90, []
    for at in range(1, calls + 1):
        save(tmp_path / str(at), 10)
        damaged = save(tmp_path / str(at), 20) / ARRAYS
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    child(KILL_AT_EACH_CALL, tmp_path, calls)
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        found, rejected = latest_checkpoint(folder)
        assert same(STATE | {"step": found.step}, found.state)
        assert all(p.name == "step_000000000020" for p, _ in rejected)  # only the one that was damaged before
        newest.append(found.step)
        after = save(folder, 40)  # life goes on
        assert latest_checkpoint(folder)[0].path == after
        prune(folder, keep=2)
        assert not list(folder.glob(".tmp-*")) and checkpoints(folder)[0] == after
    assert newest == sorted(newest) and set(newest) == {10, 20, 30}  # the later the kill, the newer the checkpoint
    assert (tmp_path / str(calls) / "done").exists()  # and the last was late enough to miss


KILL_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
from rlstudio.runs.checkpoint import latest_checkpoint, prune
from checkpoint_cases import STATE, same, save
folder, dice, acknowledged = Path(sys.argv[1]), random.Random(0), 0
save(folder, 0)
for trial in range(int(sys.argv[2])):
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        for step in range(acknowledged + 1, acknowledged + 10**6):
            if not (folder/f'step_{step:012d}').exists(): save(folder, step)
            os.write(theirs, b'%d\\n' % step)
            prune(folder, keep=2)
    time.sleep(dice.random() * .02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(theirs)
    with os.fdopen(ours, 'rb') as f: acknowledged = max([acknowledged, *map(int, f.read().split())])
    found, rejected = latest_checkpoint(folder)
    assert found.step in (acknowledged, acknowledged + 1), (found.step, acknowledged)
    assert not rejected and same(STATE | {'step': found.step}, found.state)
print(acknowledged)
"""


@pytest.mark.faults(1, 2)
def test_killed_at_random_times(tmp_path: Path) -> None:
    "What `save_checkpoint` returned from is never lost, and never more than one step is unacknowledged"
    assert int(child(KILL_AT_RANDOM, tmp_path, 100).stdout) > 30


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any: raise KeyboardInterrupt
    save(tmp_path, 1)
    for at in range(1, 12):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            faulty = FaultyOS(at, interrupt)
            patch.setattr(module, "os", faulty)
            patch.setattr(files, "os", faulty)
            save(tmp_path, 2)
        assert [p.name for p in tmp_path.iterdir()] == ["step_000000000001"]


@pytest.mark.faults(2)
def test_crash_points_are_all_reached_and_only_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "crash_point", seen.append)
    for step in (1, 2): save(tmp_path, step)
    prune(tmp_path, keep=1)
    assert seen == [*CRASH_POINTS[:-1]] * 2 + [CRASH_POINTS[-1]]
    monkeypatch.setenv("RLSTUDIO_CRASH_AT", "somewhere else")
    crash_point("folder synced")


# ---- full disks and bad disks ------------------------------------------------------------------------------------------

@pytest.mark.faults(8)
@pytest.mark.parametrize("fault", [fails(errno.ENOSPC), fails(errno.EIO), fails(errno.EROFS), half], ids=["ENOSPC", "EIO", "EROFS", "half"])
def test_the_kth_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]) -> None:
    "Never 'saved' when it was not; the earlier checkpoint untouched; the next try works"
    outcomes = []
    for at in range(1, 40):
        folder = tmp_path / str(at)
        digest = load_checkpoint(save(folder, 1)).digest
        with monkeypatch.context() as patch:
            faulty = FaultyOS(at, fault)
            patch.setattr(module, "os", faulty)
            patch.setattr(files, "os", faulty)
            try: saved = load_checkpoint(save(folder, 2)).step == 2
            except CheckpointError as e:
                saved = False
                assert "was not saved" in str(e) or at > faulty.count - 8
        outcomes.append(saved)
        assert load_checkpoint(checkpoint_path(folder, 1)).digest == digest
        assert latest_checkpoint(folder)[0].step in ((2,) if saved else (1, 2)) and not list(folder.glob(".tmp-*"))
        assert latest_checkpoint(folder)[0].path == checkpoints(folder)[0]  # no half a checkpoint under a real name
        save(folder, 3)
        assert latest_checkpoint(folder)[0].step == 3
    assert not all(outcomes[:16]) and all(outcomes[-5:])


@pytest.mark.faults(9)
def test_every_fsync_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Three files, their folder, the parent: if any of the five fails the checkpoint was not saved"
    save(tmp_path, 1)
    synced: list[str] = []
    for at in range(1, 6):
        def fsync(fd: int, at: int = at) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            if len(synced) == at: raise OSError(errno.EIO, "Input/output error")
            os.fsync(fd)

        class Disk:
            def __getattr__(self, name: str, fsync: Any = fsync) -> Any: return fsync if name == "fsync" else getattr(os, name)

        synced.clear()
        with monkeypatch.context() as patch:
            for m in (module, files): patch.setattr(m, "os", Disk())
            with pytest.raises(CheckpointError, match="was not saved: .*Input/output error; others are untouched"): save(tmp_path, at + 1)
    assert synced[:3] == [TREE, ARRAYS, MANIFEST] and synced[3].startswith(".tmp-step_") and synced[4] == tmp_path.name


@pytest.mark.faults(10)
def test_rlimit_fsize(tmp_path: Path) -> None:
    save(tmp_path, 1)
    done = child("""
import resource, sys
from pathlib import Path
from checkpoint_cases import *
from rlstudio.runs.checkpoint import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try: save(Path(sys.argv[1]), 2, big=np.zeros(10**4))
except CheckpointError as e: print(e)
""", tmp_path)
    assert "was not saved" in done.stdout and "too large" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000001"] and latest_checkpoint(tmp_path)[0].step == 1


@pytest.mark.faults(12)
def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/self/nowhere"), Path("/dev/null")):
        with pytest.raises(CheckpointError, match="was not saved"): save(folder, 1)


# ---- damaged -----------------------------------------------------------------------------------------------------------

@pytest.mark.faults(13, 16)
def test_1000_random_bit_flips_and_every_bit_of_the_manifest(tmp_path: Path) -> None:
    path, dice = save(tmp_path, 1), random.Random(0)
    load_checkpoint(path)
    content = {name: (path / name).read_bytes() for name in FILES}
    flips = [(MANIFEST, bit) for bit in range(8 * len(content[MANIFEST]))]
    for _ in range(1000):
        name = dice.choice(FILES)
        flips.append((name, dice.randrange(8 * len(content[name]))))
    for name, bit in flips:
        bad = bytearray(content[name])
        bad[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name): load_checkpoint(path)
        (path / name).write_bytes(content[name])
    load_checkpoint(path)


@pytest.mark.faults(14)
@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_other_tails(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    good = (path / name).read_bytes()
    step = 1 if len(good) < 1500 else 3
    bad = [good[:n] for n in range(0, len(good), step)] + [good + b"\0", good + good, b"\0" * len(good)]
    bad += [good[:-n] + b"\0" * n for n in (1, 2, 16, 100)] + [good[1:], b"\n" + good, good.rstrip() + b"\r\n", good[::-1]]
    for data in bad:
        if data == good: continue
        (path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name): load_checkpoint(path)
    (path / name).write_bytes(good)
    load_checkpoint(path)


@pytest.mark.faults(15)
@pytest.mark.parametrize("name", FILES)
def test_swapped_missing_and_odd_files(tmp_path: Path, name: str) -> None:
    one, two = save(tmp_path, 1), save(tmp_path, 2, more=np.ones(3))
    outside = tmp_path / "outside"
    shutil.copy(one / name, outside)
    (one / name).unlink()
    assert name in why(one) and "without" in why(one)
    shutil.copy(two / name, one / name)
    assert ("manifest of step 2" if name == MANIFEST else name) in why(one)
    for make in (lambda p: p.symlink_to(outside), lambda p: p.symlink_to("/dev/zero"), Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p)):
        (one / name).unlink()
        make(one / name)
        assert "not regular files" in why(one)
        if (one / name).is_dir() and not (one / name).is_symlink():
            (one / name).rmdir()
            (one / name).touch()
    (one / name).unlink()
    shutil.copy(outside, one / name)
    load_checkpoint(one)


@pytest.mark.faults(15)
@pytest.mark.parametrize("name", ["extra", ".hidden", "state.json~", "state.pkl", "STATE.JSON", "a\nb\x1b[2J", "ü" * 80])
def test_files_that_do_not_belong(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    (path / name).touch()
    assert "unexpected" in why(path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (tmp_path / "link").symlink_to(path)
    for odd, reason in ((tmp_path / "link", "only a link"), (tmp_path / "no", "No such file"), (path / TREE, "no folder"),
                        (tmp_path, "without"), (Path("/dev/zero"), "no folder")):
        assert reason in why(odd)
    best = tmp_path / "best"  # a copy under a name of one's own is fine; under another step's it is not
    shutil.copytree(path, best)
    assert load_checkpoint(best).step == 1
    os.rename(best, checkpoint_path(tmp_path, 9))
    assert "manifest of step 1" in why(checkpoint_path(tmp_path, 9))


def test_a_link_that_appears_after_the_look_at_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    monkeypatch.setattr(module, "_check_names", lambda path: None)
    for name in (TREE, ARRAYS):
        os.rename(path / name, tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
        assert name in why(path)
        os.replace(tmp_path / name, path / name)
    os.rename(path / MANIFEST, tmp_path / MANIFEST)
    (path / MANIFEST).symlink_to(tmp_path / MANIFEST)
    assert MANIFEST in why(path) and "given a link" in why(path)


@pytest.mark.faults(6, 17, 18)
def test_the_newest_whole_one_by_step(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (1, 10, 100)]
    os.utime(paths[0], (2e9, 2e9))  # the clock is not asked
    assert latest_checkpoint(tmp_path)[0].step == 100
    for path, name in zip(paths[1:], (TREE, MANIFEST)):
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[:50] + b"!" + data[51:])
    shutil.copytree(paths[0], tmp_path / ".tmp-step_000000000999-aa")
    shutil.copytree(paths[0], tmp_path / "step_9")
    shutil.copytree(paths[0], tmp_path / "step_000000000999.bak")
    (tmp_path / "step_000000000500").symlink_to(paths[0])
    (tmp_path / "step_000000000600").touch()
    found, rejected = latest_checkpoint(tmp_path)
    assert found.step == 1 and [p.name[-3:] for p, _ in rejected] == ["600", "500", "100", "010"]
    assert MANIFEST in rejected[2][1] and TREE in rejected[3][1]
    (paths[0] / ARRAYS).unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint") as e: latest_checkpoint(tmp_path)
    assert str(e.value).count("\n") == 4  # a line for each


@pytest.mark.faults(17)
def test_prune_never_takes_the_last_whole_one(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in range(1, 6)]
    for path in paths[2:]: (path / ARRAYS).write_bytes(b"")
    assert prune(tmp_path, keep=1) == [paths[0]]
    assert latest_checkpoint(tmp_path)[0].path == paths[1] and all(p.exists() for p in paths[1:])
    assert prune(tmp_path, keep=3) == [] and prune(tmp_path / "nowhere", keep=1) == []


@pytest.mark.faults(5)
def test_prune_interrupted_leaves_no_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3): save(tmp_path, step)

    def rmtree(path: Path, **kwargs: Any) -> None:
        (path / TREE).unlink()
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot delete old checkpoints"):
        patch.setattr(shutil, "rmtree", rmtree)
        prune(tmp_path, keep=1)
    for path in checkpoints(tmp_path): load_checkpoint(path)
    prune(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000003"]


@pytest.mark.faults(17)
def test_a_damaged_namesake_moves_aside(tmp_path: Path) -> None:
    (save(tmp_path, 1) / MANIFEST).write_bytes(b"{}")
    (tmp_path / "step_000000000002").symlink_to("/nowhere")
    (tmp_path / "step_000000000003").touch()
    for step in (1, 2, 3): assert load_checkpoint(save(tmp_path, step)).step == step
    assert len(list(tmp_path.glob(".damaged-step_*"))) == 3
    assert prune(tmp_path, keep=1) and len(list(tmp_path.glob(".damaged-step_*"))) == 3  # evidence stays


# ---- hostile: every hash is right --------------------------------------------------------------------------------------

def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": list(offsets)}


def tensors(fields: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


class Bomb:
    def __reduce__(self) -> tuple: return (Path.touch, (Path("/tmp/rlstudio-was-executed"),))


def npy(x: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    return out.getvalue()


HOSTILE_ARRAYS = {
    "pickle": pickle.dumps(Bomb()), "npy": npy(np.zeros(3)), "pickle in npy": npy(np.array([Bomb()])), "zip": b"PK\3\4" + b"\0" * 100,
    "empty": b"", "short": b"\0" * 7, "length 2**63": tensors({}, length=2**63), "length 2**64-1": tensors({}, length=2**64 - 1),
    "length beyond": tensors({"x": entry()}, length=10**6), "length 0": tensors({}, b"", length=0), "1 TiB": tensors({"x": entry(shape=(2**38,), offsets=(0, 2**40))}),
    "overflow": tensors({"x": entry(shape=(2**32, 2**32), offsets=(0, 0))}), "overflow to 8": tensors({"x": entry(shape=(2**62 + 2,))}),
    "zero but huge": tensors({"x": entry(shape=(0, 2**62), offsets=(0, 0))}, b""), "negative": tensors({"x": entry(shape=(-2,))}),
    "two negatives": tensors({"x": entry(shape=(-1, -2))}), "float": tensors({"x": entry(shape=(2.0,))}), "bool": tensors({"x": entry(shape=(True, 2))}),
    "string": tensors({"x": entry(shape="2")}), "dims": tensors({"x": entry(shape=(1,) * 1000 + (2,))}), "no dtype": tensors({"x": {"shape": [2]}}),
    "dtype": tensors({"x": entry("F31")}), "dtype path": tensors({"x": entry("os.system")}), "dtype list": tensors({"x": entry(["F32"])}),
    "hole before": tensors({"x": entry(offsets=(8, 16))}, b"\0" * 16), "hole after": tensors({"x": entry()}, b"\0" * 16),
    "overlap": tensors({"x": entry(), "y": entry(offsets=(4, 12))}, b"\0" * 12), "same bytes": tensors({"x": entry(), "y": entry()}),
    "backwards": tensors({"x": entry(offsets=(8, 0))}), "offset 2**64": tensors({"x": entry(offsets=(0, 2**64))}),
    "duplicate": tensors(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "list": tensors([]), "null": tensors(None), "NaN": tensors(b'{"x":NaN}'), "not JSON": tensors(b"<html>  "), "deep": tensors(b"[" * 10**5),
    "deep dict": tensors(b'{"a":' * 10**5), "huge int": tensors(b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
    "spaces": tensors(b'{ "x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "metadata": tensors({"__metadata__": {"a": "b"}, "x": entry()}),
    "a million": tensors({f"x{i}": entry("U8", (0,), (0, 0)) for i in range(10**6)}, b""), "bad UTF-8": tensors(b'{"\xff\xfe":1}'),
    "bool of 2": tensors({"x": entry("BOOL", (8,))}, b"\2" * 8), "other name": tensors({"y": entry()}), "one more": tensors({"x": entry(), "y": entry(offsets=(8, 16))}, b"\0" * 16),
    "bfloat16 for NumPy": tensors({"x": entry("BF16", (4,))}), "none": tensors({}, b""), "../": tensors({"../../x": entry()}), "extra key": tensors({"x": entry() | {"class": "os.system"}}),
}


@pytest.fixture(scope="module")
def victim() -> Iterator[Path]:
    with memory_folder() as folder: yield save_checkpoint(folder, 1, {"x": np.zeros(2, np.float32), "y": 1})


@pytest.mark.faults(35, 36)
@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays(victim: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forge(victim, arrays=HOSTILE_ARRAYS[name], tree=spell({"x": {"$array": "x"}}))
    sound_alone = ("other name", "one more", "none", "../", "bfloat16 for NumPy")  # but not what the tree asks for
    assert (TREE if name in sound_alone else ARRAYS) in why(victim)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    assert not Path("/tmp/rlstudio-was-executed").exists()


def test_the_forger_can_forge(victim: Path) -> None:
    "Else the tests above would show nothing"
    forge(victim, arrays=tensors({"x": entry()}), tree=spell({"x": {"$array": "x"}, "y": 2}))
    assert load_checkpoint(victim).state["y"] == 2 and load_checkpoint(victim).state["x"].tolist() == [0, 0]


HOSTILE_TREES = {
    "deep": b"[" * 10**5, "deep dict": b'{"a":' * 10**5, "NaN": b'{\n "a": NaN\n}\n', "Infinity": b'{\n "a": -Infinity\n}\n', "1e400": b'{\n "a": 1e400\n}\n',
    "huge int": b'{\n "a": ' + b"9" * 10**5 + b"\n}\n", "duplicate": b'{\n "a": 1,\n "a": 2\n}\n', "compact": b'{"a":1}', "list": spell([]), "number": spell(1),
    "text": b"hello", "empty": b"", "pickle": pickle.dumps(Bomb()), "bad UTF-8": b'"\xff"', "UTF-16": '{"a":1}'.encode("utf-16"), "BOM": b"\xef\xbb\xbf{}\n",
    "depth 100": spell(json.loads('{"a":' * 100 + "1" + "}" * 100)), "unknown tag": spell({"x": {"$class": "os.system"}}), "unsorted": b'{\n "b": 1,\n "a": 2\n}\n',
    "two tags": spell({"x": {"$array": "x", "$int": "1"}}), "tag and key": spell({"x": {"$array": "x", "a": 1}}), "target": spell({"x": {"$array": "x"}, "$": 1}),
    "no such array": spell({"x": {"$array": "y"}}), "array by number": spell({"x": {"$array": 0}}), "array used twice": spell({"x": {"$array": "x"}, "y": {"$tensor": "x"}}),
    "array not used": spell({"y": 1}), "path": spell({"x": {"$array": "/etc/passwd"}}), "$int of text": spell({"x": {"$array": "x"}, "y": {"$int": "0x10"}}),
    "$int of 10**5 digits": spell({"x": {"$array": "x"}, "y": {"$int": "9" * 10**5}}), "$int in Arabic": spell({"x": {"$array": "x"}, "y": {"$int": "٣"}}),
    "$float of text": spell({"x": {"$array": "x"}, "y": {"$float": "1e999"}}), "16 MiB and more": b'{\n "a": "' + b"x" * 2**24 + b'"\n}\n',
    "50 MB": b'{\n "a": "' + b"x" * 50 * 10**6 + b'"\n}\n', "many empties": b"[" + b"[]," * 10**6 + b"[]]",
}


@pytest.mark.faults(35)
@pytest.mark.parametrize("name", HOSTILE_TREES)
def test_hostile_trees(victim: Path, name: str) -> None:
    uses_x = b"$array" in HOSTILE_TREES[name] or name == "array not used"  # so that only the tree is at fault
    forge(victim, arrays=tensors({"x": entry()}) if uses_x else tensors({}, b""), tree=HOSTILE_TREES[name])
    assert TREE in why(victim) and not Path("/tmp/rlstudio-was-executed").exists()


@pytest.mark.faults(35)
def test_what_looks_hostile_is_only_text(tmp_path: Path) -> None:
    "Nothing in a state is ever called, imported or opened: it comes back as the text that it is"
    state = {"_target_": "os.system", "class": "builtins:eval", "env": "os:system", "run": "../../x", "yaml": "!!python/object/apply:os.system [id]"}
    assert load_checkpoint(save_checkpoint(tmp_path, 0, state)).state == state


def edits() -> dict[str, Callable[[dict], Any]]:
    def setter(value: Any, *keys: str) -> Callable[[dict], Any]:
        def edit(doc: dict) -> None:
            for k in keys[:-1]: doc = doc[k]
            doc[keys[-1]] = value
        return edit
    versions = {f"version {v!r}": setter(v, "schema_version") for v in (1, 3, 999, 10**30, 0, -1, 1.0, "1", True, None, [1])}
    steps = {f"step {v!r}": setter(v, "step") for v in (2, -1, 1.0, "1", True, None, 10**30)}
    others = {
        "no version": lambda d: d.pop("schema_version") and None, "no step": lambda d: d.pop("step") and None, "no files": lambda d: d.pop("files") and None,
        "no meta": lambda d: (d.pop("meta"), d)[1], "field": setter(1, "class"), "meta list": setter([], "meta"), "meta array": setter({"x": {"$array": "x"}}, "meta"),
        "meta tag": setter({"$class": "os.system"}, "meta"), "files list": setter([], "files"), "no state.json": lambda d: d["files"].pop(TREE) and None,
        "file more": setter({"bytes": 0, "sha256": ""}, "files", "../../etc/passwd"), "absolute": setter({"bytes": 0, "sha256": ""}, "files", "/etc/passwd"),
        "stamp": setter(1, "files", TREE), "stamp null": setter(None, "files", TREE), "stamp more": setter(1, "files", TREE, "more"),
        "bytes": setter(3, "files", TREE, "bytes"), "bytes text": setter("3", "files", TREE, "bytes"), "bytes -1": setter(-1, "files", TREE, "bytes"),
        "hash": setter("0" * 64, "files", TREE, "sha256"), "hash null": setter(None, "files", ARRAYS, "sha256"), "swapped": lambda d: d["files"].update(
            {TREE: d["files"][ARRAYS], ARRAYS: d["files"][TREE]}),
    }
    return versions | steps | others


@pytest.mark.faults(16, 21, 35)
@pytest.mark.parametrize("name", edits())
def test_hostile_manifests(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    forge(path, edits()[name])
    reason = why(path)
    assert str(path) in reason
    if name in ("version 3", "version 999"): assert "upgrade it" in reason
    if name == "version 1": assert "is not one of version 1" in reason  # it claims to be old, and is not


@pytest.mark.faults(16, 35)
@pytest.mark.parametrize("data", [b"", b"null\n", b"[]\n", b"{}\n", b"\0" * 500, b"[" * 10**6, b'{"a":' * 10**5, b"x" * 10**8, b"1" * 10**6],
                         ids=["empty", "null", "list", "dict", "zeros", "deep", "deep dict", "100 MB", "number"])
def test_manifests_that_are_none(tmp_path: Path, data: bytes) -> None:
    path = save(tmp_path, 1)
    (path / MANIFEST).write_bytes(data)
    assert MANIFEST in why(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0123456789.eE+-nulltrefas \n$', max_size=40).map(str.encode))
def test_any_bytes_are_one_spelling_or_refused(data: bytes) -> None:
    try: doc = parse_json(data)
    except ValueError: return
    assert spell(doc) == data


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=9).filter(lambda k: k != "__metadata__"), hnp.arrays(st.sampled_from(["?", "u1", "i2", "f4", "f8"]),
                                                                                           hnp.array_shapes(min_dims=0, min_side=0, max_side=3)), max_size=5))
def test_headers_as_the_library_reads_them(arrays: dict) -> None:
    data = b"".join(pack(arrays))
    theirs = safetensors.numpy.load(data)
    assert theirs.keys() == arrays.keys() and all(same(arrays[k], theirs[k]) for k in arrays)
    assert layout_header({}) + b"" == b"".join(pack({}))


def test_large_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    "A memory of experience as large as the machine's can be saved and loaded"
    import tracemalloc

    from rlstudio.runs.checkpoint import LARGE
    big = np.arange(LARGE // 4 + 3, dtype=np.int32)
    tracemalloc.start()
    save_checkpoint(tmp_path, 1, {"big": big, "small": np.arange(3), "tensor": torch.ones(2)}, {})
    state = load_checkpoint(next(tmp_path.iterdir())).state
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big.nbytes / 4, f"{peak:,} bytes for an array of {big.nbytes:,}"
    assert (state["big"] == big).all() and not state["big"].flags.writeable
    assert state["small"].flags.writeable and (state["tensor"] == 1).all()
