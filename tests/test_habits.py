"What surrounds the code names things that exist: owners' patterns, labels, recipes, workflows, milestones."
import json
import re
import shlex
from fnmatch import fnmatchcase

import yaml
from support import ROOT, project_files

FILES = [f.as_posix() for f in project_files()]


def owns(pattern: str, path: str) -> bool:
    "Does a line of CODEOWNERS mean this file? As GitHub reads it: a folder with all below it, or a pattern"
    if pattern == "*": return True
    bare = pattern.strip("/")
    return path.startswith(bare + "/") if pattern.endswith("/") else fnmatchcase(path, bare)


def test_every_line_of_codeowners_owns_something() -> None:
    lines = [line.split() for line in (ROOT / ".github/CODEOWNERS").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) > 10 and lines[0][0] == "*"
    assert not [pattern for pattern, *_ in lines if not any(owns(pattern, f) for f in FILES)]
    assert all(re.fullmatch(r"@rlstudio/[a-z]+", who) for _, *team in lines for who in team) and all(team for _, *team in lines)


def test_templates_use_labels_that_exist() -> None:
    labels = yaml.safe_load((ROOT / ".github/labels.yml").read_text())
    names = [label["name"] for label in labels]
    assert len(set(names)) == len(names) and all(re.fullmatch("[0-9a-f]{6}", label["color"]) and label["description"] for label in labels)
    templates = [yaml.safe_load(p.read_text().split("---")[1]) for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")]
    assert len(templates) >= 3 and not {name for t in templates for name in t["labels"]} - {*names}


def test_recipes_name_what_exists() -> None:
    "Ten commands, each with a word about it; scripts and test files in them are there"
    text = (ROOT / "justfile").read_text()
    recipes = re.findall(r"^# (.+)\n([a-z]+)[^:\n]*:\n((?:    .+\n)+)", text, re.M)
    assert len(recipes) == 10
    words = [w for _, _, body in recipes for w in shlex.split(body.replace("&&", " "))]
    assert not [w for w in words if re.fullmatch(r"[\w./-]+\.(py|ipynb|txt|yaml)|\.ci/\w+", w) and w not in FILES]


def test_the_container_sets_up_what_contributing_says() -> None:
    setup = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["postCreateCommand"]
    assert setup in (ROOT / "CONTRIBUTING.md").read_text() and setup in (ROOT / "justfile").read_text()


def test_milestones_name_what_exists() -> None:
    "Each row has a state, its chapters and tests are there, and the table at the top counts them"
    top, *parts = re.split(r"^## ", (ROOT / "MILESTONES.md").read_text(), flags=re.M)
    found = [[[c.strip() for c in line.split("|")[1:-1]] for line in part.splitlines() if re.match(r"\| (?!item|---)", line)] for part in parts]
    rows = [row for part in found for row in part]
    states = [row[-1] for row in rows]
    counts = [[str([row[-1] for row in part].count(state)) for state in ("done", "partly", "not")] for part in [*found, rows]]
    assert [re.findall(r"\b\d+\b", line.partition(") |")[2] or line) for line in re.findall(r"^\| (?:\[|all).*", top, re.M)] == counts, f"expected {counts}"
    assert len(rows) > 30 and {*states} <= {"done", "partly", "not"} and {"done", "partly"} <= {*states}
    said = "\n".join("|".join(row) for row in rows)
    assert not [link for link in re.findall(r"\]\(([^)#]+)\)", said) if link not in FILES]
    for file, tests in re.findall(r"`(test_\w+)(?:::(\w+))?`", said):
        path = ROOT / "tests" / f"{file}.py"
        assert path.exists() and (not tests or f"def {tests}(" in path.read_text()), f"{file}::{tests}"


def test_the_index_of_decisions_is_complete() -> None:
    "Every record stands in docs/adr/README.md, with its title and its status"
    rows = {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| \[\d{4}\]\(([^)]+)\) \| (.+?) \| (.+?) \|$", (ROOT / "docs/adr/README.md").read_text(), re.M)}
    records = [p for p in sorted((ROOT / "docs/adr").glob("[0-9]*.md")) if not p.name.startswith("0000")]
    assert len(records) > 15 and rows.keys() == {p.name for p in records}
    for p in records:
        lines = p.read_text().splitlines()
        status = next(line.partition(":")[2].strip() for line in lines if line.startswith("Status:"))
        assert lines[0].startswith(f"# {p.name[:4]}: ") and rows[p.name][1] == status.partition(" (")[0], p.name
