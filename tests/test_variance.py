"""Where the spread between seeds comes from: shares, their intervals, and what must not vary at all"""
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from rlstudio.evidence import variance
from rlstudio.evidence.report import many_page
from rlstudio.evidence.study import StudyError, begin_cell, cell_outcome, executors, run_bytes, run_cell
from rlstudio.evidence.table import read_table
from rlstudio.evidence.variance import (
    VarianceReport,
    alone_share,
    fixed_share,
    intraclass,
    intraclass_interval,
    measure_variance,
    mixed_cells,
    nothing_else,
    pairs_needed,
    plan_variance,
    report_text,
    share_of,
    variance_report,
    varied_streams,
    visible_difference,
)
from rlstudio.runs.config import any_config, load_config
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app

TINY = ["env.num_envs=2", "train.total_steps=320", "algo.num_steps=8", "eval.episodes=3", "eval.num_envs=3"]


def test_shares_of_a_sum_and_of_a_product_are_those_that_one_computes_by_hand():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 3, 200_000))
    def mixed(k): return np.where(np.arange(3)[:, None] == k, y, x)
    def plus(v): return v[0] + 2 * v[1]          # variances 1 and 4, and the third plays no part
    def times(v): return v[0] * v[1]             # alone each brings everything, fixed none takes anything away
    for k, share in enumerate((.2, .8, 0)):
        assert alone_share(plus(x), plus(mixed(k))) == pytest.approx(share, abs=.02) and fixed_share(plus(y), plus(mixed(k))) == pytest.approx(share, abs=.02)
    for k in (0, 1): assert alone_share(times(x), times(mixed(k))) == pytest.approx(1, abs=.03) and fixed_share(times(y), times(mixed(k))) == pytest.approx(0, abs=.03)


def test_intraclass_is_the_correlation_of_all_ordered_pairs():
    x, y = np.random.default_rng(0).standard_normal((2, 9))
    both, other = np.concatenate([x, y]), np.concatenate([y, x])
    assert intraclass(x, y) == pytest.approx(np.corrcoef(both, other)[0, 1])
    assert intraclass(x, x) == pytest.approx(1) and np.isnan(intraclass(np.ones(4), np.ones(4)))
    low, high = intraclass_interval(.5, 20)
    assert np.arctanh([low, high]) == pytest.approx(np.arctanh(.5) + np.array([-1, 1]) * 1.959964 / 18.5**.5)


def test_intervals_cover_what_they_say_at_few_pairs():
    rng = np.random.default_rng(1)
    for n in (5, 10):
        x, y = rng.standard_normal((2, 20_000, n))
        low, high = intraclass_interval(intraclass(x, y), n)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(.945, abs=.01)
    assert "below 5 pairs" in share_of("x", *rng.standard_normal((3, 4))).alone_interval.note and not share_of("x", *rng.standard_normal((3, 5))).alone_interval.note


def test_the_size_of_a_study():
    assert visible_difference(10, 20) == pytest.approx(9.1, abs=.1) and visible_difference(10, 80) < visible_difference(10, 20) / 1.9
    assert pairs_needed(.25) < pairs_needed(.1)


def test_a_report_says_what_is_missing_and_what_is_flat():
    a, b, m = np.random.default_rng(0).standard_normal((3, 6)).tolist()
    report = VarianceReport("t", tuple(a), tuple(b), dict(init=(*m[:5], float("nan")), env=(float("nan"),) * 6), failed=("t_train.streams.init=12_s11",))
    assert [(s.stream, s.pairs) for s in report.shares()] == [("init", 5)] and "left out: t_train.streams.init=12_s11" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["shares"][0]["alone"] == pytest.approx(1 - intraclass(a[:5], m[:5]))
    assert "every run has the same score" in report_text(replace(report, a=(1.,) * 6, b=(1.,) * 6))
    assert len(report.plot().axes) == 2 and len(VarianceReport("t", (1.,), (1.,), {}).plot().axes) == 2
    nothing = VarianceReport("t", (float("nan"),), (float("nan"),), {})
    assert nothing.shares() == [] and nothing.to_dict()["mean"] is None and "0 independent runs" in str(nothing)


def test_names_of_streams_and_wrong_questions(tmp_path):
    config = load_config("dqn/cartpole")[0]
    assert varied_streams(config) == ("init", "action", "replay", "env", "eval")
    with pytest.raises(StudyError, match="did you mean 'replay'"): varied_streams(config, ["repaly"])
    cells = mixed_cells(tmp_path, "x", config, [1, 2, 3, 4, 5], ["env"])
    assert [(c.config.train.seed, c.config.train.streams) for c in cells] == [(1, dict(env=2)), (3, dict(env=4))], "a seed without a partner waits for one"
    for wrong in (dict(seeds="10"), dict(overrides="eval.episodes=0"), dict(streams=["x"])):
        with pytest.raises(StudyError): plan_variance("a2c/cartpole", **wrong, runs_dir=tmp_path)
    assert not [*tmp_path.iterdir()], "what is refused leaves no folder"


def test_the_runs_between_the_seeds_need_room_too(tmp_path, monkeypatch):
    one = run_bytes(any_config("a2c/cartpole", TINY)[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(5.5 * one)))    # enough for four seeds, not for two more runs
    with pytest.raises(StudyError, match="given 6 runs that take .* make room"): plan_variance("a2c/cartpole", TINY, "1-4", ["init"], runs_dir=tmp_path)
    assert not [*tmp_path.iterdir()], "what is refused leaves no folder"


def test_a_study_runs_is_shown_to_vary_in_nothing_else(tmp_path):
    """The whole way: the runs, one of them in other processes, one killed twice, workers; then a wrong one is put in their place"""
    def here(folder, names, jobs, told):
        for name in names: told(name, run_cell(folder, name))
    if "here" not in executors: executors.add("here", here)
    report = measure_variance("a2c/cartpole", TINY, "1-4", ["init", "eval"], runs_dir=tmp_path, checks=False, executor="here")
    study = plan_variance("a2c/cartpole", TINY, "1-4", ["init", "eval"], runs_dir=tmp_path)
    assert nothing_else(study) == {k: True for k in ("another process", "two kills and resumes", "1 worker process", "2 worker processes", "another evaluation")}
    assert (study.folder / "checks" / "kills.txt").read_text() == "2\n" and not report.failed
    page = many_page(study.folder)      # copies of one seed are no arms, and the shares stand on the page
    assert "What the spread comes from" in page and "episodes of the evaluation" in page and "killed" not in page and "ended</dt><dd>8 of 8" in page
    assert len(read_table(study.folder)) == 8 and len(read_table(study.folder / "checks")) == 4
    lone = Run.from_config("a2c/cartpole", [*TINY, "train.seed=1", "train.streams.init=2"], runs_dir=tmp_path, name="lone").train()
    assert cell_outcome(study.folder / "a2c-cartpole_train.streams.init=2_s1")["weights_sha256"] == lone["weights_sha256"], "the bits of a lone run"
    assert report.mixed["init"][0] == lone["eval_return_mean"]

    other = study.folder / "checks" / "again_s1"       # a run that is another one is seen
    shutil.rmtree(other)
    shutil.copytree(study.folder / "a2c-cartpole_s2", other)
    assert nothing_else(study)["another process"] is False
    assert "DIFFERENT BITS after another process" in str(variance_report(study, nothing_else(study)))
    again = CliRunner().invoke(app, ["variance", "a2c/cartpole", *TINY, "--seeds", "1-4", "--streams", "init,eval", "--runs-dir", str(tmp_path), "--json", "--quiet"])
    facts = json.loads(again.stdout)
    assert again.exit_code == 3 and facts["same_bits"]["another process"] is False and facts["scores"]["a"] == [*report.a]


def test_a_driver_that_dies_between_the_two_kills_leaves_a_check_that_can_be_answered(tmp_path, monkeypatch):
    study = plan_variance("a2c/cartpole", TINY, "1-4", ["init"], runs_dir=tmp_path)
    begin_cell(study.cells[0].folder, study.cells[0].config)
    run_cell(str(study.folder), study.cells[0].name)
    right, calls = variance.kill_midway, []

    def once(*args: object) -> bool:
        calls.append(args)
        if len(calls) == 2: raise KeyboardInterrupt
        return right(*args)

    monkeypatch.setattr(variance, "kill_midway", once)
    monkeypatch.setattr(variance, "check_configs", lambda config: {"killed": config})
    with pytest.raises(KeyboardInterrupt): nothing_else(study, 1)
    assert (noted := study.folder / "checks" / "kills.txt").read_text() == "1\n"
    assert nothing_else(study, 1) == {"two kills and resumes": True} and len(calls) == 3 and noted.read_text() == "2\n"
    noted.unlink()                       # as it is left where a run has come to its end without having been killed twice
    assert nothing_else(study, 1) == {"two kills and resumes": True} and len(calls) == 5
    assert nothing_else(study, 1) == {"two kills and resumes": True} and len(calls) == 5
    assert sorted(p.name for p in noted.parent.iterdir()) == ["killed_s1", "kills.txt", "logs", "study.yaml"]


@pytest.mark.parametrize("args, said", [
    (("--seeds", "5"), "expected an even number from 4 to"), (("--streams", "ini"), "did you mean 'init'?"), (("--plot", "x.pdf"), "ends in .png or .svg"),
    (("--plot", "nowhere/x.png"), "there is no folder nowhere"), (("eval.episodes=0",), "no run has a score"), (("train.streams.evn=1",), "did you mean 'env'?")])
def test_the_command_refuses_what_it_cannot_do_before_it_begins(tmp_path: Path, args: tuple[str, ...], said: str):
    done = CliRunner().invoke(app, ["variance", "a2c/cartpole", *args, "--runs-dir", str(tmp_path / "runs")])
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split()) and "Traceback" not in done.output and not (tmp_path / "runs").exists()
