"""Which distributions the project needs, with versions: `python tests/closure.py > constraints.txt` after a tested upgrade.

The same walk over the installed metadata feeds two tests: the constraints are complete, and the wheel runs beside the core dependencies alone.
"""
import importlib.metadata as metadata
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HEADER = """\
# The versions that the project was tested with, for Python 3.11 on Linux: pip install -c constraints.txt …
# Written by `python tests/closure.py > constraints.txt` in an environment whose tests pass; a test says when a line is missing.
"""


def requirements(*extras: str) -> list[Requirement]:
    "The requirements that pyproject.toml declares, with those of `extras`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [r for e in extras for r in project["optional-dependencies"][e]]
    own = [r for r in map(Requirement, texts) if r.name == project["name"]]
    rest = [r for r in map(Requirement, texts) if r.name != project["name"]]
    return rest + (requirements(*sorted({e for r in own for e in r.extras})) if own else [])


def closure(*extras: str) -> dict[str, metadata.Distribution]:
    "Every installed distribution that the project with `extras` needs, by canonical name"
    found: dict[str, metadata.Distribution] = {}
    seen, todo = set(), requirements(*extras)
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if (name, frozenset(need.extras)) in seen: continue
        seen.add((name, frozenset(need.extras)))
        found[name] = dist = metadata.distribution(need.name)
        for req in map(Requirement, dist.requires or []):
            worlds = [default_environment() | {"extra": e} for e in ("", *need.extras)]
            if req.marker is None or any(req.marker.evaluate(w) for w in worlds): todo.append(req)
    return found


def pins(dists: dict[str, metadata.Distribution]) -> dict[str, str]:
    "name → public version (a local suffix such as `+cpu` names a build, not a version)"
    return {name: Version(dist.version).public for name, dist in sorted(dists.items())}


if __name__ == "__main__":
    print(HEADER + "\n".join(f"{n}=={v}" for n, v in pins(closure("dev")).items()))
