"The gates: what must hold for the whole repository, each with a proof that it can fail."
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from closure import closure, pins
from lint_gate import forbidden
from printed import Printed, agree
from run_notebook import differ, texts
from support import (
    NBS,
    PACKAGE,
    ROOT,
    WALKS,
    Chapter,
    cells,
    chapters,
    copy_tree,
    disguise,
    notebooks,
    project_files,
    run,
    said,
    snapshot,
    walks,
)
from torch import nn

from rlstudio.core.arithmetic import identity, identity_key
from rlstudio.evidence.drift import read_golden

MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name not in ("_modidx.py", "__init__.py")]


# Lint and types

def test_ruff() -> None:
    done = run(sys.executable, "-m", "ruff", "check", ".")
    assert done.returncode == 0, said(done)


def test_ruff_reads_notebooks(tmp_path: Path) -> None:
    "A notebook with an undefined name fails under the project's own settings"
    (tmp_path / "nbs").mkdir()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(undefined)")]), tmp_path / "nbs/a.ipynb")
    done = run(sys.executable, "-m", "ruff", "check", ".", cwd=tmp_path)
    assert done.returncode == 1 and "F821" in done.stdout, said(done)


def test_mypy() -> None:
    done = run(sys.executable, "-m", "mypy", coverage=False)
    assert done.returncode == 0 and "no issues found" in done.stdout, said(done)


# Notebooks and generated files

@pytest.mark.skipif(os.environ.get("RLSTUDIO_BOOK") != "all", reason="test_notebooks.py compares all stored outputs; RLSTUDIO_BOOK=all also runs nbdev-test on the whole book, as every night")
def test_nbdev_test_and_stored_outputs(tmp_path: Path) -> None:
    "Every chapter passes by itself, with its own cells in the place of the module's, and what it prints is what it has stored"
    assert not (stale := stale_outputs(copy_tree(tmp_path / "copy"))), stale


@pytest.mark.parametrize("some", ["nets", "algos.(ppo|dqn|sac)"])
def test_stored_outputs_on_another_processor(some: str, tmp_path: Path) -> None:
    "The chapters that calculate most pass, and print the same where every library chooses the kernels of a simpler processor"
    copy = copy_tree(tmp_path / "copy")
    for p in copy.glob("nbs/**/*.ipynb"):
        if not re.search(rf"_{some}\.", p.name): p.unlink()
    assert not (stale := stale_outputs(copy, **disguise())), stale


def test_golden_on_another_processor() -> None:
    "An unknown identity is checked at level L2, and says so"
    key = run(sys.executable, "-c", "from rlstudio.core.arithmetic import *; print(identity_key(identity()))", coverage=False, **disguise()).stdout.strip()
    if "openblas" in key: assert key != identity_key(identity()), "the disguise does not work"
    done = run(sys.executable, "-m", "pytest", "--no-cov", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_reproducible.py", "-k", "test_golden",
               coverage=False, **disguise())
    known = key in [identity_key(m.identity) for m in read_golden()]
    assert done.returncode == 0 and (known or f"level L2 only: the first updates agree to 1e-6, and no hash is known for this arithmetic ({key})" in done.stdout), said(done)


def stale_outputs(copy: Path, **env: str) -> str:
    "Run the notebooks of a copy of the project; '' or the outputs that are no longer those that are stored"
    stored = {p: outputs(p) for p in sorted(copy.glob("nbs/**/*.ipynb"))}
    done = run("nbdev-test", "--save", cwd=copy, timeout=1800, coverage=False, **env)   # the whole book, beside other tests
    assert stored and done.returncode == 0, said(done)
    stale = [f"{p.relative_to(copy)}: {was!r} is now {now!r}" for p in stored for was, now in zip(stored[p], outputs(p), strict=True) if differ(was, now)]
    return "\n".join(["stored outputs are stale; run the notebook again and store:", *stale]) if stale else ""


def outputs(path: Path) -> list[list[str]]:
    "The text that each code cell stores"
    return [texts(c.outputs) for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("was, now", [
    ("7.98", "7.97"), ("loss 0.25, 12 steps", "loss 0.2502, 12 steps"), ("[ 0.1   -2.   ]", "[ 0.1001 -2.    ]"), ("[-0.  1.]", "[0. 1.]"), ("1e-09", "-3.1e-08"), ("1e-04", "1.004e-04"),
    ("tensor([1.2500e+03])", "tensor([1.2501e+03])"), ("| a | 0.5 |", "| a | 0.4999 |"), ("3.00 s", "3.01 s"), ("torch 2.13.0", "torch 2.13.0"),
])
def test_outputs_that_agree(was: str, now: str) -> None:
    assert agree(was, now) and agree(now, was) and Printed(was) == now


@pytest.mark.parametrize("was, now", [
    ("a good return of 7.98", "a goal return of 7.98"), ("7.98", "8.06"), ("0.1", "0.2"), ("0.5", "-0.5"), ("12 steps", "13 steps"), ("1.5", "1"), ("1.5", "nan"),
    ("[1. 2.]", "[1. 2. 3.]"), ("1e-04", "1.01e-04"), ("torch 2.13.0", "torch 2.13.1"), ("a488c9d1.5e2", "a488c9d1.5e3"), ("step_000002048", "step_000002049"),
    ("(1.0, True)", "(1.0, False)"), ("one\ntwo", "one two"), ("123456789", "123456788"),
])
def test_outputs_that_disagree(was: str, now: str) -> None:
    "The gate can fail: a wrong word, a wrong whole number, a number that is off by 1 %"
    assert not agree(was, now) and not agree(now, was) and Printed(was) != now


@pytest.mark.parametrize("stored, stale", [("'good', 7.97", ""), ("'bad', 7.98", "0_a.ipynb"), ("'good', 8.06", "0_a.ipynb")])
def test_stored_outputs_gate_can_fail(tmp_path: Path, stored: str, stale: str) -> None:
    (tmp_path / "nbs").mkdir()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    output = nbformat.v4.new_output("execute_result", {"text/plain": f"({stored})"})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("'good', 7.98", outputs=[output])]), tmp_path / "nbs/00_a.ipynb")
    assert stale in (found := stale_outputs(tmp_path)) and bool(found) == bool(stale)


@pytest.mark.parametrize("folder", WALKS)
def test_tutorials_are_compared_likewise(folder: str, tmp_path: Path) -> None:
    "nbval lets the last digits differ, and fails at a wrong word and at a number that is off by 1 %"
    for f in ("conftest.py", "pyproject.toml", "tests/printed.py", "tests/nbval.cfg"): (tmp_path / f).parent.mkdir(exist_ok=True); shutil.copy(ROOT / f, tmp_path / f)
    (tmp_path / "nbs" / folder).mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell(f"print({now!r})", outputs=[nbformat.v4.new_output("stream", text=f"{was}\n")])
             for was, now in (("good: 7.97", "good: 7.98"), ("bad: 7.98", "good: 7.98"), ("good: 8.06", "good: 7.98"))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs" / folder / "01_a.ipynb")
    done = run(sys.executable, "-m", "pytest", "--no-cov", "-q", f"nbs/{folder}", cwd=tmp_path, coverage=False)
    assert done.returncode == 1 and "2 failed, 1 passed" in done.stdout, said(done)


def test_nbdev_test_fails(tmp_path: Path) -> None:
    copy = copy_tree(tmp_path / "copy")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(nb, copy / "nbs/99_broken.ipynb")
    done = run("nbdev-test", "nbs/99_broken.ipynb", cwd=copy, coverage=False)
    assert done.returncode == 1 and "99_broken" in done.stderr, said(done)


def test_export_and_clean_change_nothing(tmp_path: Path) -> None:
    copy = copy_tree(tmp_path / "copy")
    before = snapshot(copy)
    for tool in ("nbdev-export", "nbdev-clean"):
        done = run(tool, cwd=copy, coverage=False)
        assert done.returncode == 0, said(done)
    after = snapshot(copy)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    assert not changed, f"run nbdev-export and nbdev-clean, then commit: {changed}"


def test_every_module_has_its_notebook() -> None:
    "A renamed `default_exp` leaves the old module behind; two notebooks of one name overwrite each other"
    exported = [c.module for c in chapters()]
    assert sorted(exported) == sorted(set(exported)), "two notebooks share a default_exp"
    assert {c.file for c in chapters()} == set(MODULES), "a module without a notebook, or a notebook that was not exported"
    for c in chapters():
        named = re.search(r"File to edit: \S*?([^/\s]+\.ipynb)\.", c.file.read_text())
        assert named and named[1] == c.path.name, f"{c.file} names another notebook than {c.path.name}"
        assert c.path.stem.split("_", 1)[1] == c.module.removeprefix("rlstudio."), f"{c.path.name} does not say what it exports"


def test_a_number_is_one_chapter() -> None:
    "The order of the book is the order of the numbers"
    numbers = [p.name[:2] for p in (ROOT / "nbs").glob("[0-9]*.ipynb")]
    assert len(numbers) > 50 and sorted(set(numbers)) == sorted(numbers)


def test_package_markers_hold_no_code() -> None:
    "What no notebook has, nobody explains: the `__init__.py` of a part is empty (the package's own may hold the version and lazy names)"
    for p in PACKAGE.glob("*/**/__init__.py"): assert not p.read_text().strip(), f"{p.relative_to(ROOT)} holds code"


# The book's order

def imports(source: str, module: str) -> Iterator[str]:
    "The modules of the package that a source imports, `from` imports resolved against `module`"
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names): yield from (a.name for a in names if a.name.startswith("rlstudio."))
            case ast.ImportFrom(module=name, names=names, level=level):
                base = ".".join([*module.split(".")[:-level], *filter(None, [name])]) if level else name or ""
                if base.startswith("rlstudio"): yield from (f"{base}.{a.name}" for a in names)


def out_of_order(book: list[Chapter]) -> list[str]:
    place, wrong = {c.module: i for i, c in enumerate(book)}, []
    for i, c in enumerate(book):
        own = [s for s in map(python_only, cells(c.path)) if s]
        for source, where in [(c.file.read_text(), i - 1), *((s, i) for s in own)]:
            for name in imports(source, c.module):
                target = name if name in place else name.rpartition(".")[0]
                if target in place and place[target] > where: wrong.append(f"{c.path.name} imports {target}")
    return wrong


def python_only(source: str) -> str:
    "The cell, or nothing where it is a shell command or a magic"
    try: ast.parse(source)
    except SyntaxError: return ""
    return source


def test_chapters_import_only_earlier_chapters() -> None:
    assert not out_of_order(chapters())


def test_import_rule_can_fail() -> None:
    source = "import rlstudio.b.two\nfrom ..c import three\nfrom .four import x\nimport numpy"
    assert list(imports(source, "rlstudio.a.one")) == ["rlstudio.b.two", "rlstudio.c.three", "rlstudio.a.four.x"]
    if len(book := chapters()) > 1 and any("rlstudio" in "".join(imports(c.file.read_text(), c.module)) for c in book):
        assert out_of_order(book[::-1])


# What chapters use by name: a registered name is a later chapter's, too

def registered() -> dict[str, dict[str, str]]:
    "registry → name → the module that brings it, from the entry points in pyproject.toml"
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return {group.removeprefix("rlstudio."): {name: target.partition(":")[0] for name, target in names.items()}
            for group, names in points.items() if group.startswith("rlstudio.")}


def text_of(node: ast.AST | None) -> str: return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def entries(node: ast.AST) -> dict[str, ast.AST]:
    "What a dict display, or a call with keywords, says under which key"
    if isinstance(node, ast.Dict): return {text_of(k): v for k, v in zip(node.keys, node.values) if text_of(k)}
    return {k.arg: k.value for k in node.keywords if k.arg} if isinstance(node, ast.Call) else {}


def used_by_name(source: str) -> Iterator[str]:
    """The modules that a source uses without importing them: `algos.get('ppo')`, a config whose `algo` has the name `ppo` or whose `net` has the encoder
    `nature` (as dict or as YAML in a string), a packaged config such as `ppo/cartpole`, and code in a string that names a module."""
    homes = registered()
    for node in ast.walk(ast.parse(source)):
        yield from re.findall(r"\brlstudio(?:\.\w++)++(?!:\w)", text_of(node))  # not an entry point, module:Name
        for name in re.findall(r"\balgo:\s*\{?\s*name:\s*([\w-]+)", text_of(node)): yield homes["algos"].get(name, "")
        for section, key, group in (("algo", "name", "algos"), ("net", "encoder", "nets")):
            if (part := entries(node).get(section)) is not None: yield homes.get(group, {}).get(text_of(entries(part).get(key)), "")
        if not isinstance(node, ast.Call) or not node.args: continue
        registry, _, called = ast.unparse(node.func).rpartition(".")
        first = text_of(node.args[0])
        if called == "get": yield homes.get(registry.split(".")[-1].removeprefix("native_"), {}).get(first, "")
        if called in ("load_config", "find_config", "from_config") and "/" in first: yield homes["algos"].get(first.split("/")[-2], "")


def later_by_name(book: list[Chapter]) -> list[str]:
    place = {c.module: i for i, c in enumerate(book)}
    return [f"{c.path.name} uses {name}" for i, c in enumerate(book) for s in map(python_only, cells(c.path)) if s
            for name in used_by_name(s) if max(place.get(m, -1) for m in (name, name.rpartition(".")[0])) > i]


def test_chapters_use_no_later_chapter_by_name() -> None:
    assert not later_by_name(chapters())


@pytest.mark.parametrize("source", [
    "algos.get('ppo')", "core.registry.algos.get('ppo')", "config_from_dict({'env': {'id': 'x'}, 'algo': {'name': 'ppo', 'gamma': 0.9}})",
    "config_from_dict(dict(algo=dict(name='ppo')))", "text = 'env: {id: x}\\nalgo:\\n  name: ppo\\n'", "load_config('configs/ppo/cartpole')",
    "Run.from_config('ppo/cartpole')", "code = 'import sys, rlstudio.algos.ppo; sys.exit()'",
])
def test_gate_of_uses_by_name_catches(source: str) -> None:
    assert "rlstudio.algos.ppo" in used_by_name(source)


def test_gate_of_uses_by_name_allows() -> None:
    mine = "algos.add('mine', Mine)\nconfig_from_dict({'algo': {'name': 'mine'}})\nalgos.get('mine')\n'ppo' in algos\nx = {'name': 'ppo'}"
    assert not any(used_by_name(mine)) and later_by_name(chapters()[::-1])


# Names and classes

def public_names(source: str) -> set[str]:
    "What a module defines at its top level, without imports and private names"
    names: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name): names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)): names.add(name)
            case ast.Assign(targets=targets): names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return {n for n in names if not n.startswith("_")}


def test_a_public_name_has_one_meaning() -> None:
    "No public name is defined in two modules"
    homes: dict[str, list[str]] = {}
    for p in MODULES:
        for name in public_names(p.read_text()): homes.setdefault(name, []).append(p.relative_to(PACKAGE).as_posix())
    twice = {name: where for name, where in sorted(homes.items()) if len(where) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in twice.items())


def test_public_names_are_found() -> None:
    source = "from x import y\nA: int = 1\nB, (C, _d) = 1, (2, 3)\n@f\ndef g(): h = 1\nclass K: z = 1\ndef _p(): ...\n__all__ = ['A']"
    assert public_names(source) == {"A", "B", "C", "g", "K"}


def chain(cls: type) -> list[type]:
    "The longest chain of the package's own classes, from a class to its farthest ancestor"
    if not cls.__module__.startswith("rlstudio."): return []
    return [cls, *max((chain(b) for b in cls.__bases__), key=len, default=[])]


def own_classes() -> list[type]:
    modules = [import_module(c.module) for c in chapters()]
    return [v for m in modules for v in vars(m).values() if isinstance(v, type) and v.__module__ == m.__name__]


def test_no_tower_of_classes() -> None:
    "Parts are combined; inheritance says what a thing is, and four floors are enough"
    high = [" → ".join(c.__name__ for c in chain(cls)) for cls in own_classes() if len(chain(cls)) > 4]
    assert not high, "\n".join(high)


def test_a_tower_is_found() -> None:
    assert len(own_classes()) > 50
    floor = type("A", (), {"__module__": "rlstudio.x"})
    for name in "BCDE": floor = type(name, (floor,), {"__module__": "rlstudio.x"})
    assert [c.__name__ for c in chain(floor)] == list("EDCBA")


# Security: nothing in the package can run code from a file or a string

def test_nothing_forbidden_in_the_package() -> None:
    found = [f"{p.relative_to(ROOT)}:{line}: {what}" for p in PACKAGE.rglob("*.py") for line, what in forbidden(p.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", [
    "import pickle", "import cloudpickle as cp", "from dill import loads", "import joblib.numpy_pickle", "import marshal", "import shelve",
    "from multiprocessing import Pool\nimport _pickle", "eval('1')", "exec('x = 1')", "run = eval", "import builtins\nbuiltins.exec('1')",
    "import torch\ntorch.load('f')", "from torch import load", "import torch as t\nt.save(1, 'f')", "import os\nos.system('ls')",
    "from os import system as s", "import numpy as np\nnp.load('f', allow_pickle=True)", "import numpy\nnumpy.load('f', None, True)",
    "import numpy as np\nnp.load('f', allow_pickle=flag)", "import subprocess\nsubprocess.run('ls', shell=True)",
    "from subprocess import run\nrun('ls', shell=flag)", "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)", "import yaml\nyaml.unsafe_load(t)",
    "import yaml\nyaml.compose(t, Loader=yaml.FullLoader)", "from yaml import UnsafeLoader", "import yaml as y\ny.full_load(t)",
    "__import__('pickle')", "import importlib\nimportlib.import_module('pickle')", "from importlib import import_module as i\ni('dill')",
    "def f():\n    import pickle",
])
def test_gate_catches(source: str) -> None:
    assert list(forbidden(source)), source


@pytest.mark.parametrize("source", [
    "model.eval()", "import numpy as np\nnp.load('f', allow_pickle=False)", "import yaml\nyaml.safe_load(t)", "import json\njson.load(f)",
    "import yaml\nyaml.compose(t, Loader=yaml.SafeLoader)", "import subprocess\nsubprocess.run(['ls'], shell=False)", "from .pickles import jar",
    "import torch\ntorch.from_numpy(x)", "'eval(1) and import pickle'", "import importlib\nimportlib.import_module(name)",
])
def test_gate_allows(source: str) -> None:
    assert not list(forbidden(source)), source


# Documents: a docstring for each public thing, and a comment beside each argument, field and return

def params(f: ast.FunctionDef) -> list[ast.arg]:
    return [a for a in f.args.posonlyargs + f.args.args + f.args.kwonlyargs if a.arg not in ("self", "cls") and not a.arg.startswith("_")]


def function_gaps(f: ast.FunctionDef, name: str, lines: list[str], returns: bool = True) -> list[str]:
    beside = f.returns is not None and "#" in lines[f.returns.end_lineno - 1]  # a word beside a method's return is enough
    gaps = [] if ast.get_docstring(f) or (beside and not returns) or f.name == "__init__" else [f"{name}: no docstring"]
    if any(ast.unparse(d).startswith("app.") for d in f.decorator_list): return gaps  # a command: typer's help= explains the arguments
    gaps += [f"{name}({a.arg}): no docment" for a in params(f) if "#" not in lines[a.lineno - 1]]
    told = f.returns is not None and "None" not in ast.unparse(f.returns).replace(" | None", "")
    if returns and told and "#" not in lines[f.returns.lineno - 1]: gaps.append(f"{name} -> : no docment of the return")
    return gaps


def class_gaps(cls: ast.ClassDef, lines: list[str], inherited: set[str]) -> list[str]:
    gaps = [] if ast.get_docstring(cls) else [f"{cls.name}: no docstring"]
    data = any("dataclass" in ast.unparse(d) for d in cls.decorator_list)
    for node in cls.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) if data and not name.startswith("_"):
                near = lines[node.lineno - 1:node.end_lineno] + lines[node.lineno - 2:node.lineno - 1]
                if not any("#" in s for s in near): gaps.append(f"{cls.name}.{name}: no docment of the field")
            case ast.FunctionDef(name=name) if (not name.startswith("_") or name == "__init__") and name not in inherited:
                gaps += function_gaps(node, f"{cls.name}.{name}", lines, returns=False)  # a method's docstring tells what it gives
    return gaps


def inherited_names(module: ModuleType, cls: str) -> set[str]:
    "Methods that are documented where the contract is, in a base class"
    bases = [b for b in getattr(module, cls).__mro__[1:] if b not in (object, nn.Module)]
    return {n for b in bases for n, f in vars(b).items() if n != "__init__" and getattr(f, "__doc__", None)}


def undocumented(source: str, module: ModuleType | None = None) -> list[str]:
    "What a source leaves unexplained"
    gaps, lines = [], source.splitlines()
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) if not name.startswith("_"): gaps += function_gaps(node, name, lines)
            case ast.ClassDef(name=name) if not name.startswith("_"):
                gaps += class_gaps(node, lines, inherited_names(module, name) if module else set())
    return gaps


@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.module)
def test_public_names_are_documented(chapter: Chapter) -> None:
    gaps = undocumented(chapter.file.read_text(), import_module(chapter.module))
    assert not gaps, "\n".join(gaps)


def test_document_gate_can_fail() -> None:
    bare = "def bare(x: int) -> int: return x"
    assert undocumented(bare) == ["bare: no docstring", "bare(x): no docment", "bare -> : no docment of the return"]
    told = "def told(\n    x: int,  # a number\n) -> int:  # the same number\n    'Nothing happens'\n    return x"
    assert undocumented(told) == []
    data = "@dataclass\nclass A:\n    'A thing'\n    x: int\n    y: int  # told\n    def f(self, z: int) -> None: 'told'"
    assert undocumented(data) == ["A.x: no docment of the field", "A.f(z): no docment"]
    method = "class A:\n    'A thing'\n    def f(\n        self, z: int,  # a number\n    ) -> int:{}\n        return z"
    assert undocumented(method.format("")) == ["A.f: no docstring"] and undocumented(method.format("  # the same")) == []
    prop = "class A:\n    'A thing'\n    @property\n    def size(self) -> int: return 3{}"
    assert undocumented(prop.format("")) == ["A.size: no docstring"] and undocumented(prop.format("  # bytes")) == []


MACHINE = re.compile("|".join([
    r"/(?:work|root|home|Users|opt|mnt)/\w", r"\b[A-Z]:\\\\", r"pypi\.org", r"pythonhosted", r"download\.pytorch", r"index[-_]url",
    r"find-links", r"/tmp/(?!rlstudio-)\w", r"127\.0\.0\.1", r"localhost:", r"\b(?:10|192\.168|172\.16)\.\d+\.\d+\.\d+\b",
]))


def test_no_machine_in_the_files() -> None:
    "No path of somebody's machine and no host of a package index in any text file"
    found = []
    for f in project_files():
        if f == Path(__file__).relative_to(ROOT): continue
        try: text = (ROOT / f).read_text()
        except UnicodeDecodeError: continue
        found += [f"{f}:{i}: {m[0]}" for i, line in enumerate(text.splitlines(), 1) if (m := MACHINE.search(line))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["see /home/ann/runs", "--index-url https://x", "from /tmp/x", r"C:\\Users", "http://localhost:8888"])
def test_machine_gate_can_fail(line: str) -> None:
    assert MACHINE.search(line)


# Packaging

def test_constraints_are_complete() -> None:
    "constraints.txt pins what is installed here, and nothing that the project needs is missing"
    lines = [s for s in (ROOT / "constraints.txt").read_text().splitlines() if s and not s.startswith("#")]
    pinned = dict(s.split("==") for s in lines)
    assert pinned == pins(closure("dev")), "python tests/closure.py > constraints.txt"


def test_ci_calls_the_readme() -> None:
    "The second command of the README is the very line that .ci/run runs"
    commands = [s.strip() for s in (ROOT / "README.md").read_text().splitlines() if s.strip().startswith("python3 -m venv")]
    assert len(commands) == 2, f"the README has two commands for a bare machine, found {commands}"
    first, second = commands
    assert shlex.split(first)[-3:] == ["rlstudio", "run", "configs/ppo/cartpole.yaml"]
    assert second.endswith("&& pytest") and second in [s.strip() for s in (ROOT / ".ci/run").read_text().splitlines()]
    assert all("-c constraints.txt" in c for c in commands)


def test_workflow_actions_are_pinned() -> None:
    "Every action by its full commit, with the version beside it; no permission beyond reading"
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        text = path.read_text()
        uses = re.findall(r"uses:\s*(.+)", text)
        assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", u.strip()) for u in uses), uses
        assert "permissions:\n  contents: read\n" in text and "write" not in text


def test_scripts_are_executable() -> None:
    for script in (".ci/run", ".ci/release"):
        mode = subprocess.run(["git", "ls-files", "-s", script], cwd=ROOT, capture_output=True, text=True).stdout[:6]
        assert (ROOT / script).stat().st_mode & 0o100 and mode in ("100755", ""), f"{script} is not executable"


# The README

def test_the_map_leads_everywhere() -> None:
    "Every chapter, every page of the prologue and every tutorial is linked from the README, and llms.txt names them"
    readme, llms = (ROOT / "README.md").read_text(), (NBS / "llms.txt").read_text()
    lost = [p.relative_to(ROOT).as_posix() for p in [c.path for c in chapters()] + walks() if f"({p.relative_to(ROOT).as_posix()})" not in readme]
    lost += [c.module for c in chapters() if f"`{c.module}`" not in llms] + [folder for folder in WALKS if f"nbs/{folder}/" not in llms]
    assert not lost, f"add them to nbs/index.ipynb, then nbdev-export and python docs/make_readme.py: {lost}"


def test_readme_is_fresh() -> None:
    done = run(sys.executable, "docs/make_readme.py", "--check")
    assert done.returncode == 0, said(done)


def test_notebooks_have_stable_names() -> None:
    wrong = [p.name for p in notebooks() if not re.fullmatch(r"(index|\d\d_[a-z0-9_]+\.[a-z0-9_]+)\.ipynb", p.name)]
    assert not wrong, f"chapters are named NN_package.module.ipynb: {wrong}"


# The tape

def not_in_torch(names: Iterator[str]) -> list[str]:
    "Names that no tensor has: a loss that uses one of them would not run on torch"
    return [n for n in names if not n.startswith("_") and not hasattr(nn.Parameter, n)]


def test_the_tape_speaks_torch() -> None:
    "Every public method and property of `Var` is one of torch.Tensor, apart from what makes it a variable"
    tape = import_module("rlstudio.nets.tape")
    assert sorted(not_in_torch(iter(vars(tape.Var)))) == ["needs", "receive", "tape", "value"]


def test_tape_gate_can_fail() -> None:
    assert not_in_torch(iter(["exp", "clip", "shape", "_hidden", "shrink", "logsoftmax"])) == ["shrink", "logsoftmax"]


# The fault catalogue

def test_the_fault_catalogue_is_whole_and_fresh() -> None:
    "Each number has a test or a reason, and docs/faults.md says what the marks say"
    done = run(sys.executable, "docs/make_faults.py", "--check")
    assert done.returncode == 0, said(done)


def test_the_gate_of_the_fault_catalogue_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    import make_faults as made
    tests = made.marked()
    assert made.problems(tests) == [] and made.problems({}) == [f"{n}: neither a test nor a reason" for n in made.CASES if n not in made.REASONS]
    assert made.problems(tests | {99: ["a"]}) == ["99: no such number, in a"]
    monkeypatch.setitem(made.REASONS, 33, "nobody has had the time")
    assert made.problems(tests) == ["33: a test and a reason why there is none"]
