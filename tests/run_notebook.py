"""Run a notebook's own cells against the exported module: `python tests/run_notebook.py nbs/NN_package.module.ipynb`.

Where a cell is exported, the names that it binds are taken from the generated module instead, at that very position. So the other
cells test what is installed, and a module that lags behind its notebook is found. With `--stored`, what a cell prints must be what it has stored. Before the last hidden cells, which tidy up, the folded solution of each exercise
is put in the place of the dots, and the cell that checks the answer must say that it is right.
"""
import ast
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from execnb.shell import CaptureShell
from nbdev.test import nb_test_cells
from printed import agree
from support import ROOT, SKIP_FLAGS

EXPORTS = {"export", "exporti", "exports"}


def bound_names(nodes: Iterable[ast.AST]) -> list[str]:
    "The names that statements bind at the top level, also under `if`, `try`, `with` and `for`"
    names: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef(): names[node.name] = None
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(dict.fromkeys(a.asname or a.name.split(".")[0] for a in aliases))
            case ast.Name(ctx=ast.Store()): names[node.id] = None
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp(): pass
            case _:
                for child in ast.iter_child_nodes(node): visit(child)

    for node in nodes: visit(node)
    return list(names)


def is_patch(node: ast.AST) -> bool:
    "Is it a method that `fastcore.basics.patch` puts on its class, leaving no name in the module?"
    return any("patch" in ast.unparse(d) for d in getattr(node, "decorator_list", []))


def from_module(module: ModuleType, source: str) -> dict[str, Any]:
    "What the exported cell bound, as the module has it"
    body = [n for n in ast.parse(source).body if not is_patch(n)]
    always = bound_names(n for n in body if not isinstance(n, ast.If | ast.Try))  # `if TYPE_CHECKING:` binds nothing in a notebook either
    if missing := [n for n in always if not hasattr(module, n)]:
        raise NameError(f"{module.__name__} lacks {', '.join(missing)}, which its notebook exports; run nbdev-export")
    return {n: getattr(module, n) for n in bound_names(body) if hasattr(module, n)}


def exercises(path: Path) -> dict[str, tuple[str, str]]:
    "The exercises that a reader fills in, number → (folded solution, checking cell); each `# Exercise N` has both"
    found: dict[str, tuple[str, str]] = {}
    number, solution = "", ""
    for cell in nbformat.read(path, as_version=4).cells:
        first = cell.source.partition("\n")[0]
        if cell.cell_type == "code" and (m := re.fullmatch(r"# Exercise (\d+)", first)):
            if number: raise ValueError(f"{path.name}: exercise {number} has no cell that begins with `# Check {number}`")
            number, solution = m[1], ""
        elif number and "<details>" in cell.source:
            solution = "\n".join(re.findall(r"^```python\n(.*?)^```$", cell.source, re.M | re.S))
        elif number and first == f"# Check {number}":
            if not solution: raise ValueError(f"{path.name}: exercise {number} has no folded solution in Python before its check")
            found[number], number = (solution, cell.source), ""
    if number: raise ValueError(f"{path.name}: exercise {number} has no cell that begins with `# Check {number}`")
    return found


def stop_with(shell: CaptureShell, where: str, source: str) -> None:
    "Tell the error, and end"
    sys.stdout = sys.__stdout__
    print(f"{where}:\n\n{source}\n")
    traceback.print_exception(shell.exc, file=sys.stdout)
    sys.exit(1)


def solve(shell: CaptureShell, path: Path) -> None:
    "Answer every exercise as its solution does; the check must say so"
    for number, (solution, check) in exercises(path).items():
        shell.run(solution)
        told = "" if shell.exc else "".join("".join(o.get("text", "")) for o in shell.run(check))
        if shell.exc: stop_with(shell, f"{path.name}, the solution of exercise {number}", solution + "\n" + check)
        if told.strip() != (right := f"Exercise {number}: right."): sys.exit(f"{path.name}: with its solution exercise {number} says {told.strip()!r}, expected {right!r}")


def texts(outputs: Iterable[Any]) -> list[str]:
    "The text of each output (pictures aside: their last digits depend on the processor; warnings aside, which name the file or the cell where they arose)"
    found = [o.get("text") or next((v for k, v in sorted(o.get("data", {}).items()) if k.startswith("text/")), "") for o in outputs
             if not {"image/png", "image/svg+xml"} & {*o.get("data", {})} and o.get("name") != "stderr"]
    return ["".join(text) for text in found]


def differ(was: list[str], now: list[str]) -> bool:
    "Is what a cell prints now another text, or another number, than what it has stored?"
    return len(was) != len(now) or not all(map(agree, was, now))


def run_notebook(path: Path, stored: bool = False) -> int:
    "Run the cells that nbdev-test would run; the number of cells that ran as they are. With `stored`, all cells whose outputs are stale are told at the end"
    cells = nb_test_cells(path, SKIP_FLAGS)
    home = next((c.directives_["default_exp"] for c in cells if "default_exp" in c.directives_), None)
    shell, ran, last, stale = CaptureShell(path), 0, len(cells), []
    while last and "hide" in cells[last - 1].directives_: last -= 1     # the cells that tidy up
    os.chdir(path.parent)
    for k, cell in enumerate(cells):
        if k == last: solve(shell, path)
        if exported := EXPORTS & cell.directives_.keys():
            name = cell.directives_[exported.pop()] or home
            module = importlib.import_module(f"rlstudio.{name}")
            assert Path(module.__file__ or "").is_relative_to(ROOT), f"{module.__file__} is not this project's"
            shell.user_ns.update(from_module(module, cell.source))
            continue
        was, now = texts(cell.outputs), texts(shell.run(cell.source))
        ran += 1
        if shell.exc: stop_with(shell, f"{path.name}, cell {cell.id}, against the exported module", cell.source)
        if stored and differ(was, now): stale.append(f"cell {cell.id}: {was!r} is now {now!r}")
    if last == len(cells): solve(shell, path)
    if stale: sys.exit("\n".join([f"{path.name}: stored outputs are stale; run the notebook again and store (nbdev-test --save {path.name}):", *stale]))
    return ran


def main(path: str, stored: bool) -> None:
    "One notebook; its last line says how many cells ran"
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(ROOT))
    print(f"{run_notebook(Path(path).resolve(), stored)} cells")


def serve() -> None:
    """For every line on standard input, a task in JSON, one notebook in a process of its own, which begins as a copy of this one: torch and the like are imported once, nothing of ours is.
    Its exit code is the answer."""
    for name in ("gymnasium", "matplotlib.figure", "pydantic", "torch"): importlib.import_module(name)
    for line in sys.stdin:
        sys.stdout.flush()
        if child := os.fork(): print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else: return in_child(**json.loads(line))


def in_child(path: str, stored: bool, out: str, err: str, env: dict[str, str], seconds: int = 300) -> None:
    "The task itself, with files in the place of the server's streams, and coverage from here on where `env` asks for it"
    signal.alarm(seconds)
    for fd, name, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY | os.O_CREAT), (2, err, os.O_WRONLY | os.O_CREAT)): os.dup2(os.open(name, flags), fd)
    os.environ |= env
    if env: importlib.import_module("coverage").process_startup(force=True)
    main(path, stored)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]: serve()
    else: main(sys.argv[1], "--stored" in sys.argv[2:])
