"Disks that fail and processes that die: what the tests of everything that writes files share."
import os
import subprocess
import sys
import tempfile
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
