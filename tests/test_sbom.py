"The bill of materials is complete, and an affected version is found."
import json
import re
import sys
from pathlib import Path

import pytest
from sbom import ADVISORIES, ROOT, advisories, affects, bill, hits, installed, locked
from support import run, said

LOCK = locked((ROOT / "constraints.txt").read_text())


def test_the_bill_is_the_lock() -> None:
    "Every line of the lock is in it, once, with a purl and a version; every edge leads to something in it"
    done = run(sys.executable, "tests/sbom.py")
    made = json.loads(done.stdout)
    assert done.returncode == 0 and made == json.loads(json.dumps(bill(LOCK))), said(done)
    refs = [c["purl"] for c in made["components"]]
    assert refs == [f"pkg:pypi/{n}@{v}" for n, v in sorted(LOCK.items())] and len(refs) > 200
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5") and re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", made["serialNumber"])
    edges = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    assert edges.keys() == {"rlstudio", *refs} and all(to in refs for tos in edges.values() for to in tos)
    assert f"pkg:pypi/numpy@{LOCK['numpy']}" in edges[f"pkg:pypi/gymnasium@{LOCK['gymnasium']}"]
    assert sum("licenses" in c for c in made["components"]) > .8 * len(refs)


def test_another_lock_is_another_bill() -> None:
    assert bill(LOCK | {"numpy": "0.0.1"})["serialNumber"] != bill(LOCK)["serialNumber"] == bill(dict(reversed(LOCK.items())))["serialNumber"]


def test_nothing_installed_is_known_to_be_broken() -> None:
    done = run(sys.executable, "tests/sbom.py", "--check")
    assert done.returncode == 0 and "none is affected" in done.stdout, said(done)
    assert not hits(LOCK, advisories(ADVISORIES))


def test_an_affected_version_is_found(tmp_path: Path) -> None:
    "Against a list that says what is here is broken"
    (more := tmp_path / "more.json").write_text(json.dumps([dict(id="CVE-0000-0001", package="numpy", affected="<999", about="a test")]))
    done = run(sys.executable, "tests/sbom.py", "--check", more)
    assert done.returncode == 3 and f"numpy {installed()['numpy']}: CVE-0000-0001: a test" in done.stdout, said(done)


@pytest.mark.parametrize("package, version, found", [
    ("torch", "2.5.1+cpu", ["CVE-2025-32434", "CVE-2026-24747"]), ("torch", "2.9.1", ["CVE-2026-24747"]), ("torch", "2.10.0+cu126", []), ("pyyaml", "5.3.1", ["CVE-2020-14343"]),
    ("protobuf", "5.29.4", ["CVE-2025-4565"]), ("protobuf", "5.29.5", []), ("protobuf", "4.25.8", []), ("protobuf", "6.31.0", ["CVE-2025-4565"]), ("jinja2", "3.1.6", []), ("unheard-of", "1", []),
])
def test_ranges(package: str, version: str, found: list[str]) -> None:
    assert [re.search(r"CVE-[\d-]+", h)[0] for h in hits({package: version}, advisories(ADVISORIES))] == found  # type: ignore[index]


def test_the_list_is_well_formed() -> None:
    "Each advisory names a package of the lock and a range that some version is in and the locked one is not"
    known = advisories(ADVISORIES)
    assert len({a["id"] for a in known}) == len(known) > 30
    for a in known:
        assert a.keys() == {"id", "package", "affected", "about"} and re.fullmatch(r"(CVE-\d{4}-\d{4,}|GHSA(-\w{4}){3})", a["id"]) and a["package"] in LOCK, a
        last = re.findall(r"<([\d.]+)", a["affected"])[-1]
        parts = list(map(int, last.split(".")))
        while not parts[-1]: parts.pop()
        before = ".".join(map(str, [*parts[:-1], parts[-1] - 1, 999]))   # 2.6.0 → 2.5.999
        assert affects(a, before) and not affects(a, last), a
