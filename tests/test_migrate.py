"Runs of every version so far: they load, migrate, and go on to where they would have ended; a migration that dies leaves its source as it was."
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FaultyOS, child, fails, half, memory_folder
from make_fixtures import CASES, FIXTURES, RESUMED, close, fixtures, where_it_ends
from support import run, said, snapshot
from typer.testing import CliRunner

from rlstudio.core import files as files_module
from rlstudio.core.arithmetic import changed_facts, identity, identity_key
from rlstudio.core.files import FileError
from rlstudio.core.options import ConfigError
from rlstudio.evidence import migrate as module
from rlstudio.evidence.migrate import migrate_run, plan_migration, run_version
from rlstudio.evidence.verify import verify
from rlstudio.runs import checkpoint
from rlstudio.runs.checkpoint import (
    MIGRATIONS,
    SCHEMA_VERSION,
    CheckpointError,
    Migration,
    add_migration,
    checkpoints,
    load_checkpoint,
    migrate_state,
)
from rlstudio.runs.folder import RunError, RunFolder, versions
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app
from rlstudio.train import metrics

V1 = ["dqn-interrupted", "ppo-completed", "ppo-normalised", "sac-interrupted", "td3-interrupted"]
SAME_BITS = {  # fixtures of version 1 that still end at the very hash with which the code that made them ended (its README)
    "ppo-completed/step_000000002048": "f0923af239b8484efccbf18aec12b8eb0bc8c00608e1707e68eab75904444d38",
    "dqn-interrupted/step_000000002200": "dd5b3cf67d5281634094273f56c5d2131424d2523e0647c92a6d9c0bc420e935",
    "ppo-normalised/step_000000000384": "a7743b423b1c3964b005aa9ef8e8c9af82f1112ead04b2b7e6ed7e3b3089c41d",
}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as folder: yield folder.resolve()


def copied(name: str, to: Path, version: int = 1) -> Path: return Path(shutil.copytree(FIXTURES / f"v{version}" / name, to / name))


def judge(name: str, got: dict[str, Any], known: dict[str, Any], key: str) -> str:
    "'exact' or 'close', or an `AssertionError`"
    assert got["env_steps"] == known["env_steps"] and close(got["weights"], known["weights"]), f"{name}: other weights after one iteration"
    if key not in known["ends"]: return "close"
    assert got["end"] == known["ends"][key], f"{name}: another end"
    return "exact"


# Every fixture of every version

@pytest.mark.faults(21)
@pytest.mark.parametrize("name", sorted(json.loads(RESUMED.read_text())))
def test_fixtures_go_on_to_their_end(name: str) -> None:
    "By identity to the bit, elsewhere to the numeric level. The numbers of version 1 come from the code that made it"
    key = identity_key(identity())
    if judge(name, where_it_ends(fixtures()[name]), json.loads(RESUMED.read_text())[name], key) == "close":
        pytest.skip(f"numeric level only: no end is known for this arithmetic ({key})")


def test_all_fixtures_are_tried_and_the_judge_can_fail() -> None:
    known = json.loads(RESUMED.read_text())
    assert known.keys() == fixtures().keys() and {f"v1/{n}" for n in V1} <= {n.rpartition("/")[0] for n in known}
    if any(n.startswith(f"v{SCHEMA_VERSION}/") for n in known): assert set(CASES) <= {n.split("/")[1] for n in known if n.startswith(f"v{SCHEMA_VERSION}/")}
    for name, end in SAME_BITS.items(): assert end in known[f"v1/{name}"]["ends"].values()
    one = dict(env_steps=5, weights=[.5], ends={"here": "a"})
    got = dict(env_steps=5, weights=[.5 + 9e-6], end="a")
    assert judge("x", got, one, "here") == "exact" and judge("x", got | dict(end="b"), one, "elsewhere") == "close"
    for odd in (dict(end="b"), dict(weights=[.5 + 2e-5]), dict(weights=[.5, .5]), dict(env_steps=6)):
        with pytest.raises(AssertionError): judge("x", got | odd, one, "here")


def test_fixtures_are_frozen() -> None:
    "Every byte of them is covered by a hash, from version 2 on"
    for path in fixtures().values():
        version = int(path.parts[-4].removeprefix("v"))
        assert load_checkpoint(path).version == version
        if version > 1: assert verify(path.parents[1]).whole and not verify(path.parents[1]).uncovered, path


@pytest.mark.parametrize("name", ["ppo-gymnasium", "dqn-all-parts"])
def test_runs_of_version_2_go_on(tmp_path: Path, name: str) -> None:
    "As runs, with ledger, hashes and metrics; under another code they are not exact, and say so"
    r = Run.open(copied(name, tmp_path, 2))
    other = r.manifest["versions"] != versions() or r.manifest["machine"] != identity(r.manifest["engine"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = r.train()
    assert summary["level"] == ("L3" if not other else "L1" if r.manifest["why"].startswith("resumed under other versions") else "L2")
    known = json.loads(RESUMED.read_text())[f"v2/{name}/{checkpoints(FIXTURES / 'v2' / name / 'checkpoints')[0].name}"]["ends"].get(identity_key(identity()))
    assert known in (None, summary["weights_sha256"]) and verify(r.folder).whole


# The command

@pytest.mark.faults(21)
@pytest.mark.parametrize("name", V1)
def test_a_run_of_version_1_is_migrated_and_goes_on(tmp_path: Path, name: str) -> None:
    "Refused, planned, migrated, tried; then it trains to its end, and says that it is not exact"
    folder = copied(name, tmp_path)
    before = snapshot(folder)
    with pytest.raises(RunError, match=f"rlstudio migrate {folder}"): Run.open(folder)
    planned = migrate_run(folder, dry_run=True)
    assert planned.kept is None and snapshot(folder) == before and os.listdir(tmp_path) == [name]
    done = migrate_run(folder)
    kept = done.kept
    assert kept and done.changes == planned.changes and {c.path for c in done.changes if c.what == "rewrite"} >= {"config.yaml", "manifest.json"}
    assert snapshot(kept) == before and kept.name == f"{name}.v1" and sorted(os.listdir(tmp_path)) == [name, kept.name]
    for path in checkpoints(kept / "checkpoints"):
        old, new = load_checkpoint(path), load_checkpoint(folder / "checkpoints" / path.name)
        assert (old.version, new.version, new.meta["migrated_from"]["digest"]) == (1, SCHEMA_VERSION, old.digest) and new.meta["level"] == old.meta["level"]
        assert all(x.equal(new.state["algo"]["module"][k]) for k, x in old.state["algo"]["module"].items())
    assert migrate_run(folder).changes == () and verify(folder).whole and not verify(folder).uncovered
    run_, interrupted = Run.open(folder), "interrupted" in before["manifest.json"].decode()
    if not interrupted: assert run_.train()["weights_sha256"] in SAME_BITS.values() and run_.agent() and run_.evaluate(1)
    else:
        with pytest.warns(UserWarning, match="no longer exact"): summary = run_.train()
        known = json.loads(RESUMED.read_text())[f"v1/{name}/{checkpoints(kept / 'checkpoints')[0].name}"]["ends"].get(identity_key(identity()))
        assert summary["level"] == "L1" and known in (None, summary["weights_sha256"])


def test_the_command(tmp_path: Path) -> None:
    "In a process of its own: refused with the line to type, then that line, then on"
    folder = copied("ppo-normalised", tmp_path)
    refused = run("rlstudio", "resume", folder)
    assert refused.returncode == 2 and f"rlstudio migrate {folder}" in refused.stderr and "Traceback" not in refused.stderr, said(refused)
    done = run("rlstudio", "migrate", folder, tmp_path / "nowhere")
    assert done.returncode == 2 and "nowhere: not a run" in done.stderr and f"stays as {folder}.v1" in done.stdout, said(done)


def shell(*args: object) -> Any: return CliRunner().invoke(app, [str(a) for a in args])


def test_the_command_line_says_what_it_does(tmp_path: Path) -> None:
    folder = copied("ppo-completed", tmp_path)
    plan = shell("migrate", folder, "--dry-run")
    assert plan.exit_code == 0 and "would be migrated from version 1 to 2; nothing was written" in plan.stdout and "rewrite  config.yaml" in plan.stdout
    done = shell("migrate", folder, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["kept"] == f"{folder}.v1" and json.loads(done.stdout)["version"] == 1
    again = shell("migrate", folder)
    assert again.exit_code == 0 and "of version 2 already; nothing to do" in again.stdout
    shown = shell("show", folder)
    assert shown.exit_code == 0 and "ppo-completed" in shown.stdout


@pytest.mark.faults(21)
@pytest.mark.parametrize("name, spoil, why", [
    ("newer", lambda f: note(f, schema_version=SCHEMA_VERSION + 1), "made by a newer RLStudio: upgrade this one"),
    ("odd", lambda f: note(f, schema_version="1"), "schema_version '1', expected"),
    ("linked", lambda f: (f / "plots").symlink_to("/etc"), "a link, a pipe, or too deep"),
    ("piped", lambda f: os.mkfifo(f / "checkpoints" / "pipe"), "a link, a pipe, or too deep"),
    ("no config", lambda f: (f / "config.yaml").unlink(), "not a run"),
    ("odd config", lambda f: (f / "config.yaml").write_text("algo: 5\n"), "config.yaml: its config is not one of version 1"),
    ("broken config", lambda f: (f / "config.yaml").write_text("algo: [\n"), "config.yaml"),
    ("all damaged", lambda f: [p.write_bytes(b"x") for p in f.glob("checkpoints/*/state.safetensors")], "no usable checkpoint")])
def test_what_migrate_refuses(tmp_path: Path, name: str, spoil: Callable[[Path], Any], why: str) -> None:
    folder = copied("dqn-interrupted", tmp_path)
    spoil(folder)
    before = snapshot(folder) if name not in ("linked", "piped") else {}
    refused = shell("migrate", folder)
    assert refused.exit_code == 2 and why in refused.stderr, refused.output
    assert [p.name for p in tmp_path.iterdir()] == ["dqn-interrupted"] and (not before or snapshot(folder) == before)


def note(folder: Path, **facts: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_damaged_checkpoint_is_copied_and_named(tmp_path: Path) -> None:
    folder = copied("ppo-completed", tmp_path)
    newest = checkpoints(folder / "checkpoints")[0]
    (newest / "state.json").write_bytes(b"{}")
    plan = {c.path: c for c in plan_migration(folder)}
    assert plan[f"checkpoints/{newest.name}"].what == "copy" and "damaged" in plan[f"checkpoints/{newest.name}"].said
    migrate_run(folder)
    assert (newest / "state.json").read_bytes() == b"{}" and load_checkpoint(checkpoints(folder / "checkpoints")[1]).version == SCHEMA_VERSION


def test_a_run_with_hashes_is_looked_at_first(tmp_path: Path) -> None:
    "Damage would get a right hash otherwise"
    folder = copied("ppo-completed", tmp_path)
    hashes = RunFolder(folder).hashes
    hashes.begin()
    hashes.seal()
    (folder / "result.json").write_text("{}")
    before = snapshot(folder)
    with pytest.raises(RunError, match="result.json is damaged .*rlstudio verify"): migrate_run(folder)
    assert snapshot(folder) == before and os.listdir(tmp_path) == ["ppo-completed"]
    shutil.copy(FIXTURES / "v1" / "ppo-completed" / "result.json", folder)
    migrate_run(folder)
    assert verify(folder).whole
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:-1] + b" ")
    assert [d.file for d in verify(folder).damage] == ["metrics.jsonl"]


def test_without_a_manifest_the_checkpoints_say_the_version(tmp_path: Path) -> None:
    folder = copied("sac-interrupted", tmp_path)
    (folder / "manifest.json").unlink()
    assert run_version(folder) == 1 and migrate_run(folder).kept and run_version(folder) == SCHEMA_VERSION
    with pytest.warns(UserWarning, match="no longer exact"): assert Run.open(folder).train()["level"] == "L1"


def test_a_busy_run_is_not_migrated(tmp_path: Path) -> None:
    folder = copied("sac-interrupted", tmp_path)
    (folder / "run.lock").touch()
    with module.locked(folder), pytest.raises(RunError, match="another process"): migrate_run(folder)
    migrate_run(folder)


def test_the_second_time_the_old_one_gets_another_name(tmp_path: Path) -> None:
    for kept in ("td3-interrupted.v1", "td3-interrupted.v1-2"):
        if (tmp_path / "td3-interrupted").exists(): shutil.rmtree(tmp_path / "td3-interrupted")
        assert migrate_run(copied("td3-interrupted", tmp_path)).kept == tmp_path / kept


# Killed at any point

KILL = """
import os, signal, sys
from pathlib import Path
from faults import FaultyOS
from rlstudio.core import files
from rlstudio.evidence import migrate
from rlstudio.runs import checkpoint, folder
from rlstudio.train import metrics
import warnings
warnings.simplefilter('ignore')
if sys.argv[4] == 'two renames': migrate.exchange = lambda a, b: False
first, last = map(int, sys.argv[2:4])
migrate.migrate_run(Path(sys.argv[1])/'0'/'r')   # so that each child need not import what it takes
for at in range(first, last + 1):
    pid = os.fork()
    if pid: os.waitpid(pid, 0); continue
    run = Path(sys.argv[1])/str(at)/'r'
    files.os = migrate.os = checkpoint.os = folder.os = metrics.os = FaultyOS(at, lambda *a: os.kill(os.getpid(), signal.SIGKILL))
    try:
        migrate.migrate_run(run)
        (run.parent/'done').touch()
    finally: os._exit(0)
"""


@pytest.mark.faults(22)
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path, how: str) -> None:
    "The old run is there with every byte, and its name is that of a run; the next migration brings it to its end"
    first, calls, stages = (1 if how == "exchange" else 100), 160, []
    source = FIXTURES / "v1" / "ppo-normalised"
    before = snapshot(source)
    for at in range(calls + 1): shutil.copytree(source, tmp_path / str(at) / "r")
    child(KILL, tmp_path, first, calls, how, timeout=300)
    for at in range(first, calls + 1):
        home = tmp_path / str(at)
        here = {p.name: p for p in home.iterdir() if not p.name.startswith(".") and p.is_dir()}
        old = [p for p in here.values() if snapshot(p) == before]
        assert len(old) == 1 and old[0].name in ("r", "r.v1"), (at, list(here))
        if how == "exchange": assert "r" in here, at  # at no moment is there no run
        stages.append("old" if old[0].name == "r" else "new" if "r" in here else "between")
        if stages[-1] == "new": assert run_version(here["r"]) == SCHEMA_VERSION
        elif at % 3: continue  # a third of them is enough for what follows
        else: assert migrate_run(home / "r").kept
        assert run_version(home / "r") == SCHEMA_VERSION and not list(home.glob(".migrating-*")) and verify(home / "r").whole
        assert sorted(p.name for p in home.iterdir() if p.is_dir()) == ["r", "r.v1"] and snapshot(home / "r.v1") == before, at
    order = ["old", "between", "new"]
    assert stages == sorted(stages, key=order.index) and set(stages) == ({"old", "new"} if how == "exchange" else set(order)), stages
    assert (tmp_path / str(calls) / "done").exists()  # and the last was late enough to miss
    with pytest.warns(UserWarning, match="no longer exact"): Run.open(tmp_path / "102" / "r").train()


TWICE = """
import os, sys
from pathlib import Path
from rlstudio.evidence import migrate
run, die = Path(sys.argv[1]), lambda *a: os._exit(9)
if sys.argv[2] == 'before the exchange': migrate.exchange = die
else:
    migrate.exchange, right = lambda a, b: False, os.rename
    def rename(a, b):
        right(a, b)
        if Path(a) == run: die()
    os.rename = rename
migrate.migrate_run(run)
"""


@pytest.mark.faults(22)
def test_killed_twice_at_the_swap(tmp_path: Path) -> None:
    "Before the exchange, then on a system without one between two renames; and once more, beside an older copy"
    folder = copied("ppo-normalised", tmp_path)
    before = snapshot(folder)
    assert child(TWICE, folder, "before the exchange", check=False).returncode == 9
    assert run_version(tmp_path / "ppo-normalised.v1") == SCHEMA_VERSION and snapshot(folder) == before
    assert child(TWICE, folder, "between the renames", check=False).returncode == 9
    assert not folder.exists() and snapshot(tmp_path / "ppo-normalised.v1") == before
    assert migrate_run(folder).kept == tmp_path / "ppo-normalised.v1" and sorted(os.listdir(tmp_path)) == ["ppo-normalised", "ppo-normalised.v1"]
    assert verify(folder).whole and not verify(folder).uncovered and snapshot(tmp_path / "ppo-normalised.v1") == before

    shutil.rmtree(folder)
    copied("ppo-normalised", tmp_path)
    assert child(TWICE, folder, "between the renames", check=False).returncode == 9
    assert not folder.exists() and (tmp_path / "ppo-normalised.v1-2").exists()
    assert migrate_run(folder).kept == tmp_path / "ppo-normalised.v1-2" and verify(folder).whole


def test_a_run_that_somebody_keeps_beside_is_not_taken_for_what_a_kill_left(tmp_path: Path) -> None:
    "RUN.v1 was migrated by hand: it is of this version, and nobody's leftover"
    folder = copied("td3-interrupted", tmp_path)
    kept = tmp_path / "td3-interrupted.v1"
    shutil.copytree(folder, kept)
    migrate_run(kept)
    mine = snapshot(kept)
    assert migrate_run(folder).kept == tmp_path / "td3-interrupted.v1-2" and snapshot(kept) == mine


@pytest.mark.faults(8, 22)
@pytest.mark.parametrize("how, fault", [("exchange", fails(28)), ("exchange", half), ("two renames", fails(5))], ids=["disk full", "half a write", "EIO"])
def test_the_kth_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any], how: str) -> None:
    "Either it is migrated, or it says that it is as it was, and it is"
    if how == "two renames": monkeypatch.setattr(module, "exchange", lambda a, b: False)
    source, failed = FIXTURES / "v1" / "ppo-normalised", 0
    before = snapshot(source)
    for at in range(1, 200, 3 if fault is half else 1):
        home = tmp_path / str(at)
        shutil.copytree(source, home / "r")
        faulty = FaultyOS(at, fault)
        error = None
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for m in (module, checkpoint, files_module, metrics): patch.setattr(m, "os", faulty)
            patch.setattr(module, "try_migrated", lambda new: {})
            try: migrate_run(home / "r")
            except (FileError, ConfigError) as e: error = f"{e}; it is as it was"  # manifest or config could not even be read
            except RunError as e: error = str(e)
        if error is None: assert run_version(home / "r") == SCHEMA_VERSION and verify(home / "r").whole and snapshot(home / "r.v1") == before, at
        else:
            failed += 1
            assert "it is as it was" in error and snapshot(home / "r") == before and os.listdir(home) == ["r"], (at, error)
        if faulty.count < at: break
    assert failed > 10


# The registry

def test_migrations_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(x: dict) -> dict: return x
    monkeypatch.setattr(checkpoint, "MIGRATIONS", dict(MIGRATIONS))
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    add_migration(SCHEMA_VERSION, Migration(lambda s: s | dict(seen=list(s)), keep, keep))
    old = dict(algo=dict(module={}, optimizer={}), collector=dict(env={}))
    assert sorted(migrate_state(1, old)["seen"]) == ["algo", "stepper"] and "seen" not in old
    with pytest.raises(CheckpointError, match="registered already"): add_migration(SCHEMA_VERSION, Migration(keep, keep, keep))


def test_the_chain_is_whole() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


@pytest.mark.faults(35)
@pytest.mark.parametrize("spoil", [
    lambda s: s.pop("collector"), lambda s: s.update(algo=5), lambda s: s["algo"].pop("module"), lambda s: s["algo"].update(module=[1]),
    lambda s: s["collector"].update(env=None), lambda s: s["collector"]["env"].update(rngs={"1": 5}), lambda s: s["collector"]["env"]["rngs"].update({"0": {}})])
def test_hostile_states_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict], Any]) -> None:
    "Whole by every hash, and nonsense: a `CheckpointError` that names the file"
    rngs: dict[str, Any] = {"0": {}}
    state: dict[str, Any] = dict(algo=dict(module={"w": torch.ones(2)}, optimizer={}), collector=dict(env=dict(rngs=rngs)))
    spoil(state)
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 1)
    path = checkpoint.save_checkpoint(tmp_path, 1, state)
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", SCHEMA_VERSION)
    with pytest.raises(CheckpointError, match="state.json: its state is not one of version 1"): load_checkpoint(path)


def test_what_a_migrated_run_knows_of_its_arithmetic(tmp_path: Path) -> None:
    "Version 1 did not know it; a migration does not pretend"
    folder = copied("td3-interrupted", tmp_path)
    migrate_run(folder)
    assert "blas" not in load_checkpoint(checkpoints(folder / "checkpoints")[0]).meta.get("machine", {})
    assert changed_facts(Run.open(folder).manifest.get("machine", {}), identity())
