"The gate: exact tests, two stages with a rate that holds, a file from anybody, the command, and a score that was measured."
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]
from typer.testing import CliRunner, Result

from rlstudio.core.arithmetic import identity
from rlstudio.core.options import ConfigError, config_from_dict, config_hash, to_dict
from rlstudio.core.seeding import make_generator
from rlstudio.evidence.drift import same_arithmetic
from rlstudio.evidence.gate import (
    ALARM,
    CONFIRM,
    FAIL,
    QUICK,
    Baseline,
    GateCell,
    GateReport,
    baseline_path,
    baseline_text,
    check_cell,
    fresh_seeds,
    rank_test,
    read_baseline,
    run_gate,
    surprises,
    train_apart,
    train_here,
)
from rlstudio.runs.config import any_config
from rlstudio.studio.cli import app

TINY = ("a2c/cartpole", "train.total_steps=640")
Measures = list[dict[str, float]]


# The test itself

@pytest.mark.parametrize(("n", "m"), [(3, 5), (5, 30), (10, 20), (15, 30)])
def test_ranks_without_ties_are_those_of_scipy(n: int, m: int) -> None:
    "The exact distribution of Mann and Whitney, in both tails"
    rng = make_generator("numpy", n * m, "test")
    for shift in (0., .5, 3.):
        x, y = rng.normal(size=n) - shift, rng.normal(size=m)
        theirs = [mannwhitneyu(x, y, alternative=side, method="exact").pvalue for side in ("less", "greater")]
        assert rank_test(x, y) == pytest.approx(theirs, rel=1e-9)


def test_ranks_with_ties_are_counted() -> None:
    "Every choice, one by one, in lists of few different values"
    rng = make_generator("numpy", 3, "test")
    for _ in range(20):
        values = rng.integers(0, 4, size=9).astype(float).tolist()
        ranks = [sum(2 * (b < a) + (b == a) for b in values) + 1 for a in values]
        sums = np.array([sum(ranks[i] for i in chosen) for chosen in combinations(range(9), 4)])
        assert rank_test(values[:4], values[4:]) == pytest.approx((np.mean(sums <= sums[0]), np.mean(sums >= sums[0])))


@pytest.mark.parametrize("kind", ["bells", "solved"])
def test_false_alarms_stay_below_the_stated_rate(kind: str) -> None:
    "600 comparisons in which nothing has changed; benchmarks/bugs.py --simulate makes 10,000 of each"
    rng, alarms = make_generator("numpy", 5, kind), 0
    for _ in range(600):
        values = rng.normal(size=(4, 35)) + rng.normal(size=(1, 35))
        if kind == "solved": values = np.minimum(500, np.round(495 + 10 * values))
        stored, fresh = {f"m{i}": v[15:] for i, v in enumerate(values)}, [{f"m{i}": v[j] for i, v in enumerate(values)} for j in range(15)]
        alarms += bool(surprises(stored, fresh[:QUICK], ALARM))
        assert not surprises(stored, fresh, 1e-6)
    assert alarms <= 600 * ALARM + 3 * (600 * ALARM) ** .5


# Two stages

def made(seeds: int = 20) -> GateCell:
    "A training whose scores are bell curves around 100 and 1"
    rng = make_generator("numpy", 7, "stored")
    scores = {"return": tuple(map(float, 100 + rng.normal(size=seeds))), "loss/value": tuple(map(float, 1 + .1 * rng.normal(size=seeds)))}
    return GateCell(TINY[0], TINY[1:], to_dict(any_config(TINY[0], TINY[1:])[0]), dict(arithmetic=dict(cpu="another")), tuple(range(1, seeds + 1)), scores)


class Source:
    "Scores from another bell curve, and the seeds that were asked for"
    def __init__(self, shift: float = 0., loss: float = 0., until: int = 99) -> None:
        self.shift, self.loss, self.until, self.asked = shift, loss, until, list[int]()

    def __call__(self, config: Mapping[str, Any], seeds: Sequence[int]) -> Measures:
        out = []
        for s in seeds:
            rng, on = make_generator("numpy", s, "fresh"), len(self.asked) < self.until
            out.append({"return": float(100 + on * self.shift + rng.normal()), "loss/value": float(1 + on * self.loss + .1 * rng.normal())})
            self.asked.append(s)
        return out


@pytest.mark.parametrize(("source", "verdict", "seeds"), [
    (Source(), "alike", 5), (Source(shift=-6), "worse", 15), (Source(shift=6), "better", 15), (Source(loss=.8), "changed", 15),
    (Source(loss=-.8), "changed", 15), (Source(shift=-6, loss=.8), "worse", 15), (Source(shift=-4, until=5), "cleared", 15)])
def test_verdicts(source: Source, verdict: str, seeds: int) -> None:
    "Each of them from the sources that it is about; no fresh seed is a stored one"
    found = check_cell("x", made(), source)
    assert (found.verdict, found.seeds, found.ok) == (verdict, seeds, verdict in ("alike", "better", "cleared"))
    assert source.asked == fresh_seeds(made())[:seeds] and not set(source.asked) & set(made().seeds)


def test_rounds_take_other_seeds() -> None:
    "No seed twice in three rounds"
    seeds = [s for r in range(3) for s in fresh_seeds(made(), r)]
    assert len(set(seeds)) == 3 * (QUICK + CONFIRM)


def test_a_training_that_breaks_is_a_failure() -> None:
    "A number that is not finite is no missing value"
    found = check_cell("x", made(), lambda config, seeds: [{} for _ in seeds])
    assert found.verdict == "broken" and not found.ok and "5 of 5 trainings broke" in found.notes[0]


def test_a_broken_training_is_measured_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    "In the real thing: an advantage that is not a number"
    from rlstudio.algos.on_policy import OnPolicy
    monkeypatch.setattr(OnPolicy, "advantages", staticmethod(lambda reward, *rest: reward * np.nan))
    assert train_here(made().resolved, [1]) == [{}]


# The file and the command

def gate(*args: object) -> Result: return CliRunner().invoke(app, ["gate", *map(str, args)])


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A baseline of tiny trainings, measured here"
    path = tmp_path_factory.mktemp("gate") / "mine.json"
    done = gate(path, *TINY, "--write", "--seeds", "1-12")
    assert done.exit_code == 0 and "a2c/cartpole: new, 12 seeds" in done.stdout, done.output
    return path


def rewritten(path: Path, to: Path, **shift: float) -> Path:
    "The same file with scores that somebody else may have measured"
    cell = read_baseline(path)["a2c/cartpole"]
    scores = {m: tuple(x + shift.get(m.replace("/", "_"), 0) for x in v) for m, v in cell.scores.items()}
    to.write_text(baseline_text({"a2c/cartpole": GateCell(cell.config, cell.overrides, cell.resolved, cell.made, cell.seeds, scores)}))
    return to


def test_the_command_finds_nothing_where_nothing_changed(mine: Path) -> None:
    "Equal bits; and without them, fresh seeds that are nothing special"
    assert gate(mine).exit_code == 0 and "to the last digit" in gate(mine).stdout
    fresh = gate(mine, "--fresh", "--json")
    said = json.loads(fresh.stdout)
    assert fresh.exit_code == 0 and said["trainings"]["a2c/cartpole"]["verdict"] == "alike" and said["ok"]
    assert gate(mine, "--fresh", "--round", 1).stdout != gate(mine).stdout


def test_the_command_finds_a_regression(mine: Path, tmp_path: Path) -> None:
    "A baseline of better days: exit code 3, the measure, both medians, and what to do"
    done = gate(rewritten(mine, tmp_path / "better.json", **{"return": 40.}))
    assert done.exit_code == 3 and "worse" in done.stdout and "return" in done.stdout and "--write, and let the file be reviewed" in done.stdout
    assert gate(rewritten(mine, tmp_path / "other.json", loss_value=5.)).exit_code == 3


def test_write_changes_only_what_moved(mine: Path, tmp_path: Path) -> None:
    "Measured again here, a file is what it was; another training joins it"
    path = tmp_path / "again.json"
    path.write_bytes(mine.read_bytes())
    again = gate(path, "--write", "--seeds", "1-12")
    assert "as it was, to the last digit" in again.stdout and path.read_bytes() == mine.read_bytes()
    assert gate(path, *TINY, "algo.gamma=0.9", "--name", "short-sighted", "--write", "--seeds", "1-10", "--jobs", 2).exit_code == 0
    assert [(n, len(c.seeds)) for n, c in read_baseline(path).items()] == [("a2c/cartpole", 12), ("short-sighted", 10)]
    assert gate(path, "--cell", "short*").stdout.count("equal") >= 1


def test_a_changed_config_is_named(mine: Path, tmp_path: Path) -> None:
    "The training is that of today; what differs from the day of the baseline is said"
    cell = read_baseline(mine)["a2c/cartpole"]
    values = to_dict(any_config(*TINY[:1], [*TINY[1:], "algo.gamma=0.97"])[0])
    other = tmp_path / "other.json"
    other.write_text(baseline_text({"a2c/cartpole": GateCell(cell.config, cell.overrides, values, cell.made, cell.seeds, cell.scores)}))
    assert "its config has changed: algo.gamma 0.97 → 0.99" in gate(other).stdout


@pytest.mark.parametrize(("args", "said"), [
    (["nowhere.json"], "no baseline"), (["nowhere.json", "--write"], "expected a config to measure"), (["MINE", "ppo/cartpole"], "without --write"),
    (["MINE", "--cell", "a2c/cartpol"], "did you mean 'a2c/cartpole'"), (["MINE", "--write", "--seeds", "3"], "expected 10 or more"),
    (["new.json", "ppo/cartpol", "--write"], "did you mean"), (["new.json", "ppo/cartpole", "algo.gama=1", "--write"], "did you mean 'gamma'")])
def test_mistakes(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str) -> None:
    "Exit code 2 and one message, no traceback, no file"
    monkeypatch.chdir(tmp_path)
    done = gate(*[str(mine) if a == "MINE" else a for a in args])
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output and not Path("new.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"format": 1, "cells": {}}', '{"format": 9, "cells": {"x": {}}}', '{"format": 1, "cells": {"x": {"config": 3}}}',
                                  '{"format": 1, "cells": {"x": {"config": "a2c/cartpole", "overrides": [], "resolved": {}, "made": {}, "seeds": [1], "scores": {"return": [1e999]}}}}'])
def test_files_of_strangers(tmp_path: Path, text: str) -> None:
    "A file that is no baseline is refused by name"
    path = tmp_path / "strange.json"
    path.write_text(text)
    done = gate(path)
    assert done.exit_code == 2 and "no baseline" in done.output and "Traceback" not in done.output


def test_processes_give_the_same_numbers() -> None:
    "One process or two"
    config = to_dict(any_config(*TINY[:1], TINY[1:])[0])
    assert train_apart(2)(config, [1, 2]) == train_here(config, [1, 2])


# What comes with the package

@pytest.fixture(scope="module")
def quick() -> Baseline: return read_baseline("quick")


def test_the_packaged_baseline_is_of_todays_configs(quick: Baseline) -> None:
    "All algorithms, enough seeds, and nobody has changed a config without measuring again"
    assert {n.partition("/")[0] for n in quick} == {"ppo", "a2c", "dqn", "sac", "td3"} and all(len(c.seeds) >= 20 for c in quick.values())
    stale = [n for n, c in quick.items() if config_hash(c.now()) != config_hash(config_from_dict(c.resolved))]
    assert not stale, f"measure again: rlstudio gate quick --write {' '.join(f'--cell {n}' for n in stale)}"
    entries = json.loads(baseline_path("quick").read_text())["cells"]
    assert all(e["config_hash"] == config_hash(quick[n].now()) and len(e["made"]["lock"]) == 64 for n, e in entries.items())


def test_the_quick_gate(quick: Baseline) -> None:
    "This very library learns as the baseline says; where the arithmetic is known, to the last digit"
    report = run_gate("quick")
    assert report.ok, str(report)
    if all(same_arithmetic(c.made["arithmetic"], identity()) for c in quick.values()): assert {r.verdict for r in report.rows} == {"equal"}, str(report)


def test_who_asks_for_fresh_seeds_is_not_told_of_equal_bits() -> None:
    for arithmetic, bits, words in ((True, True, "equal bits are asked for first"), (True, False, "equal bits are not asked for"), (False, False, "another arithmetic"), (False, True, "another arithmetic")):
        assert words in str(GateReport("quick", 30, arithmetic, (), bits))


def test_the_score_of_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    "The stored table: eight of eight in PPO, no false alarm in 20 real comparisons, and in 20,000 simulated ones no more than are allowed"
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    sys.modules.pop("common", None)
    import bugs
    rows = bugs.known("bug")
    assert {(r["cell"], r["bug"]) for r in rows} == {(n, b) for n in read_baseline("quick") for b in bugs.BUGS if n.partition("/")[0] in bugs.BUGS[b]}
    assert {r["bug"] for r in rows if r["algo"] == "ppo" and r["verdict"] in bugs.CAUGHT} == set(bugs.BUGS) and len(bugs.BUGS) == 8
    controls = bugs.known("control")
    assert len(controls) >= 20 and not [r for r in controls if r["verdict"] in bugs.CAUGHT]
    simulated = [r for r in bugs.history(bugs.STORED) if r["kind"] == "simulation"]
    assert sum(r["comparisons"] for r in simulated) >= 10_000 and all(r["failures"] <= FAIL * r["comparisons"] for r in simulated)


def test_configs_of_a_file_that_is_gone(tmp_path: Path) -> None:
    "The config as it resolved then takes the place of a file that nobody has any more"
    cell = made()
    lost = GateCell(str(tmp_path / "gone.yaml"), (), cell.resolved, cell.made, cell.seeds, cell.scores)
    assert lost.now() == cell.now()
    with pytest.raises(ConfigError): GateCell("gone", (), {}, cell.made, cell.seeds, cell.scores).now()
