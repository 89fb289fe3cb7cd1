"Every notebook's own cells, run against the exported package under coverage, print what they have stored: one process a notebook, two at a time."
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import nbformat
import pytest
from run_notebook import exercises
from support import NBS, ROOT, WALKS, cells, chapters, child_env, notebooks, run, said, walks

RUNNER = ROOT / "tests" / "run_notebook.py"


Done = tuple[float, CompletedProcess[str]]
COVERED = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_PROCESS")}


class Server:
    "One process that has torch imported, and forks for each notebook; it starts when it is needed"
    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.process = subprocess.Popen([sys.executable, RUNNER, "--serve"], cwd=ROOT, env=child_env(coverage=False), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, path: Path) -> Done:
        assert self.process.stdin and self.process.stdout
        out, err, start = self.logs / f"{path.stem}.out", self.logs / f"{path.stem}.err", time.perf_counter()
        self.process.stdin.write(json.dumps(dict(path=str(path), stored=path.parent == NBS, out=str(out), err=str(err), env=COVERED)) + "\n")   # nbval compares those of the walks
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return time.perf_counter() - start, CompletedProcess([path.name], code, out.read_text(), err.read_text())

    def close(self) -> None: self.process.communicate()


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[Done]]]:
    "All chosen notebooks, started two at a time when the first test asks"
    chosen = [i.callspec.params["path"] for i in request.session.items if getattr(i, "originalname", "") == "test_notebook"]
    logs, servers = tmp_path_factory.mktemp("notebooks"), list[Server]()
    mine = threading.local()

    def begin() -> None:
        mine.server = Server(logs)
        servers.append(mine.server)

    with ThreadPoolExecutor(2, initializer=begin) as workers:
        yield {p: workers.submit(lambda p=p: mine.server.run(p)) for p in chosen}
        workers.shutdown(cancel_futures=True)
        for server in servers: server.close()


@pytest.mark.parametrize("path", notebooks() + [p for p in walks() if exercises(p)], ids=lambda p: p.stem)
def test_notebook(path: Path, pool: dict[Path, Future[Done]], notebook_seconds: dict[str, float]) -> None:
    notebook_seconds[path.name], done = pool[path].result()
    assert done.returncode == 0, said(done)
    assert int(done.stdout.split()[-2]) > 0, f"no cell of {path.name} ran"


def test_there_are_notebooks() -> None:
    "A book that lost its chapters or tutorials would pass every test on them"
    assert len(notebooks()) > len(chapters()) > 0, "the index is a notebook without a module"
    assert all(notebooks(NBS / folder) for folder in WALKS)
    assert set(NBS.rglob("[0-9]*.ipynb")) == set(walks()) | {c.path for c in chapters()}, "a notebook that no gate runs"


# The harness itself: it runs what it should, skips what it should, and fails when the module and the notebook differ.

def write(path: Path, *sources: str) -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(nb, path)
    return path


HEAD = "#| default_exp data.returns"


def test_harness_takes_exported_names_from_the_module(tmp_path: Path) -> None:
    "The cell says that `gae` is 3; the module's own `gae`, and even its imports, are what the next cell sees"
    nb = write(tmp_path / "a.ipynb", HEAD, "#| export\nimport numpy as np\ngae = 3",
               "import inspect\nassert inspect.getmodule(gae).__name__ == 'rlstudio.data.returns'\nassert np.arange(3).sum() == 3")
    done = run(sys.executable, RUNNER, nb)
    assert done.returncode == 0 and done.stdout == "2 cells\n", said(done)


@pytest.mark.parametrize("source", ["assert False, 'found'", "1/0  # found", "assert undefined_name  # found",
                                    "#| export\nfound = 1"])
def test_harness_fails(tmp_path: Path, source: str) -> None:
    done = run(sys.executable, RUNNER, write(tmp_path / "a.ipynb", HEAD, source))
    assert done.returncode == 1 and "found" in done.stdout + done.stderr, said(done)


def test_harness_skips(tmp_path: Path) -> None:
    done = run(sys.executable, RUNNER, write(tmp_path / "a.ipynb", HEAD, *(f"#| {flag}\n1/0" for flag in ("slow", "notest", "gpu", "eval: false"))))
    assert done.returncode == 0 and done.stdout == "1 cells\n", said(done)


def test_harness_finds_stale_outputs(tmp_path: Path) -> None:
    "The last digits may differ, words and numbers may not; an output that is not stored at all is stale, too"
    new = nbformat.v4
    cells = [new.new_code_cell("print('good 7.98')", outputs=[new.new_output("stream", text=was)] if was else []) for was in ("good 7.97\n", "bad 7.98\n", "good 8.06\n", "")]
    nbformat.write(new.new_notebook(cells=[new.new_code_cell(HEAD), *cells]), tmp_path / "a.ipynb")
    done = run(sys.executable, RUNNER, tmp_path / "a.ipynb", "--stored")
    assert done.returncode == 1 and [line.partition(": ")[2].split(" is now")[0] for line in done.stderr.splitlines()[1:]] == ["['bad 7.98\\n']", "['good 8.06\\n']", "[]"], said(done)


def test_harness_draws_without_a_kernel(tmp_path: Path) -> None:
    nb = write(tmp_path / "a.ipynb", HEAD, "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
               "import matplotlib\nassert 'inline' in matplotlib.get_backend()")
    done = run(sys.executable, RUNNER, nb)
    assert done.returncode == 0, said(done)


def exercise(path: Path, solution: str, check: str = "# Check 1\nprint('Exercise 1: right.' if x == 3 else 'Exercise 1 is yours.')") -> Path:
    "A notebook with one exercise: x is 3"
    new = nbformat.v4
    nb = new.new_notebook(cells=[new.new_code_cell("# Exercise 1\nx = ..."), new.new_markdown_cell(solution), new.new_code_cell(check), new.new_code_cell("#| hide\ndel x")])
    nbformat.write(nb, path)
    return path


def folded(code: str) -> str: return f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"


def test_harness_solves_exercises(tmp_path: Path) -> None:
    "The notebook stays unsolved for its reader; the folded solution passes the check behind it"
    done = run(sys.executable, RUNNER, exercise(tmp_path / "a.ipynb", folded("x = 3")))
    assert done.returncode == 0 and done.stdout == "3 cells\n", said(done)


def test_harness_finds_a_wrong_solution(tmp_path: Path) -> None:
    done = run(sys.executable, RUNNER, exercise(tmp_path / "a.ipynb", folded("x = 4")))
    assert done.returncode == 1 and "'Exercise 1 is yours.', expected 'Exercise 1: right.'" in done.stderr, said(done)


@pytest.mark.parametrize("solution, check, message", [
    ("Think.", "# Check 1", "no folded solution"), (folded("x = 3"), "print(x)", "no cell that begins with `# Check 1`")])
def test_an_exercise_without_its_check_is_refused(solution: str, check: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message): exercises(exercise(tmp_path / "a.ipynb", solution, check))


@pytest.mark.parametrize("path", walks(), ids=lambda p: p.stem)
def test_tutorial_stores_outputs(path: Path) -> None:
    "nbval compares what is stored: a tutorial without stored outputs would pass whatever it prints"
    stored = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.outputs]
    assert stored, f"{path.name} has no stored output"
    flags = ("#| eval: false", "#| slow", "#|eval: false")
    assert not [s for s in cells(path) if s.startswith(flags)], "nbval runs every cell of a tutorial"
