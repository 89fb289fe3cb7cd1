"The console in a real terminal: narrow ones, resized ones and those that go away, other libraries' warnings, and shell completion."
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, child_env, run, said

LABELS = ["train", "return", "eval", "health", "speed"]


class Screen:
    "What a terminal shows: text, cursor moves and erasing, with lines that fold anew when it is resized (or, as in xterm, are cut)"
    def __init__(self, columns: int, folds: bool = True):
        self.columns, self.folds, self.rest = columns, folds, ""
        self.rows, self.soft, self.y, self.x = [""], [False], 0, 0  # soft: the line goes on in the next row

    def feed(self, text: str) -> None:
        text = self.rest + text
        cut = re.search(r"\x1b(\[[0-9;?]*)?$", text)  # a code whose end has not come yet
        self.rest, text = (cut[0], text[:cut.start()]) if cut else ("", text)
        for part in re.findall(r"\x1b\[[0-9;?]*[@-~]|.", text, re.S): self.code(part[2:-1], part[-1]) if part[0] == "\x1b" else self.put(part)

    def code(self, number: str, what: str) -> None:
        assert what in "AKmhl", f"this screen does not know ESC [ {number} {what}"
        if what == "A": self.y = max(0, self.y - int(number or 1))
        if what == "K": self.rows[self.y], self.soft[self.y] = "", False

    def put(self, c: str) -> None:
        if c == "\r": self.x = 0
        elif c == "\n": self.down()
        else:
            if self.x == self.columns:
                self.soft[self.y] = True
                self.down()
            row = self.rows[self.y].ljust(self.x)
            self.rows[self.y], self.x = row[:self.x] + c + row[self.x + 1:], self.x + 1

    def down(self) -> None:
        self.y, self.x = self.y + 1, 0
        if self.y == len(self.rows): self.rows.append(""); self.soft.append(False)

    def resize(self, columns: int) -> None:
        "The cursor stays behind its character, which in these tests is the last one; erased rows below it fall away"
        assert not "".join(self.rows[self.y + 1:])
        del self.rows[self.y + 1:], self.soft[self.y + 1:]
        if not self.folds: rows = [[row[:columns]] for row in self.rows]
        else:
            lines = "".join(row + ("" if soft else "\n") for row, soft in zip(self.rows, self.soft)).removesuffix("\n").split("\n")
            rows = [[line[i:i + columns] for i in range(0, max(1, len(line)), columns)] for line in lines]
        self.columns, self.rows = columns, [row for line in rows for row in line]
        self.soft = [soft for line in rows for soft in [True] * (len(line) - 1) + [False]]
        self.y, self.x = len(self.rows) - 1, len(self.rows[-1])

    @property
    def text(self) -> str: return "\n".join(self.rows)

    def labels(self) -> list[str]:
        return [m[1] for row in self.rows if (m := re.match(rf"({'|'.join(LABELS)}) +\S", row))]


class Terminal:
    "A command in a pseudo-terminal of its own"
    def __init__(self, *args: object, columns: int = 80, folds: bool = True, cwd: Path = ROOT, **env: str):
        self.screen, (self.master, slave) = Screen(columns, folds), pty.openpty()
        self.size(columns)
        settings = child_env(coverage=False) | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | env
        for name in ("COLUMNS", "LINES", "STY", "XTERM_VERSION"): settings.pop(name, None) if name not in env else None
        def own() -> None: os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its controlling terminal, so that it hears of its end
        self.child = subprocess.Popen([str(a) for a in args], stdin=slave, stdout=slave, stderr=slave, env=settings, cwd=cwd, preexec_fn=own)
        os.close(slave)

    def size(self, columns: int) -> None: fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read(self, until: Callable[[Screen], bool] = lambda s: False, seconds: float = 60) -> Screen:
        "Look until something is seen, or the command ends"
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until(self.screen):
            if not select.select([self.master], [], [], .2)[0]: continue
            try: data = os.read(self.master, 65536)
            except OSError: break  # the command has ended
            self.screen.feed(data.decode("utf-8", "ignore"))
        return self.screen

    def resize(self, columns: int) -> None:
        "Between two frames, of which there are four a second"
        while select.select([self.master], [], [], .05)[0]: self.screen.feed(os.read(self.master, 65536).decode("utf-8", "ignore"))
        self.screen.resize(columns)
        self.size(columns)

    def stop(self) -> None:
        if self.child.poll() is None: self.child.kill()
        self.child.wait()
        os.close(self.master)


def training(folder: Path, name: str, *more: str, steps: int = 200_000) -> list[object]:
    return ["rlstudio", "run", "ppo/cartpole", f"train.total_steps={steps}", "eval.episodes=2", *more, "--runs-dir", folder, "--name", name]


def status(folder: Path) -> str: return str(json.loads((folder / "manifest.json").read_text())["status"])


# A terminal of any width

def test_the_screen_of_these_tests() -> None:
    "Our small terminal folds, erases and moves as a real one does"
    s = Screen(10)
    s.feed("abc\r\n0123456789xyz\x1b[31m!\x1b[0")
    s.feed("m")
    assert s.rows == ["abc", "0123456789", "xyz!"]
    s.resize(5)
    assert s.rows == ["abc", "01234", "56789", "xyz!"]
    s.resize(10)
    assert s.rows == ["abc", "0123456789", "xyz!"]
    s.feed("\r\x1b[2K\x1b[1A\x1b[2Knew")
    assert s.text.split() == ["abc", "new"]


@pytest.mark.parametrize("columns", [40, 50, 60])
def test_a_narrow_terminal(tmp_path: Path, columns: int) -> None:
    "Labels stay, the bar shrinks, no word breaks, nothing is folded by the terminal itself"
    t = Terminal(*training(Path("r"), "narrow", steps=15_000), columns=columns, cwd=tmp_path)
    try: screen = t.read(lambda s: "rlstudio evaluate" in s.text and s.rows[-1] == "")
    finally: t.stop()
    assert screen.labels() == LABELS, screen.text
    bar = next(row for row in screen.rows if row.startswith("train"))
    assert re.match(r"train   [━─]{6,24} 100%  15,360", bar) and "…" not in screen.text, screen.text
    words = {w for row in screen.rows for w in row.split()}
    assert {"CartPole-v1,", "arithmetic", "backend", "checkpoints/"} <= words, screen.text
    assert not any(screen.soft), screen.text


@pytest.mark.parametrize("folds", [True, False])
def test_a_resize_leaves_no_copies(tmp_path: Path, folds: bool) -> None:
    "Neither where the terminal folds what it shows, nor where it cuts it"
    t = Terminal(*training(tmp_path, "resized", steps=100_000_000), columns=100, folds=folds, **({} if folds else {"XTERM_VERSION": "XTerm(390)"}))
    def settled(s: Screen) -> bool: return "learn" in s.text or "env steps/s" in s.text
    try:
        t.read(settled)
        for columns in (60, 45, 120, 40):
            t.resize(columns)
            t.read(seconds=.8)
        screen = t.read(lambda s: s.labels() == LABELS and s.rows[-1].startswith("speed"), seconds=5)
        t.child.send_signal(signal.SIGINT)
        t.read(lambda s: "rlstudio show" in s.text and s.rows[-1] == "", seconds=60)
    finally: t.stop()
    assert screen.labels() == LABELS, screen.text
    assert "CartPole-v1" in screen.text, "what stood above was erased"


# A terminal that goes away

@pytest.mark.parametrize("stderr", ["apart", "too"])
def test_head_stops_no_training(tmp_path: Path, stderr: str) -> None:
    "The reader leaves after one line; the training goes on to its end, and says nothing about it"
    child = subprocess.Popen(list(map(str, training(tmp_path, "headed", steps=15_000))), env=child_env(coverage=False), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT if stderr == "too" else subprocess.PIPE, text=True)
    assert child.stdout
    assert "rlstudio" in child.stdout.readline()
    child.stdout.close()
    complaints = ""
    if child.stderr:
        complaints = child.stderr.read()
        child.stderr.close()
    assert child.wait(60) == 0 and not complaints
    assert status(tmp_path / "headed") == "completed" and (tmp_path / "headed" / "result.json").exists()


def test_a_closed_terminal_stops_no_training(tmp_path: Path) -> None:
    "Closing the window sends SIGHUP and breaks every write; the training goes on to its end"
    t = Terminal(*training(tmp_path, "closed", steps=60_000))
    t.read(lambda s: "env steps/s" in s.text)
    assert status(tmp_path / "closed") == "running"
    os.close(t.master)
    assert t.child.wait(60) == 0
    assert status(tmp_path / "closed") == "completed" and (tmp_path / "closed" / "result.json").exists()


def test_a_listing_into_head_ends_quietly() -> None:
    done = run("bash", "-c", "set -o pipefail; rlstudio list envs | head -1", coverage=False)
    assert done.returncode == 0 and done.stdout.startswith("id") and not done.stderr, said(done)


def test_the_library_outlives_its_reader(tmp_path: Path) -> None:
    "The same for a script with a `Progress` of its own"
    script = ("from rlstudio.runs.run import Run; from rlstudio.studio.console import Progress\n"
              f"r = Run.from_config('ppo/cartpole', total_steps=20480, runs_dir={str(tmp_path)!r}, name='script')\n"
              "r.train([Progress(seconds=1e-6)])")
    done = run("bash", "-c", f'python -c "{script}" | head -1', coverage=False)
    assert "env steps" in done.stdout and status(tmp_path / "script") == "completed", said(done)
