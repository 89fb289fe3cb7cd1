"The comparison: real runs on the command line, sides from whatever is typed, and sentences that never say more than the numbers."
import json
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support import run

from rlstudio.core.options import config_from_dict
from rlstudio.evidence import compare as c
from rlstudio.evidence.stats import StatsError, iqm
from rlstudio.evidence.study import Study
from rlstudio.runs.config import to_yaml
from rlstudio.runs.folder import RunError
from rlstudio.runs.run import Run


def place(folder: Path, seed: int = 1, score: float | None = 1., world: str = "CartPole-v1", status: str = "completed", train: dict | None = None, **algo: object) -> Path:
    "A run as it lies in a folder, without the training"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config_from_dict(dict(env=dict(id=world), algo=dict(name="ppo") | algo, train=dict(seed=seed) | (train or {})))))
    (folder / "manifest.json").write_text(json.dumps(dict(status=status, level="L3", env_steps=9, created=f"2026-01-01T12:00:{seed:02}+00:00", versions=dict(torch="2.13"))))
    if score is not None:
        (folder / "result.json").write_text(json.dumps(dict(status=status, total_steps=9, train_seconds=1., eval_return_mean=score, eval_return_std=2., eval_episodes=20, goal=475.)))
    return folder


def side(name: str, scores: list[float]) -> c.Side: return c.Side(name, name, {"CartPole-v1": dict(enumerate(scores, 1))}, ())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Two arms of three real runs each"
    home = tmp_path_factory.mktemp("trained")
    for arm, rate in (("slow", 1e-5), ("fast", 3e-2)):
        for seed in (1, 2, 3):
            config = dict(env=dict(id="rlstudio/Bandit-v0", num_envs=4), algo=dict(name="ppo", num_steps=8, learning_rate=rate), net=dict(hidden=[8]), train=dict(total_steps=256, seed=seed), eval=dict(episodes=5))
            with warnings.catch_warnings(action="ignore"):   # there is no video of a bandit
                Run.from_config(config, runs_dir=home / "runs", name=f"{arm}-{seed}").train()
    return home


def test_real_runs_on_the_command_line(trained: Path) -> None:
    "Table, sentence, differences, picture; JSON holds the same; nothing in the runs has changed"
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    said = run("rlstudio", "compare", "slow-*", "fast-*", "--plot", "both.svg", cwd=trained)
    assert said.returncode == 0 and not said.stderr, said.stderr
    for words in ("A  ppo rlstudio/Bandit-v0 algo.learning_rate=1e-05", "B  ppo rlstudio/Bandit-v0 algo.learning_rate=0.03", "differs", "below 5 seeds", "B - A:"): assert words in said.stdout, words
    assert (trained / "both.svg").read_text().count("<path") > 10
    found = json.loads(run("rlstudio", "compare", "slow-*", "fast-*", "--json", cwd=trained).stdout)
    assert [s["seeds"] for s in found["sides"]] == [3, 3] and found["contrasts"][0]["verdict"] in said.stdout and list(found["differs"]) == ["algo.learning_rate"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_half_a_curve_is_no_value(trained: Path, tmp_path: Path) -> None:
    "A run that failed, is on its way or lies damaged on the disk has no area and no last value, and the note says why"
    runs = tmp_path / "runs"
    shutil.copytree(trained / "runs", runs)
    manifest = runs / "slow-1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"completed"', '"failed"'))
    (lines := runs / "slow-2" / "metrics.jsonl").write_bytes(lines.read_bytes()[:-40])
    early = runs / "slow-1" / "metrics.jsonl"   # it broke before it learned anything
    early.write_text(json.dumps({"step": 32, "episode/return_mean": 1.}) + "\n")
    for metric in ("area", "loss/value"):
        found = c.compare_sides([runs / "slow-*", runs / "fast-*"], metric)
        assert [side.seeds for side in found.sides] == [1, 3] and sorted(found.sides[0].missing.values()) == ["damaged", "failed"]
        assert f"2 of 3 runs have no {metric} (damaged, failed)" in found.notes()[0]
    result = json.loads((runs / "fast-1" / "result.json").read_text())
    (runs / "fast-1" / "hashes.json").unlink()
    (runs / "fast-1" / "result.json").write_text(json.dumps(result | dict(eval_return_mean=None, eval_return_std=None)))
    with pytest.raises(StatsError, match=r"none of its 1 runs has score \(completed, but not evaluated\)"): c.compare_sides([runs / "fast-1", runs / "fast-2"])


@pytest.mark.parametrize(("args", "said"), [
    (["slow-*"], "expected two or more"), (["slow-*", "nowhere"], "nowhere: not a run"), (["slow-*", "fast-*", "--metric", "loss/polic"], "did you mean"),
    (["slow-*", "fast-*", "--statistic", "iqr"], "given 'iqr'"), (["slow-*", "fast-*", "--plot", "x.gif"], ".png or .svg"), (["slow-*", "fast-*", "--plot", "none/x.svg"], "there is no folder none"), (["slow-*", "slow-*"], "the same runs twice"),
    (["slow-*", "fast-*", "--level", "95"], "between 0 and 1")])
def test_mistakes_are_one_message(trained: Path, args: list[str], said: str) -> None:
    done = run("rlstudio", "compare", *args, cwd=trained)
    assert done.returncode == 2 and said in " ".join(done.stderr.replace("│", " ").split()) and "Traceback" not in done.stderr and not done.stdout


def test_a_metric_of_the_file(trained: Path) -> None:
    found = c.compare_sides(["slow-*", "fast-*"], "loss/value", runs_dir=trained / "runs")
    last = json.loads((trained / "runs/slow-1/metrics.jsonl").read_text().splitlines()[-1])
    assert found.sides[0].scores["rlstudio/Bandit-v0"][1] in (last.get("loss/value"), *(json.loads(x).get("loss/value") for x in (trained / "runs/slow-1/metrics.jsonl").read_text().splitlines()))
    less = c.compare_sides(["slow-*", "fast-*"], "seconds", lower=True, runs_dir=trained / "runs")
    assert less.contrasts[0].lower and all(row["worst"] >= row["best"] for row in less.rows()), "of what should be low, the highest is the worst"


def test_a_folder_with_arms_is_a_side_each(tmp_path: Path) -> None:
    for gamma in (.9, .95, .99):
        for seed in (1, 2): place(tmp_path / f"grid/g{gamma}-s{seed}", seed, 100 * gamma + seed, gamma=gamma)
    found = c.compare_sides([tmp_path / "grid"])
    assert [s.name for s in found.sides] == ["A", "B", "C"] and len(found.contrasts) == 2 and any("Holm" in n for n in found.notes())
    assert found.differs["algo.gamma"] == [["0.9"], ["0.95"], ["0.99"]]


def test_the_same_config_twice_is_told_by_the_folder(tmp_path: Path) -> None:
    "Old code against new code: one arm, two folders"
    for name in ("old", "new"):
        for seed in (1, 2): place(tmp_path / name / f"s{seed}", seed, seed + (name == "new"))
    found = c.compare_sides([tmp_path / "old", tmp_path / "new"])
    assert [Path(s.label.split(" (")[0]).name for s in found.sides] == ["old", "new"] and found.differs == {}


def test_an_unfair_budget_is_said_first(tmp_path: Path) -> None:
    for seed in (1, 2):
        place(tmp_path / f"a/s{seed}", seed, 10. + seed, train=dict(total_steps=1000))
        place(tmp_path / f"b/s{seed}", seed, 12. + seed, train=dict(total_steps=2000))
    note = c.compare_sides([tmp_path / "a", tmp_path / "b"]).notes()[0]
    assert note.startswith("train.total_steps differs: this compares two questions")


def test_worlds_are_strata_on_one_scale(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for world, scores in (("CartPole-v1", (300, 310)), ("Acrobot-v1", (-120, -110))):
            for name, score in zip("ab", scores): place(tmp_path / name / f"{world}-{seed}", seed, score + seed, world, gamma=.9 if name == "a" else .99)
    found = c.compare_sides([tmp_path / "a", tmp_path / "b"])
    assert found.scaled and found.contrasts[0].pairs == 6 and found.contrasts[0].wins == 1 and 0 < found.rows()[0]["iqm"] < 1
    with pytest.raises(StatsError, match="no common scale"): c.compare_sides([tmp_path / "a", tmp_path / "b"], "seconds")
    place(tmp_path / "a/more", 4, 5., "Pendulum-v1", gamma=.9)
    with pytest.raises(StatsError, match="Pendulum-v1 on one side only"): c.compare_sides([tmp_path / "a", tmp_path / "b"])
    place(tmp_path / "a/other", 4, 5., "CartPole-v1", gamma=.5)
    with pytest.raises(RunError, match="3 worlds and 2 configs in CartPole-v1"): c.compare_sides([tmp_path / "a", tmp_path / "b"])


def test_failures_are_not_forgotten(tmp_path: Path) -> None:
    for seed in (1, 2, 3): place(tmp_path / f"a/s{seed}", seed, 10. + seed), place(tmp_path / f"b/s{seed}", seed, None if seed == 2 else 20. + seed, status="failed" if seed == 2 else "completed", gamma=.9)
    (tmp_path / "b/s4").mkdir()
    (tmp_path / "b/s4/config.yaml").write_text("\x1b[31m: [")
    found = c.compare_sides([tmp_path / "a", tmp_path / "b"])
    assert found.contrasts[0].seeds == 2 and "1 of 3 runs have no score (failed)" in str(found) and "cannot be read" in str(found)


def test_a_side_without_any_score_hides_no_other_one(tmp_path: Path) -> None:
    for arm, score, gamma in (("a", None, .5), ("b", 20., .9), ("c", 30., .99)):
        for seed in (1, 2, 3): place(tmp_path / f"all/{arm}{seed}", seed, score and score + seed, status="completed" if score else "failed", gamma=gamma)
    found = c.compare_sides(tmp_path / "all")        # one path, not a list of letters
    assert [s.name for s in found.sides] == ["A", "B"] and found.contrasts[0].middle == 10 and list(found.to_dict()["unscored"]) == ["ppo CartPole-v1 algo.gamma=0.5"]
    assert f"not compared: ppo CartPole-v1 algo.gamma=0.5: none of its 3 runs has score (failed); why: rlstudio show {tmp_path}/all/a1; the others are measured against ppo CartPole-v1 algo.gamma=0.9" in found.notes()
    with pytest.raises(StatsError, match=r"none of its 3 runs has score \(failed\); why: rlstudio show"): c.compare_sides([tmp_path / "all/a*", tmp_path / "all/b*"])
    place(tmp_path / "new", 1, None, status="running", gamma=.1)
    with pytest.raises(StatsError, match="wait until one is finished"): c.compare_sides([tmp_path / "new", tmp_path / "all/b*"])


def test_what_one_world_has_not_is_said(tmp_path: Path) -> None:
    for arm in "ab":
        for seed in (1, 2, 3): place(tmp_path / arm / f"pole{seed}", seed, 10. + seed, gamma=.9 if arm == "a" else .99), place(tmp_path / arm / f"bot{seed}", seed, None, "Acrobot-v1", gamma=.9 if arm == "a" else .99)
    assert "A: no run in Acrobot-v1 has score, so it is about CartPole-v1 alone" in c.compare_sides([tmp_path / "a", tmp_path / "b"]).notes()


def test_runs_with_a_stream_of_another_seed_are_no_newer_ones(tmp_path: Path) -> None:
    for seed in (1, 2, 3): place(tmp_path / f"a/s{seed}", seed, 10. + seed), place(tmp_path / f"a/v{seed}", seed, 90., train=dict(streams=dict(init=7))), place(tmp_path / f"b/s{seed}", seed, 20. + seed, gamma=.9)
    notes = " ".join(c.compare_sides([tmp_path / "a", tmp_path / "b"]).notes())
    assert "A: 3 more runs with a stream of another seed are not counted" in notes and "that count already" not in notes


def test_what_is_mixed_or_cut_is_said(tmp_path: Path) -> None:
    "One arm by two engines, and runs that ended early, are no draws of one thing"
    for seed in (1, 2, 3): place(tmp_path / f"a/s{seed}", seed, 10. + seed), place(tmp_path / f"b/s{seed}", seed, 20. + seed, gamma=.9)
    for k, engine in enumerate(("tape", "tape", "compiled"), 1):
        file = tmp_path / f"a/s{k}/manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(engine=engine)))
    result = tmp_path / "b/s2/result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | dict(stopped_early="behind other trials: far")))
    notes = "\n".join(c.compare_sides([tmp_path / "a", tmp_path / "b"]).notes())
    assert "A: its own runs are not alike in engine (compiled: 1, tape: 2)" in notes and "B: 1 of 3 runs were stopped early (behind other trials: far)" in notes and "B: its own" not in notes


def test_more_sides_take_more_seeds(tmp_path: Path) -> None:
    "The seeds that would settle it are counted for the corrected p-value"
    g = np.random.default_rng(3)
    for arm in range(4):
        for seed in range(1, 5): place(tmp_path / f"{arm}/s{seed}", seed, float(g.normal(100 + 8 * arm, 10)), gamma=.9 + arm / 100)
    alone, among = (c.compare_sides([tmp_path / str(k) for k in arms]).contrasts[-1] for arms in ((0, 3), (0, 1, 2, 3)))
    assert alone.needed and among.needed and among.needed > alone.needed and alone.p == among.p


def test_is_and_seems() -> None:
    "`is better` is said in at most 5 % of studies of two equal sides (20 of 400 expected, more than 36 would be very bad luck), and nearly always where the difference is large"
    g = np.random.default_rng(5)
    def said(shift: float, n: int) -> bool: return " is better than" in c.sentence(c.contrast(side("A", list(g.normal(0, 1, n))), side("B", list(g.normal(shift, 1, n))), iqm))
    assert sum(said(0, 5) for _ in range(400)) <= 36 and sum(said(4, 6) for _ in range(30)) >= 28
    assert not any(said(9, 3) for _ in range(5))   # three seeds a side can never be enough


def test_sentences() -> None:
    better = c.sentence(c.contrast(side("A", [1, 2, 3, 4, 5]), side("B", [11, 12, 13, 14, 15]), iqm))
    assert better == "B is better than A: a run of it wins with probability 1.00, ahead in 5 of 5 seeds (p = 0.0079)"
    less = c.contrast(side("A", [1, 2, 3, 4, 5]), side("B", [11, 12, 13, 14, 15]), iqm, lower=True)
    assert less.better == "A" and "A is better than B: a run of it wins with probability 1.00, ahead in 5 of 5" in c.sentence(less)
    seems = c.sentence(c.contrast(side("A", [1, 2, 3]), side("B", [2, 3, 4]), iqm))
    assert "B seems better" in seems and "more seeds a side would settle it" in seems
    assert "more than 1,000 seeds" in c.sentence(c.contrast(side("A", [1, 4.5]), side("B", [2, 3]), iqm))
    assert c.settled(c.contrast(side("A", [1, 2, 3, 4, 5]), side("B", [11, 12, 13, 14, 15]), iqm), p=.06) is False


def test_pairs_are_tested_as_pairs() -> None:
    "Ten seeds that differ by far more than the sides do: only pairs can see it"
    hard = [100. * k for k in range(10)]
    one, two = side("A", hard), side("B", [h + 5 + k % 2 for k, h in enumerate(hard)])
    assert c.contrast(one, two, iqm).p > .5 and c.contrast(one, two, iqm, paired=True).p < .01
    lost = c.Side("B", "B", {"CartPole-v1": {77: 1., 78: 2.}}, ())
    with pytest.raises(StatsError, match="no seed in common"): c.contrast(one, lost, iqm, paired=True)


def test_a_test_that_sees_the_other_side_ahead_settles_nothing() -> None:
    "Fourteen of twenty pairs are won by one, six are lost by a hundred; the size of one difference counts no more than its place"
    one, two = side("A", [500.] * 20), side("B", [501.] * 14 + [400.] * 6)
    found = c.contrast(one, two, iqm, paired=True)
    assert (found.better, found.pairs_won, found.pairs_lost) == ("B", 14, 6) and found.p > .5 and "B seems better" in c.sentence(found)
    assert not c.settled(c.replace(found, p=.001, agrees=False))
    assert c.signed_ranks((np.array([3., 5., 1., 1.]), np.array([1., 1., 3., 1.]))).tolist() == [2.5, 4., -2.5, 0.]
    ties = c.contrast(side("A", [5.] * 4 + [6.]), side("B", [5.] * 5), iqm)
    assert (ties.better, ties.pairs_won, ties.pairs_lost) == ("A", 0, 1) and "ahead in 1 of 5 seeds" in c.sentence(ties)
    assert c.sentence(c.contrast(side("A", [500.]), side("B", [500.]), iqm)) == "A and B are alike in this 1 seed"


def test_holm_is_monotone() -> None:
    p = list(np.random.default_rng(0).random(6) / 5)
    found = c.holm(p)
    assert all(f >= q for f, q in zip(found, p)) and all(found[i] <= found[j] for i, j in pairwise(sorted(range(6), key=p.__getitem__)))


def test_the_sentence_and_the_interval_do_not_contradict_each_other(tmp_path: Path) -> None:
    "p decides who is better, the interval by how much; where one of them is sure alone, sentence and note say so"
    for k, (a, b) in enumerate(zip((400, 200, 100, 400, 400), (300, 500, 500, 500, 500)), 1): place(tmp_path / f"a/s{k}", k, a), place(tmp_path / f"b/s{k}", k, b, gamma=.9)
    found = c.compare_sides([tmp_path / "a", tmp_path / "b"])
    assert found.contrasts[0].p < .05 and found.contrasts[0].gap is not None and 0 in found.contrasts[0].gap
    assert found.verdicts()[0].endswith("(p = 0.032), by how much is open") and "contains 0, and p = 0.032: two questions" in "\n".join(found.notes()) and "by how much the iqm differs" in str(found)
    one, two = side("A", [300, 500, 200, 300, 200, 200]), side("B", [500, 500, 300, 400, 500, 400])
    seems = c.contrast(one, two, iqm)
    assert seems.p > .05 and c.at_odds(seems) and "B seems better" in c.sentence(seems) and "open" not in c.sentence(seems)
    said = c.Comparison("score", "iqm", .95, (one, two), (seems,), (seems.p,), {}, {}).notes()
    assert any("leaves out 0" in n and "decides the sentence" in n for n in said)
    better = c.contrast(side("A", [1, 2, 3, 4, 5]), side("B", [11, 12, 13, 14, 15]), iqm, lower=True)
    assert not c.at_odds(better) and c.at_odds(better, .06), "less is better, and the interval is below 0"


def test_arms_of_a_study_come_as_typed(tmp_path: Path) -> None:
    "Not by the alphabet: A is the first one, as in `rlstudio show`"
    gammas, configs = (.99, .9), {name: dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo", learning_rate=rate)) for name, rate in (("plain", 1e-3), ("faster", 1e-2))}
    study = Study.from_configs(configs, seeds=2, grid={"algo.gamma": gammas}, name="both", runs_dir=tmp_path)
    for cell in study.cells: place(cell.folder, cell.config.train.seed, 10., gamma=cell.config.algo.gamma, learning_rate=cell.config.algo.learning_rate)
    typed = [f"{arm} algo.gamma={gamma:g}" for arm in configs for gamma in gammas]
    def labels(path: Path) -> list[str]: return [s.label for s in c.compare_sides([path]).sides]
    assert labels(study.folder) == typed == labels(tmp_path), "also in a folder around it"
    assert [row["arm"].replace("_", " ", 1) for row in study.results()] == typed
    (study.folder / "study.yaml").write_text("arms: [")
    assert sorted(labels(study.folder)) == sorted(typed), "a plan that cannot be read decides nothing"
