"How cost grows: the models, the smallest case of the benchmark, and the picture and the page that show its rows."
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, run, said


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    "benchmarks/growth.py"
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])   # the script turns it
    return runpy.run_path(str(ROOT / "benchmarks/growth.py"))


def test_the_picture_and_the_page_are_fresh() -> None:
    done = run(sys.executable, "benchmarks/growth.py", "--check", coverage=False)
    assert done.returncode == 0, said(done)


def test_a_model_is_found_again(growth: dict[str, Any]) -> None:
    "a and b from costs that they made; neither is below zero; the largest miss is relative"
    for name, axis in growth["AXES"].items():
        costs = {str(x): [growth["predicted"](axis, 3., 5., x, 2)] * 3 for x in axis.sizes}
        assert growth["fit"](axis, costs, 2) == pytest.approx((3, 5, 0), abs=1e-9), name
    axis = growth["AXES"]["envs"]
    assert growth["fit"](axis, {"1": [1.], "2": [2.], "4": [2.]}, 2)[1] == 0
    a, _, miss = growth["fit"](axis, {"1": [1.], "1000000": [1.1]}, 2)
    assert miss == pytest.approx(max(abs(a - 1), abs(a / 1.1 - 1)))


def test_the_smallest_case(tmp_path: Path) -> None:
    "An axis and its roof, measured in a process of its own, which stores nothing"
    before = (ROOT / "benchmarks/results/growth.jsonl").read_bytes()
    done = run(sys.executable, "benchmarks/growth.py", "--run", "--quick", "--only", "replay", coverage=False)
    assert done.returncode == 0, said(done)
    assert "replay memory, on disk | 1,000 … 10,000" in done.stdout and (ROOT / "benchmarks/results/growth.jsonl").read_bytes() == before


def test_a_new_measurement_makes_them_stale(growth: dict[str, Any], tmp_path: Path) -> None:
    "And the same rows draw the same picture"
    rows = growth["newest"]()
    assert growth["stale"](rows) == []
    longer = json.loads(json.dumps(rows))
    longer["envs"]["series"]["tape"]["1"] = [1e6]
    assert growth["stale"](longer) == ["fast.md", "growth.svg"]
    for name in "ab": growth["draw"](longer, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes() and growth["mark"](longer) in (tmp_path / "a.svg").read_text()
    found = dict(cores=2, machine=dict(cpu="x"), batch_size=256, transitions=10, worlds={w: [dict(sb3=dict(sample=60.), rlstudio=dict(compiled=10., numpy=20., priorities=1., disk=2.))] for w in ("cartpole", "halfcheetah")})
    stack = dict(cores=2, machine=dict(cpu="x"), seeds=10, turns={"1000": [dict(ten=dict(cpu=40., wall=30.), stack=dict(cpu=10., wall=10.))]})
    told = " ".join(growth["ratios"](dict(sampling=found, stack=stack)))
    assert "CartPole 6.0 × with the compiled engine and 3.0 × with NumPy" in told and "1,000 steps each, 4.0 × less processor time and 3.0 × less wall time" in told
