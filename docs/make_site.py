#!/usr/bin/env python3
"""The whole site, offline: `python docs/make_site.py` writes docs/_site; `python -m http.server -d docs/_site` shows it.

Notebooks are rendered with the outputs that they have stored (nothing is executed), the reference is computed from the package, and results from benchmarks/results.
Sources for Sphinx are written to docs/_build, only where they have changed, so that a second build is quick. Any warning of Sphinx and any stale page fails it.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS), str(DOCS / "site")]

import api  # noqa: E402
import notebooks  # noqa: E402
from links import LINK, Site  # noqa: E402

WALKS = {"prologue": "Prologue: reinforcement learning without the library", "tutorials": "Tutorials"}
FOLDERS = {"howto": ("How-to", "Each answer fits on a screen, and every block of it is run by a test."),
           "coming-from": ("Coming from", "Names side by side, the same job in both, and what has no counterpart."),
           "help": ("Help", "First errors and what they mean, and where files are.")}
TOP = {"CHANGELOG.md": "changelog", "MILESTONES.md": "milestones", "CONTRIBUTING.md": "contributing", "SECURITY.md": "security-policy", "CODE_OF_CONDUCT.md": "conduct", "NOTICE.md": "notice"}   # of the root, as far as they are there
PROJECT = ("docs/zoo.md", "docs/kpi.md", "docs/faults.md")
ORDER = ("env", "wrapper", "network", "algorithm", "callback", "sink", "plugin", "load", "export", "resume", "seeds", "sweep", "compare", "cluster", "fast", "debug", "reproduce")   # of pages, by a word in their name; the rest by title
CHECKS = ("make_readme.py", "make_zoo.py", "make_faults.py", "make_kpi.py")


class SiteError(ValueError):
    "The site cannot be built as things are"


# Sources

class Sources:
    "The pages on their way to Sphinx: written only when they change, and removed when nobody writes them any more"
    def __init__(self, folder: Path):
        self.folder, self.written = folder, set[Path]()

    def put(self, name: str, content: str | bytes) -> None:
        path, data = self.folder / name, content.encode() if isinstance(content, str) else content
        self.written.add(path)
        if path.is_file() and path.read_bytes() == data: return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def tidy(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path not in self.written: path.unlink()


def toctree(entries: list[str], caption: str = "", hidden: bool = True, depth: int = 1) -> str:
    "A table of contents of MyST"
    options = (f":caption: {caption}\n" if caption else "") + (":hidden:\n" if hidden else "") + f":maxdepth: {depth}\n"
    return f"```{{toctree}}\n{options}\n" + "\n".join(entries) + "\n```"


def title_of(path: Path) -> str:
    "The H1 of a page or a notebook"
    text = path.read_text()
    if path.suffix == ".ipynb": text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    found = re.search(r"^# (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    if not found: raise SiteError(f"{path.relative_to(ROOT)}: expected a heading of the first level, `# …`")
    return found[1].strip()


def pages_of(folder: str) -> list[Path]:
    "The pages that were written by hand, in their order"
    def rank(p: Path) -> tuple[int, str]:
        return next((i for i, word in enumerate(ORDER) if word in p.stem), len(ORDER)), title_of(p)
    return sorted((p for p in (DOCS / "pages" / folder).glob("*.md") if p.stem not in ("index", "README")), key=rank)


def the_map() -> list[tuple[str, list[str], str]]:
    "The parts of the book as nbs/index.ipynb has them: title, notebooks, what one knows after it"
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    text = next("".join(c["source"]) for c in cells if "| part | chapters |" in "".join(c["source"]))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and ".ipynb" in line]
    found = [(row[0], [m[3] for m in LINK.finditer(row[1])], row[2]) for row in rows]
    for name in sorted(p.name for p in (ROOT / "nbs").glob("[0-9]*.ipynb")):   # one that the map does not know yet (a gate asks for it) stands behind the one before it
        if any(name in names for _, names, _ in found): continue
        before = max((n for _, names, _ in found for n in names if n < name), default="")
        next(names for _, names, _ in found if before in names).append(name)
    return [(title, sorted(names), knows) for title, names, knows in found]


def plan(site: Site) -> None:
    "Which file becomes which page"
    for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")): site.pages[f"nbs/{p.name}"] = f"book/{p.name}"
    for folder in WALKS:
        for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb")): site.pages[f"nbs/{folder}/{p.name}"] = f"{folder}/{p.name}"
    for p in sorted((DOCS / "adr").glob("*.md")): site.pages[f"docs/adr/{p.name}"] = f"project/adr/{p.name if p.name != 'README.md' else 'index.md'}"
    for p in sorted((DOCS / "pages").rglob("*.md")): site.pages[p.relative_to(ROOT).as_posix()] = p.relative_to(DOCS / "pages").as_posix()
    for name in PROJECT: site.pages[name] = f"project/{Path(name).name}"
    for name, page in TOP.items():
        if (ROOT / name).is_file(): site.pages[name] = f"project/{page}.md"
    if twice := [page for page, n in Counter(site.pages.values()).items() if n > 1]: raise SiteError(f"two files would become one page: {', '.join(sorted(k for k, v in site.pages.items() if v in twice))}")
    site.pages |= {"README.md": "index.md", "nbs/index.ipynb": "index.md", "nbs": "book/index.md", "nbs/prologue": "learn/index.md", "nbs/tutorials": "learn/index.md", "docs/adr": "project/adr/index.md"}
    site.pages |= {f"rlstudio/{m.path.parent.name}/{m.path.name}": f"reference/api/{m.short}.md" for m in api.modules()}
    import reference
    site.pages |= {name: name for name in (*reference.PAGES, "reference/index.md", "reference/api/index.md", "learn/index.md", "book/index.md", "project/index.md", *(f"{f}/index.md" for f in FOLDERS))}


# Front page

def index_cells() -> list[str]:
    "The Markdown of the README's notebook"
    return ["".join(c["source"]) for c in json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"] if c["cell_type"] == "markdown"]


def fence(text: str, language: str) -> str:
    "The first block of a language"
    found = re.search(rf"^```{language}\n.*?^```$", text, re.M | re.S)
    if not found: raise SiteError(f"README.md: expected a block ```{language}")
    return found[0]


def stored(name: str) -> list[dict[str, Any]]:
    "The lines of a measurement"
    path = ROOT / "benchmarks" / "results" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def picture(groups: list[tuple[str, str, list[tuple[str, float, bool]]]], label: str) -> str:
    "Bars in groups: title, unit, (name, value, is it ours?); in the colours of the page"
    bars, y = [], 0
    for title, unit, rows in groups:
        bars.append(f'<text x="0" y="{y + 14}" font-weight="bold">{title}</text>')
        y += 22
        for name, value, ours in rows:
            width = 300 * value / max(v for _, v, _ in rows)
            bars.append(f'<text x="0" y="{y + 14}">{name}</text><rect x="150" y="{y + 2}" width="{width:.1f}" height="15" class="{"ours" if ours else "other"}"/>'
                        f'<text x="{156 + width:.1f}" y="{y + 14}">{value:,.0f} {unit}</text>')
            y += 20
        y += 10
    return f'<figure class="speed"><svg viewBox="0 0 640 {y}" role="img" aria-label="{label}">{"".join(bars)}</svg></figure>'


def machines(rows: list[dict[str, Any]]) -> str:
    "What they were measured on"
    return "; ".join(sorted({f"{r['machine']['cpu']}, torch {r['versions']['torch']}" for r in rows}))


LIBRARIES = {"rlstudio-compiled": "RLStudio (compiled)", "rlstudio": "RLStudio", "purejaxrl": "PureJaxRL (JAX)", "sbx": "SBX (JAX)", "cleanrl": "CleanRL's style", "skrl": "skrl",
             "sb3": "Stable-Baselines3", "tianshou": "Tianshou", "torchrl": "TorchRL", "rllib": "RLlib", "cleanrl-envpool": "CleanRL's style on EnvPool"}


def measured() -> list[tuple[str, str, dict[str, dict[Any, float]], list[dict[str, Any]]]]:
    "Equal work of several libraries: what it is, in which unit, library → round → rate, and the stored rows; of each library its newest session"
    found: dict[str, tuple[str, dict[str, dict[Any, float]], list[dict[str, Any]]]] = {}
    runs = stored("peer_runs.jsonl")
    for r in runs:
        newest = max(x["session"] for x in runs if (x["case"], x["library"]) == (r["case"], r["library"]))
        if r["session"] != newest or r["cores"] != 1: continue
        key = "updates_per_second" if "updates_per_second" in r else "env_steps_per_second"
        _, rates, rows = found.setdefault(r["work"], (key, {}, []))
        rates.setdefault(r["library"], {})[r["session"], r["round"]] = r[key]
        rows.append(r)
    old: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for r in stored("peers.jsonl"): old.setdefault(r["config"], {}).setdefault(r["time"], []).append(r)
    for work, times in old.items():   # those that no newer table has
        if any(work.split(",")[0] == w.split(",")[0] for w in found): continue
        rows = times[max(times)]
        found[work] = "env_steps_per_second", {n: {i: r[n]["env_steps_per_second"] for i, r in enumerate(rows)} for n in LIBRARIES if n in rows[0]}, rows
    return [(work, *rest) for work, rest in found.items()]


def in_words(work: str, rates: dict[str, dict[Any, float]]) -> str:
    "One sentence about a comparison, the lost ones included: medians of the ratios within rounds"
    def ratio(one: str, other: str) -> str: return f"{median(rates[one][n] / rates[other][n] for n in rates[one] if n in rates[other]):.2g} ×"
    ours = [n for n in ("rlstudio-compiled", "rlstudio") if n in rates]
    best, first = (max(names, key=lambda n: median(rates[n].values())) for names in (ours, rates))
    said = f"{work.split(',')[0]}: {LIBRARIES[best]} takes {ratio(best, 'sb3')} the steps of Stable-Baselines3"
    if first not in ours: said += f", and {ratio(best, first)} those of {LIBRARIES[first]}"
    return said + "".join(f"; {LIBRARIES[n]} as it comes: {ratio(n, 'sb3')}" for n in ours if n != best)


def peers() -> str:
    "Others beside us: bars, the fastest first, and a sentence about each"
    cases, groups = measured(), []
    for work, key, rates, _ in cases:
        middle = {n: median(found.values()) for n, found in rates.items()}
        groups.append((work, f"{key.removesuffix('_per_second').replace('_', ' ')}/s", [(LIBRARIES.get(n, n), middle[n], n.startswith("rlstudio")) for n in sorted(middle, key=lambda n: -middle[n])]))
    said = [in_words(work, rates) for work, _, rates, _ in cases]
    return (f"{picture(groups, '; '.join(said))}\n\nEqual work in interleaved rounds, one core each ({machines([r for *_, rows in cases for r in rows])}):\n\n"
            + "".join(f"- {line}\n" for line in said) + "\n"
            "*Compiled* is `engine = compiled` in `settings.ini`; start-up and compilation are not in these figures. "
            "Raw numbers: [peer_runs.jsonl](../benchmarks/results/peer_runs.jsonl) and [peers.jsonl](../benchmarks/results/peers.jsonl), by [benchmarks/peers](../benchmarks/peers/__main__.py).")


def ladder() -> str:
    "The same training on every rung of engines, of the newest measurement"
    if not (rows := stored("ladder.jsonl")): return ""
    newest = rows[-1]
    rate = {rung: median(1e6 / r[rung] for r in newest["rounds"]) for rung in newest["rounds"][0]}
    label = ", ".join(f"{name} {value / next(iter(rate.values())):.1f} ×" for name, value in rate.items())
    return (f"{picture([(newest['work'], 'steps per CPU second', [(n, v, n != 'autograd') for n, v in rate.items()])], label)}\n\nThe same loss, written once, on each engine ({machines([newest])}): {label}. "
            "The chapter [profile](93_fast.profile.ipynb) explains the rungs.")


def speed() -> str: return "\n\n".join(filter(None, (peers(), ladder())))


def front(site: Site) -> str:
    "The front page: its words from docs/site/pages/index.md, all else from the README's notebook and from the measurements"
    from make_zoo import readme_table
    cells = index_cells()
    whole, readme = "\n\n".join(cells), (ROOT / "README.md").read_text()   # which `stale` has compared with the notebook
    pictures = next(c for c in cells if "<img" in c)
    images = "".join(re.findall(r"<img [^>]*>", pictures))
    what = re.search(r"^## What it is for\n(.*?)(?=^## |\Z)", whole, re.M | re.S)
    parts = {"promise": next(m[1] for c in cells if (m := re.search(r"^> (.+)$", c, re.M))), "pictures": f'<div class="pictures">{images}</div>', "command": fence(readme, "sh"),
             "notebook": fence(readme, "python"), "what": what[1].strip() if what else "", "results": readme_table().data + "\n\nAll of it, with levels and commands: [the zoo of results](../docs/zoo.md).",
             "speed": speed()}
    text = (DOCS / "site" / "pages" / "index.md").read_text()
    text = re.sub(r"\{\{(\w+)\}\}", lambda m: site.relink(parts[m[1]], "nbs/index.ipynb", "index.md"), text)
    return text + "\n" + toctree(["learn/index", *(f"{f}/index" for f in FOLDERS if pages_of(f)), "book/index", "reference/index", "project/index"]) + "\n"


# Tables of contents

def first_quote(path: Path) -> str:
    "The promise of a notebook"
    text = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"][:3])
    found = re.search(r"^> (.+)$", text, re.M)
    return found[1] if found else ""


def learn() -> str:
    parts = ["# Learn", "If reinforcement learning is new to you, begin with the prologue: three notebooks with nothing but Gymnasium, NumPy and torch. The tutorials train, change and use an agent, in minutes each. "
             "After them, read the [book](../book/index.md) in the order of its numbers."]
    for folder, title in WALKS.items():
        files = sorted((ROOT / "nbs" / folder).glob("*.ipynb"))
        parts += [f"## {title}", "\n".join(f"1. [{title_of(p)}](../{folder}/{p.name}): {first_quote(p)}" for p in files), toctree([f"../{folder}/{p.stem}" for p in files], title)]
    return "\n\n".join(parts) + "\n"


def book() -> str:
    parts = ["# The book", "Every module of the package is a chapter: the idea, the equation, ten lines of code, a picture, and the test that pins it. The chapters are the source; the package is generated from them. A chapter uses only chapters before it."]
    for title, names, knows in the_map():
        chapters = [n for n in names if re.fullmatch(r"\d\d_[\w.]+\.ipynb", n)]
        if not chapters: continue
        rows = [f"- [{n.removesuffix('.ipynb')}]({n}): {first_quote(ROOT / 'nbs' / n)}" for n in chapters]
        parts += [f"## {title}", f"*{knows}*", "\n".join(rows), toctree([f"{n.removesuffix('.ipynb').split('_', 1)[1]} <{n.removesuffix('.ipynb')}>" for n in chapters], title)]
    return "\n\n".join(parts) + "\n"


def folder_index(folder: str) -> str:
    title, words = FOLDERS[folder]
    own = DOCS / "pages" / folder / "index.md"
    files = pages_of(folder)
    head = own.read_text().rstrip() if own.is_file() else f"# {title}\n\n{words}\n\n" + "\n".join(f"- [{title_of(p)}]({p.name})" for p in files)
    return head + "\n\n" + toctree([p.stem for p in files]) + "\n"


def project(site: Site) -> str:
    own = pages_of("project")
    rest = [site.pages[n].removeprefix("project/") for n in (*PROJECT, *TOP) if n in site.pages]
    names = [*(p.name for p in own), "adr/index.md", *rest]
    def named(name: str) -> str:
        source = next((ROOT / k for k, v in site.pages.items() if v == f"project/{name}"), ROOT)
        return title_of(source)
    return "# The project\n\n" + "\n".join(f"- [{named(n)}]({n})" for n in names) + "\n\n" + toctree([n.removesuffix(".md") for n in names]) + "\n"


def api_index(found: list[api.Module]) -> str:
    count = sum(len(m.public) for m in found)
    head = f"# Every public name\n\n{count:,} names in {len(found)} modules, each with its arguments, its errors and the way back to its chapter. The search knows all of them; so does the <a href=\"../../genindex.html\">alphabetical index</a>."
    import reference
    doors = __import__("rlstudio")
    rows = [(f'<a href="{doors._HOMES[n]}.html#rlstudio.{doors._HOMES[n]}.{n}"><code>{n}</code></a>', f"`rlstudio.{doors._HOMES[n]}`") for n in doors.__all__ if n in doors._HOMES]
    parts = [head, "## From the top", "What most programs begin with: `from rlstudio import …`", reference.table(("name", "its home"), rows)]
    for part in dict.fromkeys(m.path.parent.name for m in found):
        inside = sorted((m for m in found if m.path.parent.name == part), key=lambda m: m.chapter)
        parts += [f"## {part}", reference.table(("module", "what it is for"), [(f"[{m.short}]({m.short}.md)", api.safe(api.promise(m))) for m in inside]), toctree([m.short for m in inside], part)]
    return "\n\n".join(parts) + "\n"


REFERENCE = """# Reference

All of it is computed from the code, at each build.

- [Every public name](api/index.md): arguments, shapes, units, errors
- [Config](config.md): every key of a config, of each algorithm, and of settings.ini
- [Packaged configs](configs.md): what comes along
- [Command line](cli.md): every command and option
- [Metrics](metrics.md): formula, unit, healthy range, what to do
- [Events](events.md): who is called when
- [Errors](errors.md): every type of error
- [File formats](files.md): run folder, checkpoint, agent, study, with their versions
"""


# All of it

def stale() -> list[str]:
    "The written pages that are not what their scripts would write"
    found = []
    for script in CHECKS:
        done = subprocess.run([sys.executable, str(DOCS / script), "--check"], capture_output=True, text=True)
        if done.returncode: found.append((done.stderr or done.stdout).strip().splitlines()[-1])
    return found


def write_sources(build: Path) -> tuple[Sources, Site]:
    "Everything that Sphinx reads"
    import reference
    site, out = Site(), Sources(build / "source")
    plan(site)
    found = api.modules()
    by_chapter = {m.chapter: m for m in found}
    for source, page in site.pages.items():
        path = ROOT / source
        if not path.is_file() or source == page or page == "index.md" or page.startswith("reference/"): continue
        if path.suffix == ".ipynb":
            m = by_chapter.get(source)
            nb = notebooks.page(json.loads(path.read_text()), source, page, site, m.short if m else "", set(m.public) if m else set())
            out.put(page, json.dumps(nb, ensure_ascii=False, indent=1))
        elif page == "project/adr/index.md":
            names = [p.stem for p in sorted((DOCS / "adr").glob("[0-9]*.md"))]
            out.put(page, site.relink(path.read_text(), source, page) + "\n" + toctree(names) + "\n")
        elif not (path.stem == "index" and page.split("/")[0] in FOLDERS): out.put(page, site.relink(path.read_text(), source, page))
    for name, make in reference.PAGES.items(): out.put(name, make())
    for m in found: out.put(f"reference/api/{m.short}.md", api.page(m))
    out.put("reference/api/index.md", api_index(found))
    out.put("reference/index.md", REFERENCE + "\n" + toctree(["api/index", "config", "configs", "cli", "metrics", "events", "errors", "files"]) + "\n")
    out.put("learn/index.md", learn())
    out.put("book/index.md", book())
    out.put("project/index.md", project(site))
    for folder in FOLDERS:
        if pages_of(folder): out.put(f"{folder}/index.md", site.relink(folder_index(folder), f"docs/pages/{folder}/index.md", f"{folder}/index.md"))
    out.put("index.md", front(site))
    if site.lost: raise SiteError("\n".join(site.lost))
    for name in sorted(site.pictures): out.put(f"pictures/{name}", (ROOT / name).read_bytes())
    out.tidy()
    copies = Sources(build / "copies")
    for name in sorted(site.copies): copies.put(f"files/{name}", (ROOT / name).read_bytes())
    copies.tidy()
    return out, site


def changed(stamp: Path, texts: Iterable[bytes]) -> bool:
    "Is it another content than that of the last build? Notes the new one"
    now = hashlib.sha256(b"\0".join(texts)).hexdigest()
    before = stamp.read_text() if stamp.is_file() else ""
    stamp.write_text(now)
    return now != before


def build(to: Path, work: Path, fresh: bool = False) -> int:
    "The sources, and Sphinx over them: 0, or what it answers"
    from sphinx.cmd.build import main as sphinx
    if fresh: shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    if changed(work / "machinery", [p.read_bytes() for p in sorted((DOCS / "site").rglob("*")) if p.is_file() and "__pycache__" not in p.parts]): shutil.rmtree(work / "doctrees", ignore_errors=True)
    out, _ = write_sources(work)
    sidebar = [b"\n".join(re.findall(rb"```\{toctree\}.*?```|^# .+$", p.read_bytes(), re.M | re.S)) for p in sorted(out.written) if p.suffix == ".md"]
    whole = changed(work / "sidebar", sidebar)   # stands on every page, and Sphinx writes those only that have changed themselves
    shutil.rmtree(to / "files", ignore_errors=True)
    os.environ["RLSTUDIO_SITE_COPIES"] = str(work / "copies")
    return sphinx([*(["-a"] if whole else []), "-q", "-W", "--keep-going", "-b", "html", "-c", str(DOCS / "site"), "-d", str(work / "doctrees"), str(work / "source"), str(to)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS / "_site", help="the folder of the site  [default: docs/_site]")
    parser.add_argument("--build", type=Path, default=DOCS / "_build", help="the folder of its sources and of what Sphinx keeps  [default: docs/_build]")
    parser.add_argument("--fresh", action="store_true", help="build all of it anew")
    args = parser.parse_args()
    if found := stale(): raise SiteError("\n".join(found))
    began = time.process_time()
    status = build(args.out.absolute(), args.build.absolute(), args.fresh)
    pages = len(list(args.out.rglob("*.html")))
    if not status: print(f"{args.out}: {pages} pages, {time.process_time() - began:.0f} s of CPU time; look at it: {sys.executable} -m http.server -d {args.out}")
    return status


if __name__ == "__main__":
    try: sys.exit(main())
    except SiteError as error: sys.exit(f"make_site: {error}")
