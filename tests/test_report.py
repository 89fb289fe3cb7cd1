"""The page of a run or a study: one file that shows, acts in no way, and asks nobody; read by a parser and by a real browser.

Screenshots go to the folder that RLSTUDIO_ARTEFACTS names. Without a chromium the browser's tests are skipped."""
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlstudio.evidence.report import DARK, LIGHT, write_report
from rlstudio.evidence.search import STOPPED
from rlstudio.evidence.study import make_plan, note_unbegun, plan_text
from rlstudio.evidence.verify import verify
from rlstudio.runs.folder import locked
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app

CHROMIUM = os.environ.get("RLSTUDIO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync").split()
EVIL = '"><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\x1b[31m\u202e'
SHORT = {"train.total_steps": 2048, "eval.episodes": 4, "eval.every": 1024, "checkpoint.every": 2048}


class Strict(HTMLParser):
    "Reads a page, and notes whatever could act or ask another computer"
    ACTS = {"script", "iframe", "object", "embed", "link", "form", "input", "base", "a", "image", "use", "foreignobject", "animate", "set"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.open, self.texts = list[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.ACTS: self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("src", "href", "action", "data", "srcset", "xlink:href") and not (value or "").startswith("data:image/webp;base64,"): self.found.append(f"{tag} {name}={value}")
        if tag not in ("meta", "img"): self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag: self.found.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None: self.texts.append(data)


def harmless(page: str) -> str:
    "Assert that a page only shows; its text"
    seen = Strict(page)
    assert not seen.found and not seen.open, (seen.found, seen.open)
    assert "default-src 'none'" in page[:400] and "\x1b" not in page and "\u202e" not in page
    return " ".join(seen.texts)


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run that has ended"
    made = Run.from_config("ppo/cartpole", SHORT, runs_dir=tmp_path_factory.mktemp("runs"), name="pole")
    made.train()
    return made.folder


def test_the_page_of_a_run(pole: Path) -> None:
    page = write_report(pole).read_text()
    text = harmless(page)
    result = json.loads((pole / "result.json").read_text())
    for said in (f"{result['eval_return_mean']:,.1f} ± {result['eval_return_std']:,.1f}", "goal of 475", "L3", "rlstudio study", result["weights_sha256"][:16], "gae_lambda"): assert said in text, said
    assert page.count("data:image/webp") == 1 and verify(pole).whole          # the page is part of the run, and noted
    write_report(pole)
    assert verify(pole).whole and not [p for p in pole.iterdir() if p.name.endswith(".tmp")]


def test_a_page_beside_a_training(pole: Path, tmp_path: Path) -> None:
    "While another process holds the run, the page is written all the same; the run notes it when it ends"
    copy = shutil.copytree(pole, tmp_path / "copy")
    (copy / "report.html").unlink(missing_ok=True)
    before = (copy / "hashes.json").read_bytes()
    with locked(copy): write_report(copy)
    assert (copy / "report.html").exists() and (copy / "hashes.json").read_bytes() == before


def test_the_command(pole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    def report(*args: Any) -> Any: return CliRunner().invoke(app, ["report", *map(str, args)])
    out = tmp_path / "page.html"
    done = report(pole, "--out", out, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == dict(report=str(out), bytes=out.stat().st_size), done.output
    for args, said in ((("nowhere",), "nowhere: not a run"), ((pole, "--out", tmp_path / "no" / "x.html"), "make it first"), ((pole, "--out", tmp_path), "which is a folder, a device or a pipe; expected a file")):
        wrong = report(*args)
        assert wrong.exit_code == 2 and said in wrong.stderr and "Traceback" not in wrong.output, (args, wrong.output)


def strange_run(folder: Path) -> Path:
    "What a stranger could put into a folder"
    (folder / "videos").mkdir(parents=True)
    values = {"env": {"id": EVIL}, "algo": {"name": EVIL, EVIL: EVIL}, "train": {"seed": EVIL}}
    (folder / "config.yaml").write_text(json.dumps(values))
    (folder / "manifest.json").write_text(json.dumps(dict(status=EVIL, env_steps=7, level=EVIL, why=EVIL, created=EVIL, engine=EVIL, versions={EVIL: EVIL}, machine={"cpu": EVIL}, config_hash=EVIL)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "episode/return_mean": k * 1e307, f"loss/{EVIL}": -k, "loss/x": EVIL, "y/z": [1]}) + "\n" for k in range(1, 18)) + "no record\n")
    (folder / "evaluations.json").write_text(json.dumps([dict(env_steps=k, mean=1e308, std=-1e308, returns=[1e308, -1e308]) for k in (1, 2)]))
    (folder / "result.json").write_text(json.dumps(dict(status=EVIL, total_steps=1, train_seconds=1e300, eval_return_mean=-1e308, eval_return_std=1e308, eval_episodes=3, goal=1e308)))
    (folder / "videos" / "a.webp").write_text("<script>")
    (folder / "videos" / f"{EVIL[:40].replace('/', '')}.webp").write_bytes(b"RIFF0000WEBP" + EVIL.encode())
    (folder / "videos" / "z.webp").symlink_to("/dev/zero")
    return folder


def test_a_stranger_s_run_is_only_shown(tmp_path: Path) -> None:
    text = harmless(write_report(strange_run(tmp_path / "strange"), tmp_path / "x.html").read_text())
    assert "evil.example" in text and "alert(1)" in text      # seen, and harmless
    (tmp_path / "strange" / "manifest.json").write_text("[" * 1000)
    (tmp_path / "strange" / "evaluations.json").unlink()
    (tmp_path / "strange" / "evaluations.json").symlink_to("/dev/zero")
    (tmp_path / "strange" / "result.json").write_text(json.dumps(dict(status=3)))
    text = harmless(write_report(tmp_path / "strange", tmp_path / "x.html").read_text())
    assert all(name in text for name in ("manifest.json", "evaluations.json", "result.json")) and "Damaged" in text


# In a real browser

@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Where screenshots go"
    folder = Path(os.environ.get("RLSTUDIO_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright
    if not CHROMIUM: pytest.skip("no chromium here (apt-get install chromium, or RLSTUDIO_CHROMIUM=/path/to/chrome)")
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        try: yield chrome
        finally: chrome.close()


def seen(browser: Any, file: Path, artefacts: Path, name: str) -> None:
    "Look at a page in each way; whatever it asks for, says or breaks is an error"
    for how, scheme, width in (("light", "light", 1100), ("dark", "dark", 1100), ("narrow", "light", 375)):
        context = browser.new_context(color_scheme=scheme, viewport=dict(width=width, height=900))
        page, asked, said = context.new_page(), list[str](), list[str]()
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.on("console", lambda m, said=said: said.append(m.text))
        page.on("dialog", lambda d, said=said: (said.append(d.message), d.dismiss()))
        page.goto(file.as_uri())
        assert [u for u in asked if not u.startswith("data:image/webp;")] == [file.as_uri()] and not said, (asked, said)
        colours = DARK if scheme == "dark" else LIGHT
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb({}, {}, {})".format(*(int(colours["page"][i:i + 2], 16) for i in (1, 3, 5)))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{how}: the page is wider than the window"
        assert page.evaluate("""[...document.querySelectorAll('svg circle, svg polyline')].every(e => !/NaN|Infinity/.test(e.outerHTML))""")
        page.screenshot(path=artefacts / f"{name}-{how}.png", full_page=True)
        if how == "dark":     # on paper it is light, and what was folded is there
            page.emulate_media(media="print")
            assert page.evaluate("getComputedStyle(document.body).color") == "rgb({}, {}, {})".format(*(int(LIGHT["ink"][i:i + 2], 16) for i in (1, 3, 5)))
            page.pdf(path=artefacts / f"{name}.pdf", format="A4")
        context.close()


def test_a_run_in_a_browser(browser: Any, artefacts: Path, pole: Path, tmp_path: Path) -> None:
    seen(browser, write_report(pole, tmp_path / "report.html"), artefacts, "report-run")


def test_a_stranger_s_run_in_a_browser(browser: Any, artefacts: Path, tmp_path: Path) -> None:
    seen(browser, write_report(strange_run(tmp_path / "strange"), tmp_path / "report.html"), artefacts, "report-strange")


def test_the_browser_would_notice(browser: Any, artefacts: Path, pole: Path, tmp_path: Path) -> None:
    page = write_report(pole, tmp_path / "report.html").read_text()
    for harm in ('<img src="http://evil.example/x">', "<script>console.log(1)</script>", '<div style="width:3000px">wide</div>'):
        (tmp_path / "report.html").write_text(page.replace("</main>", f"{harm}</main>"))
        with pytest.raises(AssertionError): seen(browser, tmp_path / "report.html", artefacts, "report-harmed")


# Many runs

def made_up(folder: Path, name: str, seed: int, score: float, **config: Any) -> Path:
    "A run as it lies in a folder, without the training"
    at = folder / name
    at.mkdir(parents=True)
    (at / "config.yaml").write_text(json.dumps({"env": {"id": "CartPole-v1"}, "algo": {"name": "ppo", **config}, "train": {"seed": seed}}))
    (at / "manifest.json").write_text(json.dumps(dict(status="completed", env_steps=50_000, level="L3", why="one thread", versions=dict(torch="2.13"), machine=dict(cpu="x"))))
    (at / "evaluations.json").write_text(json.dumps([dict(env_steps=s, mean=score * s / 50_000, std=9.0, returns=[score] * 3) for s in range(5_000, 50_001, 5_000)]))
    (at / "result.json").write_text(json.dumps(dict(status="completed", total_steps=50_000, train_seconds=9.0, eval_return_mean=score, eval_return_std=9.0, eval_episodes=20, goal=475.0, solved=score >= 475)))
    return at


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory, pole: Path) -> Path:
    "Two arms of six seeds, and one film"
    folder = tmp_path_factory.mktemp("many") / "rates"
    for s, (a, b) in enumerate(zip((480, 490, 500, 470, 495, 488), (300, 210, 410, 350, 260, 390)), 1):
        made_up(folder, f"fast_s{s}", s, float(a), learning_rate=1e-3)
        made_up(folder, f"slow_s{s}", s, float(b), learning_rate=1e-4)
    shutil.copytree(pole / "videos", folder / "fast_s3" / "videos")
    return folder


def test_the_page_of_many(rates: Path) -> None:
    page = write_report(rates).read_text()
    text = harmless(page)
    for said in ("12 of 12", "5 of 6 reach the goal", " is better than ", "with probability 1.00", "settled", "Performance profile", "What differs", "seed 4: 470", "L3: one thread"): assert said in text, said
    for said in ("half at goal by", '5 of 6</td><td class="n">50,000</td>', '0 of 6</td><td class="n">never</td>', "goal of 475 for the first time, in an evaluation. A run", "Kaplan &amp; Meier 1958"): assert said in page, said
    assert page.count("data:image/webp") == 1 and page.count("<polygon") == 4 and "not complete" not in text


def test_one_broken_run_hides_no_other(rates: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(rates, tmp_path / "copy")
    strange_run(copy / "strange")
    (copy / "slow_s1" / "config.yaml").write_text("algo: [")
    (copy / "slow_s2" / "result.json").write_text("[" * 1000)
    (copy / "slow_s3" / "evaluations.json").write_text('{"a": 1}')
    made_up(copy, "huge", 7, 1e308, learning_rate=1e-4)
    values = json.loads((copy / "slow_s4" / "config.yaml").read_text())
    (copy / "slow_s4" / "config.yaml").write_text(json.dumps(values | {"env": {"id": EVIL}, "algo": {"name": EVIL, "gamma": EVIL}}))
    text = harmless(write_report(copy).read_text())
    assert all(name in text for name in ("slow_s1", "slow_s2", "strange", "fast_s6", "evil.example")) and "are not complete" in text


def test_a_report_says_why_runs_failed_and_which_have_not_begun(tmp_path: Path) -> None:
    "At most twenty failures; a run that failed before it had a folder is one of them; what a stranger wrote as an error is only shown"
    plan = make_plan({"pole": dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo"))}, [], list(range(1, 31)), None)
    folder = tmp_path / "runs" / "many"
    for seed in range(1, 24):
        at = made_up(folder, f"pole_s{seed}", seed, 480.0)
        if seed > 2: (at / "manifest.json").write_text(json.dumps(dict(status="failed", error=EVIL if seed == 3 else f"ValueError: reason {seed}")))
    (folder / "study.yaml").write_text(plan_text(plan))
    note_unbegun(folder / "pole_s24", "OSError: reason 24")
    for target in (folder, folder.parent):    # a folder around the study, too
        text = harmless(write_report(target, tmp_path / "x.html").read_text())
        for said in ("28 of 30 runs are not complete (failed (22 runs), not begun (6 runs))", "Runs that failed (22):", "ValueError: reason 22", "and 2 more", "evil.example", "not begun (6): pole_s25, "): assert said in text, said
        assert "reason 24" not in text    # the 22nd of them


def test_a_folder_without_runs(tmp_path: Path) -> None:
    from rlstudio.runs.folder import RunError
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="not a run"): write_report(tmp_path / "empty")
    made_up(tmp_path / "one", "only", 1, 3.0)
    assert "IQM 3 over 1 seed" in harmless(write_report(tmp_path / "one").read_text())


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A study with a search: twelve trials of twenty, one of them stopped early"
    folder = tmp_path_factory.mktemp("many") / "search"
    plan = make_plan({"pole": dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo"))}, [], [1], None, dict(space=["algo.learning_rate=1e-6..1e-0:log", "net.activation=tanh|relu"], trials=20))
    folder.mkdir()
    (folder / "study.yaml").write_text(plan_text(plan))
    for k in range(12):
        rate, activation, early = 10.0 ** (-6 + k / 2), "tanh" if k % 2 else "relu", dict(stopped_early=STOPPED + "hopeless") if k == 2 else {}
        at = made_up(folder, f"trial-{k:04}", 1, 500.0 - 10 * (k - 7) ** 2, learning_rate=rate)
        manifest, result = (json.loads((at / name).read_text()) for name in ("manifest.json", "result.json"))
        (at / "manifest.json").write_text(json.dumps(manifest | dict(config=dict(algo=dict(learning_rate=rate), net=dict(activation=activation)))))
        (at / "result.json").write_text(json.dumps(result | early))
    return folder


def test_the_page_of_a_search(search: Path, tmp_path: Path) -> None:
    page = write_report(search).read_text()
    text = harmless(page)
    for said in ("Best of 11 completed trials, of 20 (1 stopped early, 8 not begun): trial-0007 with 500", "8 of 20 runs are not complete (not begun)", "rlstudio study", "--seeds 2-11", "of the spread goes with it", "stopped early", "No more than chance", "tanh"): assert said in text, said
    assert page.index("score over algo.learning_rate") < page.index("score over net.activation") and "What came out" not in text
    rows = re.findall("<tr><td>(trial-....)</td>(.*?)</tr>", page)     # of the search, then of the runs: they agree
    assert [name for name, row in rows if "stopped early" in row] == ["trial-0002"] * 2 and len(rows) == 24 and "<td>stopped</td>" not in page and page.count("</svg>stopped early") == 3
    copy = shutil.copytree(search, tmp_path / "copy")
    (copy / "study.yaml").write_text("version: 1\nsearch: {space: 3}\narms: []\n")
    assert "trial-0007" in harmless(write_report(copy).read_text())


def test_a_search_with_several_seeds(pole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Each seed of the best trial has a folder and a film; a trial keeps its number, though one before it has no score; importance is computed once"
    from rlstudio.evidence import report
    plan = make_plan({"pole": dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo"))}, [], [1, 2], None, dict(space=["algo.learning_rate=1e-6..1e-0:log", "algo.gamma=.9..1"], trials=10))
    (tmp_path / "study.yaml").write_text(plan_text(plan))
    for k, seed in ((k, seed) for k in range(10) for seed in (1, 2)):
        at = made_up(tmp_path, f"trial-{k:04}_s{seed}", seed, 500.0 - 10 * (k - 7) ** 2, learning_rate=10.0 ** -k, gamma=.95)
        (at / "manifest.json").write_text(json.dumps(json.loads((at / "manifest.json").read_text()) | dict(config=dict(algo=dict(learning_rate=10.0 ** -k, gamma=.95)))))
        if k == 3: (at / "result.json").unlink()
        if k == 7: shutil.copytree(pole / "videos", at / "videos")
    asked, charts = list[Any](), dict[str, Any]()
    importance, chart_html = report.importance, report.chart_html
    monkeypatch.setattr(report, "importance", lambda *args: (asked.append(args), importance(*args))[1])
    monkeypatch.setattr(report, "chart_html", lambda marks, title, *args, **kwargs: (charts.update({title: marks}), chart_html(marks, title, *args, **kwargs))[1])
    page = write_report(tmp_path).read_text()
    text = harmless(page)
    assert page.count("data:image/webp") == 2 and "best seed of the best trial, trial-0007: 1" in text and "worst seed of the best trial, trial-0007: 2" in text
    assert [x for m in charts["score over trials"][:2] for x, _ in m.points] == [k for k in range(10) if k != 3] and len(asked) == 1


def test_a_search_in_a_browser(browser: Any, artefacts: Path, search: Path, tmp_path: Path) -> None:
    seen(browser, write_report(search, tmp_path / "report.html"), artefacts, "report-search")


def test_many_in_a_browser(browser: Any, artefacts: Path, rates: Path, tmp_path: Path) -> None:
    seen(browser, write_report(rates, tmp_path / "report.html"), artefacts, "report-many")
