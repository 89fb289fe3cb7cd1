"This machine against known ones: the command, its file, and that nothing around a training reaches its bits but the arithmetic."
import fcntl
import json
import locale
import os
import shutil
import struct
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import disguise, run, said
from test_reproducible import stop_at
from typer.testing import CliRunner, Result

from rlstudio.core.arithmetic import identity
from rlstudio.evidence.drift import (
    GOLDEN_CASES,
    KnownMachine,
    everywhere,
    golden_text,
    measure_drift,
    missing_packages,
    read_golden,
    same_arithmetic,
    train_case,
)
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app, count_line

CASE = "a2c/pendulum"


# The matrix and its file

def test_the_matrix_is_wide() -> None:
    "Every algorithm in several worlds, and every family of worlds that is installed for the tests"
    algos = {name.partition("/")[0] for name in GOLDEN_CASES}
    assert algos == {"ppo", "a2c", "dqn", "sac", "td3"} and all(sum(n.startswith(f"{a}/") for n in GOLDEN_CASES) >= 3 for a in algos)
    assert {p for c in GOLDEN_CASES.values() for p in c.packages} == {"gymnasium", "box2d", "mujoco", "ale-py", "numba", "llvmlite"}
    assert not [name for name, c in GOLDEN_CASES.items() if missing_packages(c)]
    assert len({json.dumps([c.config, c.engine]) for c in GOLDEN_CASES.values()}) == len(GOLDEN_CASES)


def test_the_packaged_file_fits_this_library() -> None:
    "Each machine knows the whole matrix; a fact that the identity no longer has would make every machine an unknown one"
    shared, machines = ([m for m in read_golden() if bool(m.identity) is known] for known in (False, True))
    assert machines and all(m.cases.keys() == {c for c in GOLDEN_CASES if not everywhere(c)} for m in machines)
    assert [m.cases.keys() for m in shared] == [{c for c in GOLDEN_CASES if everywhere(c)}] and not any(t.packages for t in shared[0].cases.values())
    assert all(m.identity.keys() <= identity().keys() and len(m.identity) >= 11 for m in machines)
    assert len({json.dumps(dict(m.identity), sort_keys=True) for m in machines}) == len(machines)
    assert len({t.end for t in machines[0].cases.values()}) >= len(machines[0].cases) - 1  # natively batched or in process: the same bits


def test_hashes_of_old_are_still_known() -> None:
    "What was known when the matrix was eight trainings large"
    old = {"ppo/cartpole": "0eec1758", "ppo/pendulum": "094482e8", "ppo/chain-cut-short": "91e6d77e", "a2c/cartpole": "10d42ed2", "dqn/cartpole": "10ce2b1f",
           "dqn/cartpole-all-parts": "ab57be20", "sac/pendulum": "9e0787ec", "td3/pendulum": "0a76145c"}
    zen = next(m for m in read_golden() if m.identity.get("cpu") == "AuthenticAMD 25/17" and "SkylakeX" in m.identity["blas"])
    assert {case: zen.cases[case].end[:8] for case in old} == old


# The command

def drift(*args: object) -> Result: return CliRunner().invoke(app, ["drift", *map(str, args)])


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A golden file that knows this machine, and one case"
    path = tmp_path_factory.mktemp("golden") / "mine.json"
    done = drift("--case", CASE, "--record", path)
    assert done.exit_code == 0 and "recorded, 1 cases" in done.stdout, done.output
    return path


def changed(mine: Path, to: Path, cpu: str = "", **changes: object) -> Path:
    "The file of a machine that computed something else, here or on another processor"
    machine = read_golden(mine)[0]
    facts = dict(machine.identity) | (dict(cpu=cpu) if cpu else {})
    to.write_text(golden_text([KnownMachine(facts, {CASE: replace(machine.cases[CASE], **changes)})]))  # type: ignore[arg-type]
    return to


def test_a_known_machine_with_other_bits_is_exit_code_3(mine: Path, tmp_path: Path) -> None:
    assert drift("--case", CASE, "--against", mine).exit_code == 0
    done = drift("--case", CASE, "--against", changed(mine, tmp_path / "x.json", end="0" * 64), "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 3 and not told["ok"] and told["known"] and told["cases"][CASE]["verdict"] == "differs" and "1 of 1 differ" in told["conclusion"]


def test_an_unknown_machine_is_measured(mine: Path, tmp_path: Path) -> None:
    "Close: exit code 0, with the distance as a number and the facts that differ; far: 3"
    first = read_golden(mine)[0].cases[CASE].first
    for by, code, verdict in (9e-7, 0, "close"), (3e-6, 3, "far"):
        other = changed(mine, tmp_path / "x.json", cpu="an abacus", end="0" * 64, first=(*first[:-1], first[-1] + by))
        done = drift("--case", CASE, "--against", other, "--json")
        told = json.loads(done.stdout)
        row = told["cases"][CASE]
        assert (done.exit_code, row["verdict"], told["known"], row["start"]) == (code, verdict, False, 0.) and row["first"] == pytest.approx(by, rel=.01)
        assert told["changed"] == [f"cpu: an abacus, now {identity()['cpu']}"]
    assert "differs from the nearest: cpu: an abacus" in drift("--case", CASE, "--against", other).stdout


@pytest.mark.parametrize("change, elsewhere", [(dict(gae_lambda=.95 + 1e-8), "close"), (dict(learning_rate=1e-2), "far"), (dict(num_epochs=3), "far")])
def test_a_change_of_the_algorithm_is_found(change: dict, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "Where the arithmetic is known, one of a hundred millionth is enough; elsewhere it must be more than rounding"
    before = GOLDEN_CASES["ppo/pendulum"]
    known = KnownMachine(identity(), {"ppo/pendulum": train_case(before)})
    monkeypatch.setitem(GOLDEN_CASES, "ppo/pendulum", replace(before, config=before.config | dict(algo=before.config["algo"] | change)))
    for machine, verdict in (known, "differs"), (replace(known, identity=dict(known.identity, cpu="an abacus")), elsewhere):
        assert [row.verdict for row in measure_drift(["ppo/pendulum"], [machine]).rows] == [verdict]


@pytest.mark.parametrize("args, says", [(("--case", "ppo/cartpol"), "ppo/cartpole"), (("--against", "nowhere.json"), "nowhere.json")])
def test_mistakes_are_exit_code_2(args: tuple, says: str) -> None:
    done = drift(*args)
    assert done.exit_code == 2 and says in done.output and "Traceback" not in done.output


def test_one_line_counts_on_a_terminal() -> None:
    "It is wiped at the end; in a pipe nothing is written"
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as screen, open(os.devnull, "w") as nowhere:
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        for stream in (screen, nowhere):
            tell = count_line(stream)
            tell(2, 35, "sac/a name that is far too long for it")
            tell(35, 35, "")
        print("END", end="", file=screen, flush=True)
        written = ""
        while not written.endswith("END"): written += os.read(master, 1000).decode()  # it may arrive in parts
    os.close(master)
    assert written == "\r\x1b[2K3/35 sac/a name tha\r\x1b[2KEND"


def test_record_keeps_others_and_drops_what_is_outdated(mine: Path, tmp_path: Path) -> None:
    path = shutil.copy(mine, tmp_path / "golden.json")
    theirs = read_golden(changed(mine, tmp_path / "x.json", cpu="an abacus", end="0" * 64))
    Path(path).write_text(golden_text([*read_golden(mine), *theirs]))
    assert "recorded" in drift("--case", CASE, "--record", path).stdout and len(read_golden(path)) == 2  # in another order
    assert "nothing has changed" in drift("--case", CASE, "--record", path).stdout
    stale = changed(mine, tmp_path / "y.json", end="1" * 64)      # this machine computed otherwise once
    Path(path).write_text(golden_text([*read_golden(stale), *theirs]))
    done = drift("--case", CASE, "--against", path, "--record", path)
    assert done.exit_code == 3 and f"what other machines knew of {CASE} went" in done.stdout, done.output
    assert read_golden(path) == read_golden(mine)


# What is around a training does not reach it

CHILD = """
import sys
for name in sys.argv[1].split(','): __import__(name)
import json, locale, os, time
from pathlib import Path
locale.setlocale(locale.LC_ALL, '')
import numpy, torch
started = [hash('a'), time.timezone, os.getcwd(), locale.setlocale(locale.LC_ALL), torch.get_num_threads()]
from rlstudio.evidence.drift import GOLDEN_CASES, train_case
from rlstudio.runs.run import Run
sys.path.insert(0, sys.argv[2])
from test_reproducible import stop_at
run = Run.open(sys.argv[3])
result = run.train([stop_at(int(sys.argv[4]))] if int(sys.argv[4]) else [])
ends = {case: train_case(GOLDEN_CASES[case]).end for case in sys.argv[5:]}
print(json.dumps(dict(started=started, ends=ends, level=result['level'], run=result['weights_sha256'])))
"""
AROUND = {  # imports, then the variables; the first one is this process
    "threads": ("torch,rlstudio.evidence.drift,gymnasium", dict(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", TZ="Asia/Tokyo", PYTHONHASHSEED="3", LC_ALL="C")),
    "one thread": ("rlstudio.runs.run,matplotlib.pyplot,mujoco,Box2D,numpy",
                   dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TZ="America/New_York", PYTHONHASHSEED="77", LC_ALL="C.UTF-8", PYTHONUTF8="1")),
}
CASES = ["ppo/cartpole", "ppo/tmaze-lstm", "ppo/lunarlander", "dqn/cartpole-all-parts", "sac/pendulum"]
SMALL = ["train.total_steps=6144", "checkpoint.every=1024", "eval.episodes=2"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run after the first of its six iterations"
    run = Run.from_config("ppo/cartpole", SMALL, runs_dir=tmp_path_factory.mktemp("runs"))
    assert run.train([stop_at(1)])["level"] == "L3"
    return run.folder


@pytest.mark.faults(20)
def test_nothing_around_a_training_reaches_its_bits(begun: Path, tmp_path: Path) -> None:
    "Working directory, time zone, hash seed, locale, import order, thread variables; the same run goes on under each of them, and ends as one that nobody stopped"
    whole = Run.open(shutil.copytree(begun, tmp_path / "whole")).train()
    folder, started = shutil.copytree(begun, tmp_path / "around"), [[hash("a"), time.timezone, os.getcwd(), locale.setlocale(locale.LC_ALL), torch.get_num_threads()]]
    want = {case: train_case(GOLDEN_CASES[case]).end for case in CASES}
    for i, (imports, variables) in enumerate(AROUND.values()):
        home = tmp_path / f"home {i}"
        home.mkdir()
        done = run(sys.executable, "-c", CHILD, imports, Path(__file__).parent, folder, 0 if i == len(AROUND) - 1 else 3, *CASES, cwd=home, coverage=False, **variables)
        assert done.returncode == 0, said(done)
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["ends"] == want and told["level"] == "L3"
        started.append(told["started"])
    assert told["run"] == whole["weights_sha256"]
    for what in zip(*started[1:]): assert what[0] != what[1], f"not varied: {what}"  # else nothing was shown


# Other arithmetic does

@pytest.mark.faults(20)
def test_each_disguise_alone_lowers_the_level(begun: Path, tmp_path: Path) -> None:
    "Another processor is played for one library at a time: the level falls, and the fact is named"
    fact, played = dict(OPENBLAS_CORETYPE="blas", ATEN_CPU_CAPABILITY="torch_simd", NPY_DISABLE_CPU_FEATURES="numpy_simd"), 0
    for variable, value in disguise().items():
        folder = shutil.copytree(begun, tmp_path / variable)
        done = run("rlstudio", "resume", folder, "--json", coverage=False, **{variable: value})
        assert done.returncode == 0, said(done)
        if same_arithmetic(identity("tape"), Run.open(folder).manifest["machine"]): continue  # this machine has no such choice
        assert "no longer exact (level L2)" in done.stderr and f"{fact[variable]}: " in done.stderr, said(done)
        assert json.loads(done.stdout)["level"] == "L2", variable
        played += 1
    if not played: pytest.skip("no library on this machine can be told to choose other kernels")
    if identity()["torch_simd"] == "AVX512" and "openblas" in identity()["blas"]: assert played == len(fact)
