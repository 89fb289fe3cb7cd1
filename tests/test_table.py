"A table of many runs, from outside: the command, real runs, broken neighbours, strangers, and what is kept between two readings."
import csv
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support import run, said
from test_listing import made, trained

from rlstudio.evidence.compare import make_side
from rlstudio.evidence.table import (
    KEPT_FROM,
    Table,
    arms,
    curve,
    facts_beside,
    find_runs,
    kept_path,
    plot_arms,
    read_kept,
    read_table,
    run_facts,
    shorter_labels,
    summary,
)
from rlstudio.runs.folder import RunError


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Two real runs of one config and one of another, a study around two of them, and things that are broken"
    shelf = tmp_path_factory.mktemp("shelf")
    (shelf / "settings.ini").write_text("[DEFAULT]\nruns_dir = runs\n")
    for seed in (1, 2): trained(shelf / "runs" / "sweep", f"pole_s{seed}", f"train.seed={seed}", "eval.every=1024")
    (shelf / "runs" / "sweep" / "study.yaml").write_text("version: 1\n")
    trained(shelf / "runs", "other", "algo.gamma=0.9")
    made(shelf / "runs", "killed", status="running")
    (shelf / "runs" / "broken").mkdir()
    (shelf / "runs" / "broken" / "config.yaml").write_text("algo: [")
    return shelf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_command_sums_up(shelf: Path, tmp_path: Path) -> None:
    done = run("rlstudio", "table", cwd=shelf)
    assert done.returncode == 0, said(done)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["arm", "seeds", "IQM", "95", "%", "interval", "worst", "best", "solved"]
    assert any(re.match(r"pole +2 +\S+ +\S+ … \S+ ", line) for line in lines), done.stdout
    assert any(line.startswith("ppo CartPole-v1") and "algo.gamma=0.9 " in line for line in lines) and any("0 of 1" in line for line in lines)
    assert sum(line.startswith("broken: ") for line in lines) == 1 and "broken/config.yaml" in lines[-1] and "Traceback" not in done.stderr


def test_rows_are_the_runs(shelf: Path, tmp_path: Path) -> None:
    done = run("rlstudio", "table", "--json", cwd=shelf)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and {r["name"]: r["status"] for r in found["runs"]} == dict(killed="killed", other="completed", pole_s1="completed", pole_s2="completed")
    for row in found["runs"]:
        if row["name"] == "killed": continue
        result = json.loads((shelf / row["run"] / "result.json").read_text())
        assert (row["score"], row["seed"], row["weights"]) == (result["eval_return_mean"], result["seed"], result["weights_sha256"]) and row["level"] == "L3"
        assert row["study"] == ("sweep" if row["name"].startswith("pole") else None)
    assert list(found["broken"]) == ["runs/broken"] and [a["seeds"] for a in found["arms"] if a["arm"] == "pole"] == [2]
    done = run("rlstudio", "table", "sweep", "--csv", tmp_path / "a.csv", "--parquet", tmp_path / "a.parquet", "--all-keys", cwd=shelf)
    assert done.returncode == 0, said(done)
    import pandas as pd
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert [float(r["score"]) for r in rows] == frame["score"].tolist() and set(frame["algo.gamma"]) == {.98} and list(frame.columns) == list(rows[0])
    assert run("rlstudio", "table", "sweep", "--csv", "-", "--all-keys", cwd=shelf).stdout == (tmp_path / "a.csv").read_text()
    piped = run("bash", "-c", f"rlstudio table sweep --parquet - --all-keys > {tmp_path / 'b.parquet'}", cwd=shelf)
    assert piped.returncode == 0 and pd.read_parquet(tmp_path / "b.parquet").equals(frame), said(piped)


@pytest.mark.parametrize("args, words", [
    (["swep"], "swep: not a run"), (["runs/x*"], "no folder has such a name"), (["--json", "a.json"], "--json takes no file"), (["--csv", "nowhere/a.csv"], "there is no folder nowhere; make it first"),
    (["--csv", "-", "--json"], "--csv - and --json both want"), (["--csv", "-", "--parquet", "-"], "expected one of them")])
def test_mistakes(shelf: Path, args: list[str], words: str) -> None:
    done = run("rlstudio", "table", *args, cwd=shelf)
    assert done.returncode == 2 and words in " ".join((done.stderr + done.stdout).replace("│", " ").split()) and "Traceback" not in done.stderr


def test_curves_of_a_real_run(shelf: Path) -> None:
    steps, values = curve(shelf / "runs" / "sweep" / "pole_s1")
    noted = json.loads((shelf / "runs" / "sweep" / "pole_s1" / "evaluations.json").read_text())
    assert steps.tolist() == [1024, 2048] and values.tolist() == [e["mean"] for e in noted]
    steps, values = curve(shelf / "runs" / "sweep" / "pole_s1", "loss/value", "train/iteration")
    assert steps.tolist() == [1, 2] and (values > 0).all()
    with pytest.raises(RunError, match="did you mean 'loss/policy'"): curve(shelf / "runs" / "other", "loss/polcy")


def test_an_arm_holds_each_seed_once(tmp_path: Path) -> None:
    for place in ("a", "b"):
        for name in ("x", "yy"): made(tmp_path / place, name, mean=len(name) * 10. + (place == "b"))
    found = arms(read_table(tmp_path))
    assert [[r["seed"] for r in group] for group in found.values()] == [[1, 2]]
    made(tmp_path / "c", "x", mean=1., gamma=.5)
    assert [label.partition("algo.")[2] for label in arms(read_table(tmp_path))] == ["gamma=0.99", "gamma=0.5"]


def test_a_run_with_a_varied_stream_is_no_seed_more() -> None:
    "It shares all other streams with its seed's own run; where there is none such, one run a seed counts, in the table as in a comparison"
    def row(seed: int, **more: Any) -> dict[str, Any]: return dict(arm="pole", algo="ppo", env="w", run=f"r{seed}", seed=seed, score=1., status="completed", created="", stopped=None, solved=None, goal=None) | more
    plain, mixed = [row(1), row(2)], [row(1, **{"train.streams.init": 2}), row(1, **{"train.streams.env": 2})]
    assert arms([*mixed, *plain]) == {"pole": plain} and arms(mixed) == {"pole": mixed[:1]}
    assert arms([*mixed, row(3, **{"train.streams.env": 4})]) == {"pole": [mixed[0], row(3, **{"train.streams.env": 4})]}
    table = Table(mixed)
    assert [f["seeds"] for f in summary(table)] == [1] and "1 run shares the seed or streams" in str(table)
    assert make_side("A", "pole", arms(mixed), "score").seeds == 1 == len(make_side("A", "pole", arms(mixed), "score").rows)


def test_runs_of_strangers(tmp_path: Path) -> None:
    made(tmp_path, "whole", mean=1.)
    for i, junk in enumerate((b"\xff\xfe", b"[" * 99999, b'{"status": 3}', b'{"versions": 7}', b'{"start_from": {"run": {"x": 1}}}', b'{"created": "\\u001b[2J"}', b'{"env_steps": 1e999}')):
        (made(tmp_path, f"odd{i}", mean=1.) / "manifest.json").write_bytes(junk)
    (made(tmp_path, "link") / "result.json").symlink_to("/etc/passwd")
    os.mkfifo(made(tmp_path, "pipe") / "result.json")
    (made(tmp_path, "yaml") / "config.yaml").write_text("algo:\n  name: ppo\n  x: {" + "[" * 200 + "\nenv:\n  id: x\ntrain:\n  seed: 1\n")
    (made(tmp_path, "key") / "config.yaml").write_text("algo:\n  name: ppo\n  gamma: .nan\n  x: [{a: .inf}]\n  y:\n    - - b\nenv:\n  id: x\n  \x1b: 2\ntrain:\n  seed: true\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = read_table(tmp_path)
    assert "whole" in [r["name"] for r in found.rows] and {"link", "pipe", "odd0", "odd1", "odd2", "odd3"} <= {Path(f).name for f in found.broken}
    assert len(found) + len(found.broken) == 12
    json.dumps([found.rows, found.broken], allow_nan=False)
    done = run("rlstudio", "table", tmp_path)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "Traceback" not in done.stderr, said(done)
    assert found.to_frame(every=True).shape[0] == len(found)


def many(tmp_path: Path) -> tuple[Path, list[Path]]:
    "Enough runs to be kept, written a while ago"
    for i in range(KEPT_FROM): made(tmp_path / "many", "r" * (i + 1), mean=float(i))
    return tmp_path / "many", find_runs(tmp_path / "many")


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, runs = many(tmp_path)
    first = read_table(folder)
    assert not kept_path(str(folder)).exists(), "written just now: a second change might look the same"
    facts_beside(str(folder), runs, racy=-60)
    read = []
    monkeypatch.setattr("rlstudio.evidence.table.run_facts", lambda f: (read.append(f), run_facts(f))[1])
    assert read_table(folder) == first and not read
    time.sleep(.02)
    old = (runs[3] / "result.json").read_text()
    (runs[3] / "result.json").write_text(old.replace('"eval_return_mean": 3.0', '"eval_return_mean": 8.0'))   # of the same size
    os.utime(runs[3] / "result.json", ns=(0, 0))
    (runs[5] / "config.yaml").write_text("algo: [")
    again = read_table(folder)
    assert read == [runs[3], runs[5]] and again.rows[3]["score"] == 8. and list(again.broken) == [str(runs[5])]
    monkeypatch.chdir(tmp_path)
    assert [r["run"] for r in read_table("many").rows] == [f"many/{Path(r['run']).name}" for r in again.rows]


def test_the_folder_of_runs_cannot_speak_for_the_cache(tmp_path: Path) -> None:
    folder, runs = many(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    facts_beside(str(folder), runs, racy=-60)
    path = kept_path(str(folder))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before and path.parent.stat().st_mode & 0o77 == 0
    path.write_text(path.read_text().replace(str(folder), "/somewhere/else"))
    assert read_kept(str(folder)) == {} and [r["score"] for r in read_table(folder).rows] == [float(i) for i in range(KEPT_FROM)]
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert read_kept(str(folder)) == {} and len(read_table(folder)) == KEPT_FROM


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    folder, runs = many(tmp_path)
    cache.write_text("a file in its place")
    assert len(facts_beside(str(folder), runs, racy=-60)) == KEPT_FROM == len(read_table(folder))


def test_a_live_status_is_asked_again(tmp_path: Path) -> None:
    from rlstudio.runs.folder import locked
    folder, runs = many(tmp_path)
    made(folder, "aa", status="running")
    facts_beside(str(folder), find_runs(folder), racy=-60)
    assert read_table(folder).rows[0]["status"] == "killed"
    with locked(folder / "aa"): assert read_table(folder).rows[0]["status"] == "running"


def test_a_run_that_was_stopped_early_says_so(tmp_path: Path) -> None:
    for name in ("a", "bb"): made(tmp_path, name, mean=5.)
    result = tmp_path / "bb" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | dict(stopped_early="behind other trials: far")))
    table = read_table(tmp_path)
    assert [row["stopped"] for row in table.rows] == [None, "behind other trials: far"] and "2, 1 stopped early" in str(table)


def test_labels_of_a_picture_stay_apart_and_zero_is_no_loss() -> None:
    "Long labels differ at their ends; an arm whose IQM is 0 is better than one below it"
    long = [f"ppo {'x' * 60} algo.gamma={g}" for g in (.9, .99)]
    assert len(set(shorter_labels(long, "w"))) == 2 and len(set(shorter_labels([f"{'a' * 30}{k}{'b' * 40}" for k in range(3)], "w"))) == 3
    rows = [dict(arm=f"arm {k}", algo="ppo", env="w", seed=1, status="completed", created="", score=s, goal=None, solved=None, stopped=None) for k, s in enumerate([0., *range(-9, 0)])]
    assert "arm 0 (1)" in [text.get_text() for text in plot_arms(rows, "scores").axes[0].get_yticklabels()]


def test_a_line_break_in_a_name_is_shown_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from rlstudio.studio.cli import app
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a\nb").mkdir(parents=True)
    (tmp_path / "runs" / "a\nb" / "config.yaml").write_text("algo: [")
    for name in ("c", "dd"): made(tmp_path / "runs", name, mean=5.)
    for words in (["table"], ["list", "runs"], ["compare", "runs", "runs/c"]):
        said = CliRunner().invoke(app, words).output
        assert "a\nb" not in said and (words[0] == "compare" or r"a\nb" in said), said


def test_a_score_counts_only_where_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "One rule for `table`, `compare` and `show`: where no manifest says that a run has ended, its result.json is no result, also in rows that were kept"
    monkeypatch.chdir(tmp_path)
    for k in range(KEPT_FROM): trained(tmp_path / "runs", f"r{k}", f"train.seed={k + 1}") if k < 1 else made(tmp_path / "runs", f"r{k}")
    facts_beside(str((tmp_path / "runs").absolute()), find_runs("runs"), racy=-60)
    assert run_facts("runs/r0")["score"] is not None and "no score counts" not in str(read_table("runs"))
    manifest = tmp_path / "runs" / "r0" / "manifest.json"
    noted = json.loads(manifest.read_text())
    for status in (None, "new", "running", "failed"):
        manifest.unlink() if status is None else manifest.write_text(json.dumps(noted | dict(status=status)))
        table = read_table("runs")
        row = next(r for r in table.rows if r["name"] == "r0")
        assert row["score"] is row["solved"] is None and all(f["scored"] == 0 for f in summary(table)), status
        assert "r0: no score counts, since manifest.json does not say that the run has ended" in str(table)
    manifest.write_text(json.dumps(noted | dict(status="interrupted")))
    assert run_facts("runs/r0")["score"] is not None


def test_a_table_counts_the_planned_runs_that_have_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A study of two arms, two points of a grid and three seeds, of which two runs are there; a plan that cannot be read says nothing"
    from rlstudio.evidence.study import asked_study, run_cell
    monkeypatch.chdir(tmp_path)
    small = ["train.total_steps=64", "algo.num_steps=8", "eval.episodes=1"]
    planned = asked_study(["a2c/cartpole", "ppo/cartpole", *small], seeds="1-3", grid=["algo.gamma=0.9,0.99"], name="two")
    assert len(planned.cells) == 12
    for cell in planned.cells[:2]: run_cell(str(planned.folder), cell.name)
    assert "2 of 12 planned runs of two are in this table; all of them: rlstudio show" in str(read_table("two"))
    (planned.folder / "study.yaml").write_text("arms: [")
    assert "planned" not in str(read_table("two"))
