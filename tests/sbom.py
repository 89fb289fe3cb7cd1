"""What the project is made of, and whether any of it is known to be broken; both without a network.

- `python tests/sbom.py > sbom.json`: the bill of materials of the lock (`constraints.txt`) as CycloneDX 1.5: names, versions, purls, licences, and who needs whom.
- `python tests/sbom.py --check [FILE …]`: compares what is installed here with `tests/advisories.json`, and with more files of that form; exit code 3 and a line for each hit.

The list is short on purpose: what has concerned this project or what it stands on. Where there is a network, `pip-audit -r constraints.txt` knows more."""
import importlib.metadata as metadata
import json
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ADVISORIES = ROOT / "tests" / "advisories.json"


def locked(text: str) -> dict[str, str]:
    "name → version of a lock, each line `name==version`"
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def installed() -> dict[str, str]:
    "name → version of everything that can be imported here"
    return {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]}


def component(name: str, version: str) -> dict[str, Any]:
    "One distribution; its licence, if it is installed and says so"
    about: dict[str, Any] = dict(type="library", name=name, version=version, purl=f"pkg:pypi/{name}@{version}", **{"bom-ref": f"pkg:pypi/{name}@{version}"})
    try: known = metadata.metadata(name)
    except metadata.PackageNotFoundError: return about
    words = known.get("License-Expression") or next((c.rpartition(":: ")[2] for c in known.get_all("Classifier") or () if c.startswith("License ::")), None)
    return about | (dict(licenses=[dict(license=dict(name=words))]) if words else {})


def needs(name: str, lock: Mapping[str, str]) -> list[str]:
    "The purls of what a distribution asks for, as far as the lock has it"
    try: asked = metadata.requires(name) or []
    except metadata.PackageNotFoundError: return []
    names = {canonicalize_name(Requirement(r).name) for r in asked if "extra ==" not in r}
    return sorted(f"pkg:pypi/{n}@{lock[n]}" for n in names if n in lock)


def bill(lock: Mapping[str, str]) -> dict[str, Any]:
    "The bill of materials: the same lock, the same bytes"
    parts = [component(name, version) for name, version in sorted(lock.items())]
    own = dict(type="application", name="rlstudio", **{"bom-ref": "rlstudio"})
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts))
    edges = [dict(ref=p["bom-ref"], dependsOn=needs(p["name"], lock)) for p in parts]
    return dict(bomFormat="CycloneDX", specVersion="1.5", serialNumber=f"urn:uuid:{serial}", version=1, metadata=dict(component=own), components=parts,
                dependencies=[dict(ref="rlstudio", dependsOn=[p["bom-ref"] for p in parts]), *edges])


def advisories(*files: Path) -> list[dict[str, str]]:
    "All advisories of some files"
    return [a for file in files for a in json.loads(file.read_text())]


def affects(advisory: Mapping[str, str], version: str) -> bool:
    "Is this version one of those? `||` separates branches; a local suffix such as `+cpu` names a build, not a version"
    public = Version(Version(version).public)
    return any(SpecifierSet(part.strip()).contains(public, prereleases=True) for part in advisory["affected"].split("||"))


def hits(have: Mapping[str, str], known: Iterable[Mapping[str, str]]) -> list[str]:
    "A line for each advisory that concerns what is there"
    return [f"{a['package']} {have[a['package']]}: {a['id']}: {a['about']}; affected are {a['affected']}" for a in known if a["package"] in have and affects(a, have[a["package"]])]


def main(*args: str) -> int:
    "The two commands"
    if not args:
        print(json.dumps(bill(locked((ROOT / "constraints.txt").read_text())), indent=1))
        return 0
    known, have = advisories(ADVISORIES, *map(Path, args[1:])), installed()
    found = hits(have, known)
    print("\n".join(found) or f"{len(have)} distributions are installed, none is affected by one of {len(known)} advisories")
    return 3 if found else 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
