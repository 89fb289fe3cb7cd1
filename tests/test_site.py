"""The site is built once, as a user would build it, and looked at: every link leads somewhere, every public name is in the reference, nothing leaves the machine.

Screenshots go to the folder that RLSTUDIO_ARTEFACTS names. Without a chromium the tests in a browser are skipped."""
import functools
import http.server
import importlib
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from support import ROOT, Chapter, chapters, copy_tree, run, said

sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "docs" / "site")]
pytest.importorskip("sphinx", reason="needs the extra rlstudio[docs]")
reference = importlib.import_module("reference")
links = importlib.import_module("links")
mathml = importlib.import_module("mathml")

CHROMIUM = os.environ.get("RLSTUDIO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
browser_only = pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium, or RLSTUDIO_CHROMIUM=/path/to/chrome)")
SAMPLE = ("index.html", "learn/index.html", "tutorials/01_first_agent.html", "book/30_data.returns.html", "reference/api/data.storage.html",
          "reference/config.html", "reference/metrics.html", "modules/data.returns.html", "project/zoo.html", "search.html")
CODE = re.compile(r"<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>", re.S)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The whole site, built by its one command; RLSTUDIO_SITE names one that is built already"
    if ready := os.environ.get("RLSTUDIO_SITE"): return Path(ready).absolute()
    out = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "docs/make_site.py", "--out", out / "html", "--build", out / "build", coverage=False, timeout=900)
    assert done.returncode == 0, said(done)
    return out / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    "Page → its HTML"
    return {p.relative_to(site).as_posix(): p.read_text() for p in sorted(site.rglob("*.html")) if "_static" not in p.parts and "files" not in p.relative_to(site).parts[:1]}


# What is built

def test_there_is_a_page_for_everything(pages: dict[str, str]) -> None:
    book = {f"book/{c.path.stem}.html" for c in chapters()}
    walks = {f"{folder}/{p.stem}.html" for folder in ("prologue", "tutorials") for p in (ROOT / "nbs" / folder).glob("*.ipynb")}
    written = {p.relative_to(ROOT / "docs" / "pages").with_suffix(".html").as_posix() for p in (ROOT / "docs" / "pages").rglob("*.md")}
    records = {f"project/adr/{p.stem}.html" for p in (ROOT / "docs" / "adr").glob("0*.md")}
    assert book and walks and records and not (book | walks | written | records) - pages.keys()


def headings(html: str) -> list[str]: return re.findall(r"<h1\b.*?</h1>", CODE.sub("", html), re.S)


def test_one_heading_of_the_first_level(pages: dict[str, str]) -> None:
    assert not (odd := {name: found for name, html in pages.items() if len(found := headings(html)) != 1}), odd


def broken(pages: dict[str, str], exists: Any) -> list[str]:
    "Links, pictures and anchors that lead nowhere"
    ids = {name: set(map(unescape, re.findall(r'\bid="([^"]*)"', html))) for name, html in pages.items()}
    found = []
    for name, html in pages.items():
        for link in set(map(unescape, re.findall(r'<(?:a|img|link|script|source)\b[^>]*?\b(?:href|src)="([^"]*)"', html))):
            if re.match(r"(https?|mailto|data):", link): continue
            target, anchor = urldefrag(unquote(urljoin(f"http://site/{name}", link)))
            target = target.removeprefix("http://site/").partition("?")[0]
            if target in pages: found += [f"{name}: {link}"] if anchor and anchor not in ids[target] else []
            elif not exists(target): found.append(f"{name}: {link}")
    return found


def test_every_link_and_anchor_resolves(site: Path, pages: dict[str, str]) -> None:
    assert not (lost := broken(pages, lambda path: (site / path).is_file())), "\n".join(lost[:40])


def test_a_broken_link_is_found() -> None:
    pages = {"a.html": '<a href="b.html#there">x</a> <a href="https://arxiv.org">x</a> <img src="p.png">', "d/b.html": '<a href="../a.html">x</a><a href="#no">x</a>', "b.html": '<p id="there">'}
    assert broken(pages, lambda path: False) == ["a.html: p.png", "d/b.html: #no"]
    sources = links.Site()
    assert sources.relink("[x](99_a.ipynb), `[y](98.ipynb)`", "nbs/00.ipynb", "book/00.ipynb") == "x, `[y](98.ipynb)`" and sources.lost == ["book/00.ipynb: no file and no page nbs/99_a.ipynb"]


def test_nothing_asks_for_a_server_elsewhere(pages: dict[str, str]) -> None:
    "Neither a script, nor a style, nor a picture"
    outside = {name: found for name, html in pages.items() if (found := re.findall(r'<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^"]*"', html))}
    assert not outside, outside


# The reference

@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.module)
def test_every_public_name_is_in_the_reference(chapter: Chapter, pages: dict[str, str]) -> None:
    module = importlib.import_module(chapter.module)
    html = pages[f"reference/api/{chapter.module.removeprefix('rlstudio.')}.html"]
    absent = [name for name in module.__all__ if f'id="{chapter.module}.{name}"' not in html]
    assert not absent and f"book/{chapter.path.stem}.html#cell-" in html or not module.__all__, absent


def test_an_entry_says_arguments_errors_and_the_way_back(pages: dict[str, str]) -> None:
    entry = pages["reference/api/data.returns.html"].partition('id="rlstudio.data.returns.gae"')[2]
    words = unescape(re.sub(r"<[^>]+>", "", entry))
    for said_ in ("reward", "rewards r_t, (T, N) float32", "trace decay λ in [0, 1]", "advantages Â_t, (T, N)", "ValueError", "all arrays share one shape", "in its chapter", "source"): assert said_ in words, said_


def test_chapters_keep_source_and_signature(pages: dict[str, str]) -> None:
    "Directives and hidden cells are gone, imports are folded, the definition is all there, with the way to its reference"
    html = pages["book/30_data.returns.html"]
    words = unescape(re.sub(r"<[^>]+>", "", html))
    assert "def gae(" in words and "trace decay λ in [0, 1]" in words and "for t in reversed(range(len(δ))):" in words and "svg.hashsalt" not in words
    assert 'href="../reference/api/data.returns.html#rlstudio.data.returns.gae"' in html and "<math" in html and "<svg" in html or "_images/" in html
    assert not (told := [name for name, text in pages.items() if name.startswith(("book/", "tutorials/", "prologue/")) and re.search(r"#\|\s*(?:<[^>]*>)*\s*(export|hide|default_exp)", text)]), told


def test_config_and_commands_are_whole(pages: dict[str, str]) -> None:
    from typing import get_type_hints

    from rlstudio.core.options import Config, field_specs
    keys = [f"{name}.{key}" for name, cls in get_type_hints(Config).items() if name != "algo" for key in field_specs(cls)]
    keys += [f"algo.{name}.{key}" for name, algo in reference.algorithms() for key in field_specs(algo.Config) if key != "name"]
    assert len(keys) > 100 and not [k for k in keys if f'id="{k}"' not in pages["reference/config.html"]]
    words = unescape(re.sub(r"<[^>]+>", "", pages["reference/cli.html"]))
    for name, command in reference.commands():
        assert f"rlstudio {name} " in words, name
        assert not (lost := [o for p in command.params for o in p.opts if o.startswith("--") and not p.hidden and o not in words]), lost


def test_what_to_do_about_every_metric() -> None:
    "docs/site/metrics.yaml has a line for each metric of the code, and names only keys that exist"
    from typing import get_type_hints

    from rlstudio.core.options import Config, field_specs
    known, do = reference.glossary().keys(), reference.remedies()
    assert known == do.keys(), f"docs/site/metrics.yaml: no words about {sorted(known - do.keys())}; about nothing: {sorted(do.keys() - known)}"
    keys = {f"{name}.{key}" for name, cls in get_type_hints(Config).items() for key in field_specs(cls)} | {f"algo.{key}" for _, algo in reference.algorithms() for key in field_specs(algo.Config)}
    assert not [k for text in do.values() for k in re.findall(r"`((?:env|algo|net|train|eval)\.\w+)(?:=\w+)?`", text) if k not in keys]


def test_every_file_of_a_run_is_explained() -> None:
    runs = [p.parent for p in (ROOT / "tests" / "fixtures").glob("v*/*/config.yaml")]
    names = {f.relative_to(r).as_posix() for r in runs for f in r.rglob("*") if f.is_file()}
    assert len(names) > 20 and not (unknown := [n for n in names if not reference.covered(n)]), unknown
    assert not reference.covered("surprise.json")


def test_a_stale_page_fails_the_build(tmp_path: Path) -> None:
    copy = copy_tree(tmp_path / "copy")
    zoo = copy / "docs" / "zoo.md"
    zoo.write_text(zoo.read_text().replace("| CartPole-v1 |", "| CartPole-v9 |"))
    done = run(sys.executable, "docs/make_site.py", cwd=copy, coverage=False)
    assert done.returncode == 1 and "run: python docs/make_zoo.py" in done.stderr and not (copy / "docs" / "_site").exists(), said(done)


def test_a_formula_that_would_not_be_drawn_fails() -> None:
    assert "<math" in mathml.mathml(r"\hat A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l}", "block")
    with pytest.raises(mathml.MathError, match="backslashes"): mathml.mathml(r"\nosuchmacro{x}", "inline")


# In a browser

@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    "The site on a port of this machine"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: pass
    server = http.server.ThreadingHTTPServer((here := socket.gethostbyname("localhost"), 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{here}:{server.server_address[1]}"
    server.shutdown(); server.server_close(); thread.join()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"])
        yield browser
        browser.close()


def artefact(page: Any, name: str) -> None:
    if folder := os.environ.get("RLSTUDIO_ARTEFACTS"): Path(folder).mkdir(parents=True, exist_ok=True); page.screenshot(path=str(Path(folder) / f"site-{name}.png"))


@browser_only
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_legible_and_ask_nobody(chrome: Any, address: str, scheme: str) -> None:
    "No serious finding of axe-core, no request that leaves the machine, no error in the console"
    from axe_playwright_python.sync_playwright import Axe
    context = chrome.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page, asked, wrong, findings = context.new_page(), [], [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    for name in SAMPLE:
        page.goto(f"{address}/{name}")
        for v in Axe().run(page).response["violations"]:
            if v["impact"] in ("serious", "critical"): findings.append(f"{name}: {v['id']}: {len(v['nodes'])} × {v['nodes'][0]['html'][:160]}")
        artefact(page, f"{scheme}-{name.replace('/', '-').removesuffix('.html')}")
    context.close()
    assert len(asked) > len(SAMPLE) and not [u for u in asked if not u.startswith((address, "data:"))]
    assert not wrong and not findings, "\n".join([*wrong, *findings])


@browser_only
def test_phone_width(chrome: Any, address: str) -> None:
    "Nothing is wider than a phone; what must be (code, tables) scrolls by itself"
    context = chrome.new_context(viewport={"width": 375, "height": 750}, is_mobile=True, has_touch=True)
    page, wide = context.new_page(), []
    for name in SAMPLE:
        page.goto(f"{address}/{name}")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 375: wide.append(f"{name}: {width} px")
        artefact(page, f"phone-{name.replace('/', '-').removesuffix('.html')}")
    context.close()
    assert not wide, "\n".join(wide)


@browser_only
def test_search_finds_a_name_and_code_copies(chrome: Any, address: str) -> None:
    context = chrome.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")   # as the front page says
    page.keyboard.type("discounted_return\n")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
    assert any("reference/api/data.returns.html" in href for href in found), found
    page.goto(f"{address}/index.html")
    page.locator("div.highlight-sh").first.hover()
    page.locator("div.highlight-sh button.copybtn").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    readme = (ROOT / "README.md").read_text()
    context.close()
    assert copied.strip() and copied.strip() in readme and "rlstudio run" in copied


@browser_only
def test_keyboard(chrome: Any, address: str) -> None:
    "The first stops of the tab key are to be seen, and a picture's definition can be reached"
    context = chrome.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/book/30_data.returns.html")
    stops = []
    for _ in range(12):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("(() => { const e = document.activeElement, s = getComputedStyle(e); return [e.tagName, s.outlineStyle !== 'none' || s.boxShadow !== 'none'] })()"))
    context.close()
    assert {tag for tag, _ in stops} & {"A", "BUTTON", "INPUT"} and sum(seen for _, seen in stops) >= 10, stops
