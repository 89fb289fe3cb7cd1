"Disks that fail and processes that die: what the tests of everything that writes files share."
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import ROOT, child_env


class FaultyOS:
    "The module `os`, whose k-th call that changes the disk does something else: `instead(name, real, *args)`"
    WATCHED = ("open", "write", "fsync", "rename", "ftruncate", "unlink", "mkdir", "close")

    def __init__(self, at: int, instead: Callable[..., Any]) -> None:
        self.at, self.instead, self.count = at, instead, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.WATCHED: return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self.instead(name, real, *args) if self.count == self.at else real(*args, **kwargs)
        return call


def fails(errno: int) -> Callable[..., Any]:
    "The call fails with this error"
    def instead(name: str, real: Callable[..., Any], *args: Any) -> Any:
        if name == "close": real(*args)
        raise OSError(errno, os.strerror(errno))
    return instead


def half(name: str, real: Callable[..., Any], *args: Any) -> Any:
    "A write takes only the first half; anything else finds the disk full"
    if name == "write": return real(args[0], bytes(args[1])[: len(args[1]) // 2])
    return fails(28)(name, real, *args)


@contextmanager
def memory_folder() -> Iterator[Path]:
    "A folder in memory where the machine has it: thousands of fsyncs then cost nothing"
    shm = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder: yield Path(folder)


def child(code: str, *args: object, check: bool = True, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    "Run Python code in a process of its own, which may import from the tests and from the package"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], env=child_env(coverage=False, PYTHONPATH=paths, **env),
                          capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


NURSERY = """
import json, os, sys, traceback
sys.path[:0] = sys.argv[1:3]
import rlstudio.runs.run, rlstudio.studio.console, rlstudio.studio.cli as cli
import matplotlib.backends.backend_agg, matplotlib.figure, PIL.WebPImagePlugin, PIL.PngImagePlugin, pygame, rlstudio.algos.ppo, torch
torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)   # torch imports a hundred modules at its first use
exec(sys.argv[3])
print('ready', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if 'wait' in task:
        pid, status = os.waitpid(task['wait'], 0 if task['block'] else os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
    elif pid := os.fork(): print(pid, flush=True)
    else:
        os.close(0)
        os.open('/dev/null', os.O_RDONLY)
        out, err = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in task['to'])
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = task['args']
        exec(task['code'])
        judge = cli.exit_code
        def told(error):   # the command line says one line of an error; a test that fails wants to know where it came from
            code = judge(error)
            if code == 1:
                with open(task['to'][0] + '.trace', 'w') as f: traceback.print_exception(error, file=f)
            return code
        cli.exit_code = told
        sys.exit(cli.main())
"""


class Forked:
    "A command in a process of its own, forked by a `Nursery`"
    def __init__(self, nursery: "Nursery", pid: int, out: Path, err: Path) -> None:
        self.nursery, self.pid, self.out, self.err, self.returncode, self.args = nursery, pid, out, err, None, pid

    def poll(self, block: bool = False) -> int | None:
        if self.returncode is None: self.returncode = self.nursery.ask(wait=self.pid, block=block)
        return self.returncode

    def wait(self, seconds: float = 60) -> int:
        "The exit code; it does not live longer than so many seconds"
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end: time.sleep(.01)
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            self.poll(block=True)
            raise TimeoutError(f"still at work after {seconds} s:\n{self.stdout}{self.stderr}")
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None: os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.poll(block=True)

    @property
    def stdout(self) -> str: return self.out.read_text(errors="replace")
    @property
    def stderr(self) -> str: return self.err.read_text(errors="replace") if self.err != self.out else ""
    @property
    def said(self) -> str: return f"exit code {self.returncode}\n{self.stdout}{self.stderr}"
    @property
    def trace(self) -> str:
        "Where the error came from that the command line told in a line"
        path = self.out.with_name(self.out.name + ".trace")
        return path.read_text() if path.exists() else ""


class Nursery:
    "A process that has imported the library and done nothing; each command is a fork of it, which saves the seconds of the import"
    def __init__(self, folder: Path, prepare: str = "", **env: str) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY, str(ROOT), str(ROOT / "tests"), prepare], env=child_env(coverage=False, **env), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def ask(self, **task: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *args: object, code: str = "", apart: bool = True) -> Forked:
        "`rlstudio ARGS` in a fork, where `code` runs first; standard error in a file of its own, or with standard output"
        self.count += 1
        out = self.folder / f".out-{self.count}"
        err = self.folder / f".err-{self.count}" if apart else out
        for path in (out, err): path.touch()
        return Forked(self, self.ask(args=["rlstudio", *map(str, args)], to=[str(out), str(err)], code=code), out, err)

    def run(self, *args: object, code: str = "", seconds: float = 60) -> Forked:
        "The same to its end"
        child = self.start(*args, code=code)
        child.wait(seconds)
        return child

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
