"The page of key figures: fresh, and each figure that it defines is measured and drawn."
import json
import re
import sys
from pathlib import Path

import pytest
from support import ROOT, run, said

sys.path.insert(0, str(ROOT / "docs"))
import make_kpi  # noqa: E402


def test_the_page_is_fresh() -> None:
    done = run(sys.executable, "docs/make_kpi.py", "--check", coverage=False)
    assert done.returncode == 0, said(done)


def test_what_is_defined_is_drawn() -> None:
    "The keys of the definitions are those of the history, and each has been measured at least once"
    defined = re.findall(r"^\| [^|]+ \| `(\w+)` \|", (ROOT / "docs/kpi.md").read_text().partition(make_kpi.BEGIN)[0], re.M)
    assert defined == list(make_kpi.FIGURES)
    assert {k for r in make_kpi.rows() for k in r["kpis"]} <= {*defined}


def test_a_new_measurement_makes_it_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (longer := tmp_path / "kpi.jsonl").write_text(make_kpi.HISTORY.read_text() + json.dumps(dict(time="2027-01-01T00:00:00Z", commit="0123456789ab", kpis=dict(ci_seconds=1000))) + "\n")
    monkeypatch.setattr(make_kpi, "HISTORY", longer)
    monkeypatch.setattr(sys, "argv", ["make_kpi.py", "--check"])
    assert make_kpi.main() == 1 and "| 2027-01-01 00:00 | `0123456` | – | – | – | – | – | 1,000 |" in make_kpi.table(make_kpi.rows())
