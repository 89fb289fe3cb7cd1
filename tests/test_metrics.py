"The metrics of a run under every kill, cut, full disk and hostile line (chapter train.metrics)."
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyOS, child, fails, half, memory_folder

from rlstudio.core import files
from rlstudio.train import metrics
from rlstudio.train.metrics import (
    ASIDE,
    CURRENT,
    GLOSSARY,
    MAX_LINE,
    JSONLSink,
    MetricError,
    TensorBoardSink,
    check_name,
    encode,
    metric_files,
    read_metrics,
    rewind,
    series,
)

RECORDS = [{"step": s, "loss": s / 7, "note": "é\n" * (s % 3)} for s in range(1, 13)]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as folder: yield folder


def steps(folder: Path) -> list[int]: return [r["step"] for r in read_metrics(folder)]


def write(folder: Path, records: list[dict], rotate: int = 10**9, offset: dict | None = None) -> JSONLSink:
    sink = JSONLSink(rotate_mb=rotate / 2**20)
    sink.open(folder, offset)
    for record in records: sink.write(record)
    sink.close()
    return sink


# ---- a kill at any byte ------------------------------------------------------------------------------------------------

@pytest.mark.faults(32)
@pytest.mark.parametrize("rotate", [10**9, 150])
def test_cut_at_every_byte_readable_and_appendable(tmp_path: Path, rotate: int) -> None:
    write(tmp_path / "run", RECORDS, rotate)
    current = (tmp_path / "run" / CURRENT).read_bytes()
    before = [r["step"] for r in RECORDS][: len(RECORDS) - current.count(b"\n")]
    for cut in range(len(current) + 1):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "run", folder)
        (folder / CURRENT).write_bytes(current[:cut])
        expected = [r["step"] for r in RECORDS][: len(before) + current[:cut].count(b"\n")]
        assert steps(folder) == expected  # as it is, before any repair
        sink = write(folder, [{"step": 99}], rotate)
        torn = current[:cut][current[:cut].rfind(b"\n") + 1:]
        assert sink.torn == len(torn) and steps(folder) == [*expected, 99]
        assert (folder / ASIDE).read_bytes() == torn if torn else not (folder / ASIDE).exists()
        shutil.rmtree(folder)


@pytest.mark.faults(32)
@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff\xfe", b"x" * (3 * MAX_LINE), b"{" * 10**5, b'{"step":13}'])
def test_any_tail_goes_aside(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path, RECORDS)
    with open(tmp_path / CURRENT, "ab") as f: f.write(tail)
    assert steps(tmp_path) == list(range(1, 13))
    assert write(tmp_path, [{"step": 13}]).torn == len(tail)
    assert steps(tmp_path) == list(range(1, 14)) and (tmp_path / ASIDE).read_bytes() == tail


# ---- a kill at any system call, rotation and going back included -------------------------------------------------------

KILL_EACH = """
import os, signal, sys
from pathlib import Path
from faults import FaultyOS
from rlstudio.core import files
from rlstudio.train import metrics
from test_metrics import write
folder, action, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for at in range(1, calls + 1):
    pid = os.fork()
    if pid: os.waitpid(pid, 0); continue
    metrics.os = files.os = FaultyOS(at, lambda *a: os.kill(os.getpid(), signal.SIGKILL))
    if action == 'write': write(folder/str(at), [{'step': s} for s in range(1, 13)], 40)
    else: write(folder/str(at), [{'step': s} for s in range(6, 9)], 40, {'file': 2, 'bytes': 22})
    os._exit(0)
"""


@pytest.mark.faults(32)
def test_kill_at_every_call_while_writing_and_rotating(tmp_path: Path) -> None:
    calls, seen = 80, set()
    child(KILL_EACH, tmp_path, "write", calls)
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        done = steps(folder)
        assert done == list(range(1, len(done) + 1))
        write(folder, [{"step": len(done) + 1}], 40)
        assert steps(folder) == list(range(1, len(done) + 2))
        seen.add(len(done))
    assert seen == set(range(13))  # killed before the first record, after the last, and everywhere between


@pytest.mark.faults(32)
def test_kill_at_every_call_while_going_back(tmp_path: Path) -> None:
    "The offset is in the second file, twelve records are in four: whatever is done by halves is done again"
    calls = 60
    for at in range(1, calls + 1): write(tmp_path / str(at), [{"step": s} for s in range(1, 13)], 40)
    offset = {"file": 2, "bytes": 22}
    assert len(metric_files(tmp_path / "1")) == 4
    child(KILL_EACH, tmp_path, "rewind", calls)
    for at in range(1, calls + 1):
        left = steps(tmp_path / str(at))
        assert left == list(range(1, len(left) + 1)) and len(left) >= 5  # at no time a gap
        write(tmp_path / str(at), [{"step": 6}], 40, offset)
        assert steps(tmp_path / str(at)) == [1, 2, 3, 4, 5, 6], at
        aside = (tmp_path / str(at) / ASIDE).read_bytes()
        assert all(b'{"step":%d}\n' % s in aside for s in range(6, 13))  # moved aside, not away


# ---- full disks and bad disks ------------------------------------------------------------------------------------------

@pytest.mark.faults(8)
@pytest.mark.parametrize("fault", [fails(28), fails(5), half], ids=["ENOSPC", "EIO", "half"])
def test_disk_full_at_the_kth_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]) -> None:
    for at in range(1, 70):
        folder, written = tmp_path / f"{at}", 0
        with monkeypatch.context() as patch:
            faulty = FaultyOS(at, fault)
            patch.setattr(metrics, "os", faulty)
            patch.setattr(files, "os", faulty)
            sink = JSONLSink(rotate_mb=40 / 2**20)
            try:
                sink.open(folder)
                for step in range(1, 13):
                    sink.write({"step": step})
                    written += 1
            except (MetricError, OSError) as e: assert any(why in str(e) for why in ("No space", "disk is full", "Input/output error"))
        sink.close()
        assert steps(folder) == list(range(1, written + 1))  # all that was acknowledged, and nothing by half
        assert (folder / CURRENT).read_bytes()[-1:] in (b"\n", b"") if (folder / CURRENT).exists() else True
        write(folder, [{"step": written + 1}])
        assert steps(folder) == list(range(1, written + 2))


def test_a_write_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JSONLSink()
    sink.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "os", FaultyOS(1, half))
        with pytest.raises(MetricError, match="the disk is full; the file is as it was"): sink.write({"step": 1})
    sink.write({"step": 1})
    sink.close()
    assert steps(tmp_path) == [1]


@pytest.mark.faults(10)
def test_rlimit_fsize(tmp_path: Path) -> None:
    "The operating system's own limit: the line that does not fit is taken back, the process lives"
    done = child("""
import resource, sys
from rlstudio.train.metrics import JSONLSink, MetricError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
sink = JSONLSink()
sink.open(sys.argv[1])
try:
    for step in range(1, 21): sink.write({'step': step})
except MetricError as e: print(e)
""", tmp_path)
    assert done.stdout.startswith("not written")
    assert steps(tmp_path) == list(range(1, 10)) and (tmp_path / CURRENT).stat().st_size == 99


# ---- rotation, offsets -------------------------------------------------------------------------------------------------

def test_every_offset_can_be_gone_back_to(tmp_path: Path) -> None:
    sink = JSONLSink(rotate_mb=40 / 2**20)
    sink.open(tmp_path / "run")
    offsets = [sink.offset()]
    for step in range(1, 31):
        sink.write({"step": step})
        offsets.append(sink.offset())
    sink.close()
    for step, offset in enumerate(offsets):
        folder = tmp_path / f"back{step}"
        shutil.copytree(tmp_path / "run", folder)
        again = write(folder, [{"step": s} for s in range(step + 1, 31)], 40, json.loads(json.dumps(offset)))
        assert steps(folder) == list(range(1, 31)) and again.dropped == 30 - step
        names = [p.name for p in metric_files(folder).values()]
        assert names == [p.name for p in metric_files(tmp_path / "run").values()]
        assert all((folder / n).read_bytes() == (tmp_path / "run" / n).read_bytes() for n in names)
        shutil.rmtree(folder)


def test_no_file_passes_the_limit_and_no_number_is_reused(tmp_path: Path) -> None:
    write(tmp_path, [{"step": s} for s in range(1, 2001)], 1000)
    files = metric_files(tmp_path)
    assert all(p.stat().st_size <= 1000 for p in files.values()) and list(files) == list(range(1, len(files) + 1))
    for number in (1, 3): files[number].unlink()  # somebody made room
    write(tmp_path, [{"step": 9999}] * 200, 1000)
    assert len(metric_files(tmp_path)) > len(files) - 2 and steps(tmp_path)[-1] == 9999


def test_a_record_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1}, {"step": 2, "note": "x" * 500}, {"step": 3}], 100)
    assert steps(tmp_path) == [1, 2, 3] and len(metric_files(tmp_path)) == 3


@pytest.mark.parametrize("offset", [{}, {"file": 1}, {"file": -1, "bytes": 0}, {"file": 1, "bytes": -1}, {"file": 1.0, "bytes": 2},
                                    {"file": "../x", "bytes": 0}, {"step": 3}, [1, 2], 3, "file"])
def test_bad_offsets_change_nothing(tmp_path: Path, offset: object) -> None:
    write(tmp_path, RECORDS)
    with pytest.raises(MetricError, match="expected what JSONLSink.offset"): rewind(tmp_path, offset)  # type: ignore[arg-type]
    assert steps(tmp_path) == list(range(1, 13))


def test_lost_metrics_are_said_not_fatal(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="holds 0 bytes, the checkpoint saw 500"):
        write(tmp_path, [{"step": 7}], offset={"file": 4, "bytes": 500})
    assert steps(tmp_path) == [7]


def test_an_offset_inside_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    write(tmp_path, [{"step": s} for s in range(1, 6)])
    write(tmp_path, [{"step": 99}], offset={"file": 1, "bytes": 16})
    assert steps(tmp_path) == [1, 99]


# ---- hostile names, values, lines, files -------------------------------------------------------------------------------

@pytest.mark.faults(35)
@pytest.mark.parametrize("name", ["a\n", "\na", "a\rb", "\x1b[2J", "a\x9b31m", "<script>", "a&b", 'a"b', "a'b", "a`b", "a|b", "a b", "",
                                  "/abs", "../up", ".hidden", "-rf", "\u202eabc", "ａ", "a\0", "x" * 129, None, 1, b"a"])
def test_hostile_names(tmp_path: Path, name: object) -> None:
    sink = JSONLSink()
    sink.open(tmp_path)
    with pytest.raises(MetricError, match="rename the metric") as e: sink.write({"step": 1, name: 1})  # type: ignore[dict-item]
    assert str(e.value).isprintable() and len(str(e.value)) < 400
    sink.close()
    assert steps(tmp_path) == []


@pytest.mark.parametrize("name", ["step", "loss/policy", "a.b-c_d/e", "0", "x" * 128])
def test_good_names(name: str) -> None: assert check_name(name) == name


@pytest.mark.parametrize("value", [object(), {"a": 1}, {1}, b"bytes", 1j, [[object()]], lambda: 0])
def test_values_that_are_no_values(value: object) -> None:
    with pytest.raises(MetricError, match="expected a number"): encode({"step": 1, "x": value})


def test_numbers_of_all_kinds_come_back(tmp_path: Path) -> None:
    import numpy as np
    import torch
    values = {"f": 1e-300, "g": -0.0, "i": 2**62, "t": torch.tensor(0.25, requires_grad=True), "v": torch.arange(3), "h": np.float16(0.5),
              "m": np.eye(2), "nan": np.nan, "inf": torch.tensor(math.inf), "e": [], "n": None, "b": True}
    write(tmp_path, [values])
    assert list(read_metrics(tmp_path)) == [{"f": 1e-300, "g": 0, "i": 2**62, "t": 0.25, "v": [0, 1, 2], "h": 0.5, "m": [[1, 0], [0, 1]],
                                             "nan": None, "inf": None, "e": [], "n": None, "b": True}]
    assert b"NaN" not in (tmp_path / CURRENT).read_bytes() and b"Infinity" not in (tmp_path / CURRENT).read_bytes()


@pytest.mark.faults(35)
@pytest.mark.parametrize("line", [b"[" * 10**6, b'{"a":' * 10**5, b"1" * 5000, b"NaN", b"[]", b"\xff" * 9, b"{}{}", b"\0" * 9,
                                  b'{"step":' + b"9" * 5000 + b"}", b"", b"null", b"x" * (2 * MAX_LINE)])
def test_hostile_lines_are_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    (tmp_path / CURRENT).write_bytes(b'{"step":1}\n' + line + b'\n{"step":2}\n')
    skipped: list[str] = []
    assert [r["step"] for r in read_metrics(tmp_path, skipped)] == [1, 2] and skipped == [f"{CURRENT}:2"]
    with pytest.warns(UserWarning, match="1 lines are no records"): assert steps(tmp_path) == [1, 2]


@pytest.mark.faults(35, 36)
def test_a_line_of_a_gigabyte_takes_bounded_memory(tmp_path: Path) -> None:
    with open(tmp_path / CURRENT, "wb") as f:  # a hole: no disk is used
        f.write(b'{"step":1}\n')
        f.seek(2**30)
        f.write(b'\n{"step":2}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [r["step"] for r in read_metrics(tmp_path, [])] == [1, 2]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


@pytest.mark.faults(35)
def test_links_pipes_and_strangers_are_left_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b'{"step":666}\n')
    run = tmp_path / "run"
    run.mkdir()
    (run / CURRENT).symlink_to(secret)
    os.mkfifo(run / "metrics.000001.jsonl")
    (run / "metrics.000002.jsonl").mkdir()
    (run / "metrics.1.jsonl").write_bytes(b'{"step":1}\n')
    (run / "metrics.000003.jsonl.bak").write_bytes(b'{"step":1}\n')
    assert metric_files(run) == {} and steps(run) == []
    with pytest.raises(MetricError, match="cannot append"): write(run, [{"step": 1}])
    assert secret.read_bytes() == b'{"step":666}\n'


def test_reading_while_writing(tmp_path: Path) -> None:
    sink = JSONLSink(rotate_mb=200 / 2**20)
    sink.open(tmp_path)
    for step in range(1, 101):
        sink.write({"step": step})
        assert steps(tmp_path)[-1] == step
    sink.close()
    xs, ys = series(read_metrics(tmp_path), "step")
    assert (xs == ys).all() and len(xs) == 100


# ---- TensorBoard -------------------------------------------------------------------------------------------------------

def test_tensorboard_is_named_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils.tensorboard", "tensorboard"): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MetricError, match=r"pip install 'rlstudio\[track\]'"): TensorBoardSink().open(tmp_path)


def test_importing_metrics_imports_neither_torch_nor_tensorboard() -> None:
    code = "import sys, rlstudio.train.metrics; print([m for m in ('torch', 'tensorboard', 'gymnasium', 'matplotlib') if m in sys.modules])"
    assert child(code).stdout.strip() == "[]"


def test_the_glossary_prints_every_row() -> None:
    table = GLOSSARY._repr_markdown_()
    assert table.count("\n") == len(GLOSSARY) + 1 and all(f"`{name}`" in table for name in GLOSSARY)
