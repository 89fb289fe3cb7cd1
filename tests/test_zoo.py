"The page of results: fresh, from stored lines only, and honest about few seeds, other configs and what was never measured."
import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT, run, said

from rlstudio.core.options import config_hash


def test_the_zoo_is_fresh() -> None:
    "docs/zoo.md is what benchmarks/results say"
    done = run(sys.executable, "docs/make_zoo.py", "--check")
    assert done.returncode == 0, said(done)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    "docs/make_zoo.py over a copy of the results, which may be changed"
    for folder in ("docs", "benchmarks"): monkeypatch.syspath_prepend(str(ROOT / folder))
    for name in ("common", "learning", "zoo", "make_zoo"): sys.modules.pop(name, None)
    page, results = importlib.import_module("make_zoo"), tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", results)
    monkeypatch.setattr(sys.modules["learning"], "RESULTS", results)
    return page


def line(page: str, world: str, algo: str) -> list[str]:
    "The cells of one row"
    return next([c.strip() for c in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith(f"| {world} | {algo} "))


def test_numbers_come_from_the_stored_lines(zoo: ModuleType, tmp_path: Path) -> None:
    "Another score in a line is another IQM, interval and worst seed on the page; a line of another config is none of this one"
    path = tmp_path / "results" / "ppo" / "cartpole.jsonl"
    before = line(zoo.page(), "CartPole-v1", "PPO")
    assert before[2:6] == ["10", "500.0", "500.0 … 500.0", "500.0"]
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r | dict(eval_return_mean=100. + 10 * r["seed"])) + "\n" for r in rows))
    after = line(zoo.page(), "CartPole-v1", "PPO")
    assert after[3] == "155.0" and after[5] == "110.0" and after[4] != before[4] and after[6:] == before[6:]
    path.write_text("".join(json.dumps(r | dict(config_hash="of another one")) + "\n" for r in rows))
    assert "`ppo/cartpole`" in zoo.page().partition("## Not measured yet")[2]


def test_few_seeds_have_no_interval(zoo: ModuleType, tmp_path: Path) -> None:
    "Four seeds: their IQM, how many are wanted, and a dash"
    path = tmp_path / "results" / "ppo" / "cartpole.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    row = line(zoo.page(), "CartPole-v1", "PPO")
    assert row[2] == "4 of 10" and row[4] == "–"


def test_every_packaged_config_is_on_the_page(zoo: ModuleType) -> None:
    "With its figures, or among those that nobody has measured"
    page = zoo.page()
    for name, _, config in zoo.entries(): assert f"rlstudio run {name} " in page or f"`{name}`" in page, (name, config_hash(config))


def test_the_list_of_what_is_missing(zoo: ModuleType, tmp_path: Path) -> None:
    "A seed that is stored is not run again; one whose line is gone is"
    learn = sys.modules["zoo"]
    assert "ppo/cartpole" not in [m[0] for m in learn.missing()] and [m[3] for m in learn.missing("ppo/cartpole", 12)] == [[11, 12]]
    path = tmp_path / "results" / "ppo" / "cartpole.jsonl"
    path.write_text("".join(t for t in path.read_text().splitlines(keepends=True) if json.loads(t)["seed"] != 3))
    assert [m[3] for m in learn.missing("ppo/cartpole")] == [[3]]


def test_the_table_of_the_readme(zoo: ModuleType) -> None:
    "Fewer columns, the same rows"
    assert zoo.readme_table().data.count("\n") - 1 == sum(map(len, zoo.tables().values()))
