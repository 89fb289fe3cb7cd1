"The panel without a browser: a real kernel gets the messages that a notebook page would send, and threads get the calls that a person would make."
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from support import child_env

from rlstudio.core.registry import UnknownName, displays
from rlstudio.runs.background import Background, Controls, Display
from rlstudio.runs.run import Run, choose_display, fitting_display
from rlstudio.studio.panel import Mailbox, Panel
from rlstudio.train.trainer import Callback, Trainer

LONG = {"total_steps": 2_000_000, "eval": {"episodes": 2}}


def short(folder: Path, **changes: Any) -> Run: return Run.from_config("ppo/cartpole", runs_dir=folder, **{"total_steps": 4096, "eval": {"episodes": 2}} | changes)


def until(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(.02)


# In a kernel, as JupyterLab would drive it.

class Notebook:
    "A kernel, and the few messages of a notebook page"
    def __init__(self, folder: Path):
        self.manager = KernelManager(kernel_name="python3")
        env = child_env(coverage=False)
        env.pop("PYTEST_VERSION", None)   # a person's kernel knows nothing of tests
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.widgets: dict[str, dict[str, Any]] = {}  # comm id → state
        self.text, self.errors = "", list[str]()

    def run(self, code: str) -> str:  # the id of its message
        return self.client.execute(code)

    def hear(self, seconds: float = .1) -> dict[str, Any] | None:
        "Take in one message of the kernel"
        try: message: dict[str, Any] = self.client.get_iopub_msg(timeout=seconds)
        except queue.Empty: return None
        content, kind = message["content"], message["msg_type"]
        if kind == "comm_open": self.widgets[content["comm_id"]] = dict(content["data"]["state"])
        if kind == "comm_msg" and content["data"].get("method") == "update": self.widgets[content["comm_id"]].update(content["data"]["state"])
        if kind == "stream": self.text += content["text"]
        if kind == "execute_result": self.text += content["data"]["text/plain"]
        if kind == "error": self.errors.append(f"{content['ename']}: {content['evalue']}")
        return message

    def until(self, what: Any, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"it never came; {self.text[-2000:]} {self.errors}"
            self.hear()

    def finish(self, id: str, seconds: float = 60) -> None:
        idle = []
        def over() -> bool: return bool(idle)
        end = time.monotonic() + seconds
        while not over():
            assert time.monotonic() < end, f"the cell never ended; {self.text[-2000:]} {self.errors}"
            m = self.hear()
            if m and m["msg_type"] == "status" and m["content"]["execution_state"] == "idle" and m["parent_header"].get("msg_id") == id: idle.append(m)

    def button(self, description: str) -> str:
        return next((id for id, state in self.widgets.items() if state.get("_model_name") == "ButtonModel" and state.get("description") == description), "")

    def press(self, description: str) -> None:
        "What the page sends when a button is clicked"
        self.client.shell_channel.send(self.client.session.msg("comm_msg", dict(
            comm_id=self.button(description), data=dict(method="custom", content=dict(event="click")))))

    def shows(self, text: str) -> bool: return any(text in str(state.get("value", "")) for state in self.widgets.values())

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path)
    try: yield notebook
    finally: notebook.close()


BEGIN = """import warnings; warnings.simplefilter('ignore')
from rlstudio.runs.run import Run
run = Run.from_config('ppo/cartpole', total_steps=2_000_000, eval={'episodes': 2}, runs_dir='runs', name='one')
"""


def test_stop_works_while_the_cell_runs(page: Notebook, tmp_path: Path) -> None:
    cell = page.run(BEGIN + "summary = run.train()")
    after = page.run("print('after:', summary['status'], run.manifest['stopped_by'])")   # waits in the kernel's mailbox
    page.until(lambda: page.shows('data-points="') and not page.shows('data-points="0"'))
    page.press("Stop")
    page.finish(cell, 30)
    page.finish(after)
    assert "after: interrupted Stop" in page.text and not page.errors
    assert page.shows("interrupted at") and list((tmp_path / "runs/one/checkpoints").glob("step_*"))


def test_pause_goes_on_and_ends_like_a_silent_training(page: Notebook, tmp_path: Path) -> None:
    "Pause holds and saves, Go on goes on; the weights are those of a training that nobody watched"
    cell = page.run(BEGIN.replace("2_000_000", "40_000") + "summary = run.train(); summary['weights_sha256']")
    page.until(lambda: page.shows('data-points="') and not page.shows('data-points="0"'))
    page.press("Pause")
    page.until(lambda: page.button("Go on"))
    newest = lambda: max((p.name for p in (tmp_path / "runs/one/checkpoints").glob("step_*")), default="")  # noqa: E731
    page.until(lambda: newest() > "step_000000000000")
    held = newest()
    time.sleep(.6)
    assert newest() == held and page.shows("paused")
    page.press("Go on")
    page.finish(cell, 90)
    assert not page.errors, page.errors
    silent = Run.from_config("ppo/cartpole", total_steps=40_000, eval={"episodes": 2}, runs_dir=tmp_path, name="silent").train()
    assert silent["weights_sha256"] in page.text


def test_interrupting_the_kernel_stops_with_a_checkpoint(page: Notebook, tmp_path: Path) -> None:
    cell = page.run(BEGIN + "summary = run.train(); summary['status'], run.manifest['stopped_by']")
    page.until(lambda: page.shows("training") and page.shows('data-points="') and not page.shows('data-points="0"'))
    page.manager.interrupt_kernel()
    page.finish(cell, 30)
    assert "('interrupted', 'SIGINT')" in page.text and not page.errors
    again = page.run("before = run.manifest['env_steps']\nagain = Run.open('runs/one')\nagain.start().stop().wait()['total_steps'] >= before")
    page.finish(again)
    assert "True" in page.text and not page.errors


def test_start_comes_back_at_once_and_its_button_stops_it(page: Notebook) -> None:
    page.finish(page.run(BEGIN + "job = run.start()\nprint(job)"))
    assert "Background(one: running)" in page.text
    page.until(lambda: page.shows('data-points="') and not page.shows('data-points="0"'))
    page.press("Stop")
    page.finish(page.run("print(job.wait()['status'], job.status)"), 30)
    assert "interrupted interrupted" in page.text and not page.errors


def test_stop_works_while_wait_waits(page: Notebook) -> None:
    cell = page.run(BEGIN + "job = run.start()\nprint(job.wait()['status'])")
    page.until(lambda: page.shows('data-points="') and not page.shows('data-points="0"'))
    page.press("Stop")
    page.finish(cell, 30)
    assert "interrupted" in page.text and not page.errors


# Without a kernel.

def test_the_panel_changes_no_bit(tmp_path: Path) -> None:
    silent, started = short(tmp_path).train(display="silent"), short(tmp_path)
    run = short(tmp_path)
    assert run.train(display=Panel(run, seconds=0, show=False))["weights_sha256"] == silent["weights_sha256"]
    assert started.start(display="silent").wait()["weights_sha256"] == silent["weights_sha256"]


def test_pause_and_stop_from_another_thread(tmp_path: Path) -> None:
    run = short(tmp_path, **LONG)
    job = run.start(display="silent")
    until(lambda: run.history)
    job.pause()
    until(lambda: job.status == "paused")
    until(lambda: len(list((run.folder / "checkpoints").glob("step_*"))) > 1)
    steps = run.history[-1]["step"]
    time.sleep(.3)
    assert run.history[-1]["step"] <= steps + 2 * 256 * 8 and job.alive and job.wait(.01) is None
    held = run.history[-1]["step"]
    job.go_on()
    until(lambda: run.history[-1]["step"] > held)
    job.pause()
    summary = job.stop().wait()
    assert summary["status"] == job.status == run.status == "interrupted" and run.manifest["stopped_by"] == "stopped"


def test_a_run_that_goes_on_shows_what_was_before(tmp_path: Path) -> None:
    "As after a restart of the kernel: the curve begins with the records of the folder"
    whole, run = short(tmp_path).train()["weights_sha256"], short(tmp_path)
    run.train([StopsAt(2)])
    again = Run.open(run.folder)
    panel = Panel(again, seconds=0, show=False)
    assert again.train(display=panel)["weights_sha256"] == whole
    assert panel.curve.steps.values == [r["step"] for r in again.history] == [1024, 2048, 3072, 4096]


class StopsAt(Callback):
    "Presses Ctrl-C"
    def __init__(self, iteration: int): self.at = iteration
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == self.at: trainer.stop("SIGINT", interrupt=True)


def test_a_new_film_is_shown(tmp_path: Path) -> None:
    import numpy as np

    from rlstudio.runs.pictures import save_webp
    run = short(tmp_path)
    panel = Panel(run, show=False)
    assert not panel.film.value
    for k in (1, 2):
        save_webp([np.full((8, 8, 3), 100 * k, np.uint8)], run.folder / "videos" / f"film{k}.webp")
        os.utime(run.folder / "videos" / f"film{k}.webp", (k, k))
        panel.draw()
        assert f"film{k}.webp" in panel.film.value
    run.train(display="silent")


def test_the_console_form_in_a_kernel(page: Notebook) -> None:
    page.finish(page.run(BEGIN.replace("2_000_000", "4096") + "print(run.train(display='console')['status'])"))
    assert "completed" in page.text and not page.errors and not page.button("Stop")


def test_a_finished_run_is_not_shown_again(tmp_path: Path) -> None:
    run = short(tmp_path)
    summary = run.train()
    assert Run.open(run.folder).start(display="panel").wait() == summary


class Fails(Callback):
    "A listener with a mistake"
    def on_iteration_end(self, trainer: Trainer) -> None: raise ArithmeticError("two and two are five")


def test_the_error_of_the_thread_is_shown_and_raised(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = short(tmp_path)
    panel = []

    class Watched(Panel):
        def __init__(self, run: Run):
            super().__init__(run, show=False)
            panel.append(self)
    displays.add("watched", Watched)
    try: job = run.start([Fails()], display="watched")
    finally: displays._here.pop("watched")
    with pytest.raises(ArithmeticError, match="two and two"): job.wait()
    with pytest.raises(ArithmeticError): job.wait()   # as often as one asks
    assert "failed: ArithmeticError: two and two are five" in capfd.readouterr().err
    assert job.status == run.status == "failed" and "two and two are five" in panel[0].head.value


def test_an_interrupted_wait_stops_the_training(tmp_path: Path) -> None:
    run = short(tmp_path, **LONG)
    job = run.start(display="silent")
    until(lambda: run.history)
    threading.Timer(.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert job.wait()["status"] == "interrupted" and run.manifest["stopped_by"] == "SIGINT"


def test_a_script_that_ends_stops_its_training(tmp_path: Path) -> None:
    "The last line of a script is reached while the thread trains: nothing is lost"
    code = "from rlstudio.runs.run import Run\nimport time\nrun = Run.from_config('ppo/cartpole', total_steps=2_000_000, runs_dir='.', name='one')\n" \
           "job = run.start()\nwhile not run.history: time.sleep(.02)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=child_env(coverage=False), timeout=60, check=True)
    run = Run.open(tmp_path / "one")
    assert run.status == "interrupted" and run.manifest["stopped_by"] == "exit"


def test_watch_follows_another_process(tmp_path: Path) -> None:
    code = "from rlstudio.runs.run import Run\nRun.from_config('ppo/cartpole', total_steps=30_000, eval={'episodes': 2}, runs_dir='.', name='one').train()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=child_env(coverage=False)) as child:
        until(lambda: (tmp_path / "one/metrics.jsonl").exists())
        run, panels = Run.open(tmp_path / "one"), []

        class Watched(Panel):
            def __init__(self, run: Run):
                super().__init__(run, seconds=0, show=False)
                panels.append(self)
        displays.add("watched", Watched)
        try: job = run.watch("watched", .05)
        finally: displays._here.pop("watched")
        summary = job.wait(60)
        assert child.wait(60) == 0
    panel = panels[0]
    assert summary["status"] == "completed" and summary == run.read("result.json")
    assert not panel.buttons.children and panel.state.startswith(("solved", "not solved")) and panel.film.value
    assert len(panel.curve.steps.values) == len([r for r in run.history])


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Terminal:
        def isatty(self) -> bool: return True
    assert fitting_display() == "silent"
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert fitting_display() == "console"
    monkeypatch.setattr(sys, "stdout", None)
    assert fitting_display() == "silent"
    monkeypatch.undo()
    run = short(tmp_path)
    with pytest.raises(UnknownName, match="unknown display 'pannel'; did you mean 'panel'"): run.train(display="pannel")
    assert type(choose_display(run, None)) is Display and run.status == "new"
    assert {"console", "panel", "silent"} <= set(displays.names())


def test_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.ini").write_text("[DEFAULT]\ndisplay = console\n")
    monkeypatch.chdir(tmp_path)
    short(tmp_path).train()
    assert "4,096/4,096 env steps" in capsys.readouterr().out


def test_a_panel_leaves_nothing_behind(tmp_path: Path) -> None:
    "A hundred pictures: no figure of pyplot, no widget more than before"
    import ipywidgets
    run = short(tmp_path)
    panel = Panel(run, show=False)
    widgets, began = len(ipywidgets.Widget._instances if hasattr(ipywidgets.Widget, "_instances") else []), time.perf_counter()
    for k in range(2000): panel.curve.add({"step": k, "episode/return_mean": k % 500})
    for _ in range(100): panel.draw()
    assert time.perf_counter() - began < 5 and len(panel.picture.value) < 20_000
    assert len(ipywidgets.Widget._instances if hasattr(ipywidgets.Widget, "_instances") else []) == widgets
    assert "matplotlib.pyplot" not in sys.modules or not __import__("matplotlib.pyplot").pyplot.get_fignums()
    run.train(display="silent")


def test_a_mailbox_without_a_kernel_does_nothing() -> None:
    Mailbox(None).look()
    assert Controls().between == []
    job = Background(lambda: 3, Controls(), lambda: "completed")
    assert job.wait() == 3 and job.status == "completed"


def test_a_mailbox_that_breaks_is_a_warning() -> None:
    "Another ipykernel may be made differently inside: the training goes on"
    class Kernel: shell_stream = object()
    box = Mailbox(Kernel())
    with pytest.warns(UserWarning, match="_recv_callback.*the training goes on"): box.look()
    box.look()


def test_two_threads_share_one_arithmetic(tmp_path: Path) -> None:
    "While one thread trains exactly, another enters and leaves blocks of two threads: the shared pools stay at one, and are put back by the last"
    import torch
    from threadpoolctl import threadpool_info

    from rlstudio.core.arithmetic import arithmetic_threads

    def pools() -> dict[str, int]: return {p["filepath"]: p["num_threads"] for p in threadpool_info()} | {"torch": torch.get_num_threads()}
    before, slow = pools(), Slow()
    whole, run = short(tmp_path).train()["weights_sha256"], short(tmp_path)
    job = run.start([slow], display="silent")
    while job.alive:
        with arithmetic_threads(2): time.sleep(.01)
    assert job.wait()["weights_sha256"] == whole and pools() == before and slow.seen == {1}


class Slow(Callback):
    "Takes its time, and looks at the pools"
    def __init__(self) -> None: self.seen: set[int] = set()
    def on_iteration_end(self, trainer: Trainer) -> None:
        from threadpoolctl import threadpool_info
        for _ in range(20):
            time.sleep(.01)
            self.seen |= {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
