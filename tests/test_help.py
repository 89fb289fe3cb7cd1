"What stands beside an argument is in `help`, `?` and editors: docstrings of the package have sections, written by `nbdev-export`."
import ast
import contextlib
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastcore.docments import docments
from support import ROOT, Chapter, chapters


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings = load()


def public(module: ModuleType) -> Iterator[tuple[str, Any, Any]]:
    "Every public function and method of a module, and who tells about it: name, function, the owner of its docstring"
    for name, x in vars(module).items():
        if name.startswith("_") or getattr(x, "__module__", "") != module.__name__: continue
        if inspect.isfunction(x): yield name, x, x
        if not inspect.isclass(x): continue
        for key, f in vars(x).items():
            f = getattr(f, "__func__", getattr(f, "fget", f))
            if inspect.isfunction(f) and f.__module__ == module.__name__ and f.__qualname__ == f"{x.__qualname__}.{key}" and (not key.startswith("_") or key == "__init__"):
                yield f"{name}.{key}", f, f


def beside(f: Any) -> dict[str, str]:
    "Parameter → the comment beside it, as fastcore reads it: apart from our own reader"
    try: found = docments(inspect.unwrap(f), returns=False)
    except (OSError, TypeError, SyntaxError): return {}  # made by a dataclass
    clean = {k: re.sub(r"^(noqa|type: ignore)\S*( [A-Z]+\d+\b)?( \([^)]*\))?,? *", "", v or "") for k, v in found.items()}
    return {k: v.splitlines()[0] for k, v in clean.items() if v and k not in ("self", "cls", "args", "kwargs")}


def silent(module: ModuleType) -> list[str]:
    "Comments beside arguments that no help shows"
    commands = {c.callback for c in vars(module)["app"].registered_commands} | {vars(module)["app"].registered_callback.callback} if "app" in vars(module) else set()
    gaps = []
    for name, f, owner in public(module):
        if f in commands or f in {inspect.unwrap(c) for c in commands}: continue
        doc = inspect.getdoc(owner) or ""
        gaps += [f"{name}({k}): {v}" for k, v in beside(f).items() if v not in doc]
    return gaps


@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.module)
def test_every_argument_is_in_the_help(chapter: Chapter) -> None:
    assert not (gaps := silent(import_module(chapter.module))), "\n".join(gaps)


def test_a_silent_argument_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlstudio.runs.run import Run
    assert {"config", "overrides", "runs_dir", "name", "settings"} <= beside(Run.from_config).keys()
    source = "def f(\n    a: int,  # first\n    b: int,\n) -> None: 'Nothing is said'\n\nclass A:\n    'Neither'\n    def __init__(self,\n        x: int,  # kept\n    ): pass\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, gaps in (("silent_one", source, ["f(a): first", "A.__init__(x): kept"]), ("silent_none", docstrings.with_sections(source), [])):
        (tmp_path / f"{name}.py").write_text(text)
        assert silent(import_module(name)) == gaps
        monkeypatch.delitem(sys.modules, name)


def test_help_of_a_run() -> None:
    "As a user reads it"
    from rlstudio import Run
    out = io.StringIO()
    with contextlib.redirect_stdout(out): help(Run.from_config)
    assert "Make a new run" in out.getvalue() and "overrides: over it: 'section.key=value'" in out.getvalue() and "**changes: more overrides" in out.getvalue()
    out = io.StringIO()
    with contextlib.redirect_stdout(out): help(Run)
    assert "folder: exists, with a config.yaml" in out.getvalue()


def test_fields_are_in_the_help_of_a_class() -> None:
    from rlstudio.algos.ppo import PPOConfig
    from rlstudio.core.options import EnvConfig
    assert "clip_range: ε" in (PPOConfig.__doc__ or "") and "those of OnPolicyConfig" in (PPOConfig.__doc__ or "") and "num_envs: copies that are stepped together" in (EnvConfig.__doc__ or "")


CELL = '''
def f(
    a: int,      # first
    b: str = "x",  # noqa: B006 (never changed) second
                 # and more of it
    *rest: int,  # others
    _c: int = 0,  # private
) -> int:        # the sum
    "Add \\"things\\" up"  # a remark
    return 1

class A:
    r"A thing with \\d"
    def __init__(self, x: int,  # kept
        y: int = 3,             # not kept
    ): self.x = x
    @property
    def size(self) -> int: return 3  # bytes
    def one(self, x: "A") -> bool: return True  # of any kind
    def none(self, x: int) -> None:  # ≥ 1
        "Does nothing"
    def over(self) -> None: ...

@dataclass(frozen=True)
class B(Config):
    "Data"
    x: int  # a number
    # a text
    y: str = "é"

@app.command()
def command(x: int = 3) -> None:  # not ours
    "A command"
'''


def test_sections() -> None:
    source = docstrings.with_sections(CELL)
    space: dict[str, Any] = {}
    tree = ast.parse(source)
    docs = {getattr(n, "name", ""): ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert docs["f"] == 'Add "things" up\n\nArgs:\n    a: first\n    b: second and more of it\n    *rest: others\n\nReturns:\n    the sum'
    assert docs["__init__"] == "Args:\n    x: kept\n    y: not kept" and docs["A"] == r"A thing with \d" and docs["size"] == "bytes"
    assert docs["one"] == "of any kind" and docs["none"] == "Does nothing\n\nArgs:\n    x: ≥ 1" and docs["over"] is None
    assert docs["B"] == "Data\n\nArgs:\n    x: a number\n    y: a text\n    …: and those of Config" and docs["command"] == "A command"
    assert "# first" in source and "# a remark" in source and '"bytes"; return 3  # bytes' in source and not space
    assert docstrings.with_sections("%magic\nx = ") == "%magic\nx = "


@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.module)
def test_only_docstrings_change(chapter: Chapter) -> None:
    "The code itself is that of the notebook"
    def bare(source: str) -> str:
        tree = ast.parse(source)
        for n in ast.walk(tree):
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(n) is not None: n.body = n.body[1:] or [ast.Pass()]
        return ast.dump(tree)
    from support import cells
    exported = [s for s in cells(chapter.path) if re.search(r"^#\|\s*export", s, re.M)]
    for s in exported: assert bare(docstrings.with_sections(s)) == bare(s)
