"""A person's first ten minutes in JupyterLab, in a real browser: tutorial 1 runs, the panel moves, Stop stops, nothing is an error.

Screenshots go to the folder that RLSTUDIO_ARTEFACTS names, or to a temporary one. Without a chromium the tests are skipped: `apt-get install chromium`."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import NBS, child_env

HOST = "localhost"
CHROMIUM = os.environ.get("RLSTUDIO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync").split()
SETTINGS = {"@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
            "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium, or RLSTUDIO_CHROMIUM=/path/to/chrome)")


def free_port() -> int:
    with socket.socket() as s:
        s.bind((HOST, 0))
        return int(s.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2): return True
    except OSError: return False


def below(pid: int) -> set[int]:
    "A process and all that it started"
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError: continue
    found, more = {pid}, {pid}
    while more: more = {child for child, parent in parents.items() if parent in more} - found; found |= more
    return found


def running(pids: set[int]) -> set[int]:
    "Those that have not ended"
    def alive(pid: int) -> bool:
        try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError: return False
    return {p for p in pids if alive(p)}


def gone(pids: set[int]) -> None:
    "Wait for the end of processes that were told to end"
    end = time.monotonic() + 10
    while left := running(pids):
        assert time.monotonic() < end, f"processes are left behind: {left}"
        time.sleep(.05)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Where screenshots go"
    folder = Path(os.environ.get("RLSTUDIO_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "A JupyterLab of this environment with tutorial 1 in its folder; its address"
    home = tmp_path_factory.mktemp("home")
    for name, value in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    (home / "work").mkdir()
    shutil.copy(NBS / "tutorials" / "01_first_agent.ipynb", home / "work")
    env = child_env(coverage=False, HOME=str(home), JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
                    JUPYTER_CONFIG_DIR=str(home / "config"), JUPYTER_DATA_DIR=str(home / "data"), JUPYTER_RUNTIME_DIR=str(home / "runtime"), IPYTHONDIR=str(home / "ipython"))
    env.pop("PYTEST_VERSION", None)   # a person's kernel knows nothing of tests
    port = free_port()
    with open(home / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ip={HOST}", f"--port={port}", "--ServerApp.port_retries=0",
                                   "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"],
                                  cwd=home / "work", env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            url, end = f"http://{HOST}:{port}", time.monotonic() + 60
            while not answers(f"{url}/api/status"):
                assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()[-3000:]
                time.sleep(.1)
            yield url
        finally:
            family = below(server.pid)
            server.send_signal(signal.SIGTERM)   # ends the kernels, too
            try: server.wait(20)
            except subprocess.TimeoutExpired: pass
            for pid in running(family): os.kill(pid, signal.SIGKILL)
            gone(family)


class Page:
    "A notebook in JupyterLab"
    def __init__(self, page: Any, artefacts: Path):
        self.page, self.artefacts = page, artefacts

    def open(self, url: str, notebook: str) -> None:
        self.page.goto(f"{url}/lab/tree/{notebook}")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)

    def command(self, name: str, **args: Any) -> None:
        self.page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, args])

    def run(self, code: str) -> None:
        "Run code in a new last cell"
        self.page.evaluate("""code => {
            const nb = window.jupyterapp.shell.currentWidget.content
            nb.model.sharedModel.insertCell(nb.model.cells.length, {cell_type: 'code', source: code})
            nb.activeCellIndex = nb.model.cells.length - 1 }""", code)
        self.command("notebook:run-cell")

    def outputs(self) -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = self.page.evaluate(
            "() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells).filter(c => c.type === 'code').map(c => c.toJSON().outputs)")
        return found

    def errors(self) -> list[str]: return [f"{o['ename']}: {o['evalue']}" for cell in self.outputs() for o in cell if o["output_type"] == "error"]

    def finish(self, seconds: float) -> None:
        "Until no cell runs or waits to run"
        self.page.wait_for_function("""() => { const w = window.jupyterapp.shell.currentWidget
            return w.sessionContext.session.kernel.status === 'idle' && Array.from(w.content.widgets).every(c => !c.node.querySelector('.jp-InputPrompt')?.textContent.includes('*')) }""",
                                    timeout=1000 * seconds)

    def points(self, which: int = -1) -> int:
        curves = self.page.locator(".rlstudio-curve")
        return int(curves.nth(which if which >= 0 else curves.count() - 1).get_attribute("data-points") or 0) if curves.count() else 0

    def until(self, what: Any, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end and not self.errors(), f"it never came: {self.errors()}"
            time.sleep(.05)

    def picture(self, name: str, selector: str = "") -> Path:
        path = self.artefacts / f"{name}.png"
        (self.page.locator(selector).last if selector else self.page).screenshot(path=path)
        assert path.stat().st_size > 5000
        return path


@pytest.fixture
def page(lab: str, artefacts: Path) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright
    before = below(os.getpid())
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        family = below(os.getpid()) - before
        try: yield Page(browser.new_page(viewport={"width": 1200, "height": 1400}), artefacts)
        finally: browser.close()
    gone(family)


def test_the_first_tutorial_in_jupyterlab(page: Page, lab: str, artefacts: Path) -> None:
    began = time.monotonic()
    page.open(lab, "01_first_agent.ipynb")
    opened = time.monotonic()
    page.command("notebook:run-all-cells")
    page.until(lambda: page.points(0) > 0, 60)   # the panel is there
    first = page.points(0)
    moving = time.monotonic()
    page.page.locator(".rlstudio-panel").first.scroll_into_view_if_needed()
    page.picture("running")
    page.until(lambda: page.points(0) > first)   # and its curve grows
    page.finish(120)
    assert not page.errors() and page.page.locator(".rlstudio-panel").count() >= 1
    page.page.locator(".rlstudio-panel").first.scroll_into_view_if_needed()
    page.picture("tutorial")
    (artefacts / "times.json").write_text(json.dumps(dict(open=round(opened - began, 1), run_all_to_curve=round(moving - opened, 1))))

    # A long training, stopped with the mouse while its cell runs.
    page.run("stopped = Run.from_config('ppo/cartpole', total_steps=50_000_000, eval={'episodes': 2}, runs_dir='runs', name='long').train()\nprint('stopped:', stopped['status'])")
    panels = page.page.locator(".rlstudio-panel").count()
    page.until(lambda: page.page.locator(".rlstudio-panel").count() > panels and page.points() > 1)
    last = page.page.locator(".rlstudio-panel").last
    last.scroll_into_view_if_needed()
    page.picture("long", ".rlstudio-panel")
    last.get_by_role("button", name="Pause").click()
    page.until(lambda: last.get_by_role("button", name="Go on").count() == 1 and "paused" in last.inner_text())
    last.get_by_role("button", name="Go on").click()
    page.until(lambda: "training" in last.inner_text())
    last.get_by_role("button", name="Stop").click()
    page.finish(30)
    page.until(lambda: any("stopped: interrupted" in str(o.get("text")) for o in page.outputs()[-1]))
    assert "interrupted at" in last.inner_text() and not page.errors()

    # Its card, and the panel in the dark.
    page.run("Run.open('runs/long')")
    page.finish(30)
    assert any("text/html" in o.get("data", {}) for o in page.outputs()[-1]) and not page.errors()
    page.page.locator(".jp-OutputArea-output").last.scroll_into_view_if_needed()
    page.picture("card", ".jp-OutputArea-output")
    page.command("apputils:change-theme", theme="JupyterLab Dark")
    page.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'", timeout=10_000)
    page.picture("dark", ".rlstudio-panel")


SHELF = """
from rlstudio.runs.run import Run
from rlstudio.studio.explorer import Explorer
for gamma in (.9, .98):
    for seed in (1, 2, 3):
        Run.from_config('ppo/cartpole', ['train.total_steps=4096', 'eval.episodes=2', 'eval.every=1024', f'algo.gamma={gamma}', f'train.seed={seed}'], runs_dir='shelf', name=f'gamma{gamma}_s{seed}').train(display='silent')
Explorer('shelf')"""


def test_the_explorer_in_jupyterlab(page: Page, lab: str) -> None:
    page.open(lab, "01_first_agent.ipynb")
    page.run(SHELF)
    page.until(lambda: page.page.locator(".rlstudio-explorer .rlstudio-seed").count() == 6, 240)
    page.finish(30)
    box = page.page.locator(".rlstudio-explorer")
    box.scroll_into_view_if_needed()
    picture, selects = box.locator(".rlstudio-many"), box.locator("select")

    # The line under the mouse names its seed, and no other does.
    x, y = box.locator(".rlstudio-seed").last.evaluate("""g => { const line = g.querySelector('polyline'), last = line.points[line.points.length - 1]
        const at = new DOMPoint(last.x, last.y).matrixTransform(line.getScreenCTM()); return [at.x - 1, at.y] }""")
    assert not box.locator(".rlstudio-seed text:visible").count()
    page.page.mouse.move(x, y)
    page.until(lambda: box.locator(".rlstudio-seed text:visible").count() == 1)
    assert box.locator(".rlstudio-seed text:visible").inner_html().startswith("seed ") and "gamma0.9" in box.locator(".rlstudio-seed text:visible").inner_html()
    page.picture("explorer", ".rlstudio-explorer")
    page.page.mouse.move(0, 0)

    # Another metric, another axis, smoothing, and one arm of the two.
    selects.nth(2).select_option(label="policy/entropy")
    page.until(lambda: "policy/entropy against env steps" in picture.inner_html())
    selects.nth(3).select_option(label="iterations")
    page.until(lambda: "policy/entropy against iterations" in picture.inner_html())
    before = box.locator(".rlstudio-seed polyline").first.get_attribute("points")
    box.locator(".noUi-handle").focus()
    for _ in range(10): page.page.keyboard.press("ArrowRight")
    page.until(lambda: box.locator(".rlstudio-seed polyline").first.get_attribute("points") != before)
    selects.nth(0).select_option(index=1)
    page.until(lambda: box.locator(".rlstudio-seed").count() == 3 and selects.nth(1).locator("option").count() == 3)
    selects.nth(1).select_option(index=0)
    page.until(lambda: box.locator(".rlstudio-seed").count() == 1)
    page.command("apputils:change-theme", theme="JupyterLab Dark")
    page.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'", timeout=10_000)
    page.picture("explorer_dark", ".rlstudio-explorer")
    box.get_by_role("button", name="Read again").click()
    page.until(lambda: box.locator(".rlstudio-seed").count() == 3)   # the arm is kept, all its runs are shown again
    page.finish(30)
    assert not page.errors()
