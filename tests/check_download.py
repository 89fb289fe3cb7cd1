#!/usr/bin/env python3
"""Is a download what was released? `python3 check_download.py [FOLDER]` compares each file with SHA256SUMS, which lies beside it, and looks into the archives.

It needs nothing but Python, runs nothing of the download, and ends with exit code 3 and a line for each file that is damaged, missing or not in the list."""
import hashlib
import sys
import tarfile
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path


def digest(path: Path) -> str: return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(folder: Path) -> dict[str, str]:
    "name → SHA-256 of the list; a name that leads out of the folder is refused"
    pairs = [line.split("  ", 1) for line in (folder / "SHA256SUMS").read_text().splitlines() if line.strip()]
    if wrong := [p for p in pairs if len(p) != 2 or len(p[0]) != 64 or p[1] != Path(p[1]).name]: raise ValueError(f"SHA256SUMS: not a line of sha256sum: {'  '.join(wrong[0])!r}")
    return {name: sha for sha, name in pairs}


def wheel_problems(path: Path) -> list[str]:
    "Each file of a wheel against the wheel's own record"
    with zipfile.ZipFile(path) as wheel:
        names = {n for n in wheel.namelist() if not n.endswith("/")}
        record = next(n for n in names if n.endswith(".dist-info/RECORD"))
        rows = {name: sha for name, sha, _ in (line.rsplit(",", 2) for line in wheel.read(record).decode().splitlines() if line)}
        wrong = [f"{path.name}: {n} is not in its record" for n in sorted(names - rows.keys())] + [f"{path.name}: {n} is missing" for n in sorted(rows.keys() - names)]
        for name in sorted((names & rows.keys()) - {record}):
            if (sha := "sha256=" + urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()) != rows[name]: wrong.append(f"{path.name}: {name} differs from its record ({sha})")
    return wrong + ([f"{path.name}: {n} leads out of its folder" for n in sorted(names) if n.startswith("/") or ".." in n.split("/")])


def sdist_problems(path: Path) -> list[str]:
    "Only plain files below one folder"
    with tarfile.open(path) as tar: members = tar.getmembers()
    top = path.name.removesuffix(".tar.gz")
    return [f"{path.name}: {m.name} is no plain file below {top}" for m in members if not (m.isfile() or m.isdir()) or m.name.split("/")[0] != top or ".." in m.name.split("/")]


def problems(folder: Path) -> list[str]:
    "A line for everything that is wrong; nothing for a download that is whole"
    if not (folder / "SHA256SUMS").is_file(): return [f"{folder}: there is no SHA256SUMS; fetch it with the other files of the release"]
    try: sums = listed(folder)
    except ValueError as e: return [str(e)]
    wrong = [f"{n}: missing" for n in sorted(sums) if not (folder / n).is_file()]
    wrong += [f"{n}: damaged, its SHA-256 is {digest(folder / n)}" for n in sorted(sums) if (folder / n).is_file() and digest(folder / n) != sums[n]]
    wrong += [f"{p.name}: not of this release" for p in sorted(folder.iterdir()) if p.suffix in (".whl", ".gz") and p.name not in sums]
    whole = [folder / n for n in sorted(sums) if not any(w.startswith(f"{n}:") for w in wrong)]
    return wrong + [w for p in whole if p.suffix == ".whl" for w in wheel_problems(p)] + [w for p in whole if p.suffix == ".gz" for w in sdist_problems(p)]


def main(folder: str = "") -> int:
    where = Path(folder) if folder else Path(__file__).resolve().parent
    wrong = problems(where)
    print("\n".join(wrong) or f"{len(listed(where))} files are what was released")
    return 3 if wrong else 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:2]))
