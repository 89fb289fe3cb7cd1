"""The public names of the library, one a line, as tests/public_names.txt keeps them: so a change of the interface is a decision, and a review sees it.

    python tests/public_names.py           # write the file anew, and say what has come and gone
    python tests/public_names.py --check   # only say it; exit code 1 if the file is stale

In it are the names of every module with their arguments (`=`: has a default), the methods of classes and the fields of dataclasses, the names that a config or the
command line can say, and the options of every command. What a line means stands in ADR 0018.
"""
import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "public_names.txt"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def arguments(f: Function, method: bool = False) -> str:
    "How a function is called: (name, other=, *, option=)"
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    said = [p.arg + "=" * (i >= len(plain) - len(a.defaults)) for i, p in enumerate(plain)]
    if method and said and not any(ast.unparse(d) == "staticmethod" for d in f.decorator_list): said = said[1:]
    said += [f"*{a.vararg.arg}"] if a.vararg else ["*"] if a.kwonlyargs else []
    said += [p.arg + "=" * (d is not None) for p, d in zip(a.kwonlyargs, a.kw_defaults)] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])
    return f"({', '.join(said)})"


def members(cls: ast.ClassDef, home: str) -> Iterator[str]:
    "A class, its methods and its fields"
    made = next((arguments(f, True) for f in cls.body if isinstance(f, Function) and f.name == "__init__"), "")
    yield f"{home}.{cls.name}{made}"
    for node in cls.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            prop = any(ast.unparse(d).endswith(("property", ".setter")) for d in node.decorator_list)
            yield f"{home}.{cls.name}.{node.name}{'' if prop else arguments(node, True)}"
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            yield f"{home}.{cls.name}.{node.target.id}{'=' * (node.value is not None)}"


def names_of(source: str, home: str) -> Iterator[str]:
    "The public names of a module: what its `__all__` lists"
    body = ast.parse(source).body
    listed = next((ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])
    seen = set()
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and node.name in listed and not node.name.startswith("_"):
            seen.add(node.name)
            if isinstance(node, ast.ClassDef): yield from members(node, home)
            else: yield f"{home}.{node.name}{arguments(node)}"
    yield from (f"{home}.{name}" for name in listed if name not in seen and not name.startswith("_"))


def options(command: Any, path: str) -> Iterator[str]:
    "A command of the command line, its arguments and options, and those of the commands in it"
    command = command.real() if hasattr(command, "real") else command
    for p in command.params:
        shown = "/".join(sorted({*p.opts, *p.secondary_opts})) if p.param_type_name == "option" else str(p.metavar or p.name).upper()
        if shown not in ("--help", "--install-completion", "--show-completion"): yield f"{path} {shown}"
    yield path
    for name, one in getattr(command, "commands", {}).items(): yield from options(one, f"{path} {name}")


def commands() -> Iterator[str]:
    "What can be typed"
    import typer

    from rlstudio.core.registry import commands as registered
    from rlstudio.studio.cli import app
    top = typer.main.get_command(app)
    yield from options(top, "rlstudio")
    for name in (n for n, who in registered.describe().items() if who == "rlstudio" and n not in top.commands): yield from options(top.get_command(None, name), f"rlstudio {name}")


def public_names() -> list[str]:  # sorted
    "All of them"
    package, points = ROOT / "rlstudio", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    names = set(commands())
    for file in package.rglob("*.py"):
        if file.name in ("_modidx.py", "_nbdev.py"): continue
        names |= set(names_of(file.read_text(), ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")))
    names |= {f"{group}: {name}" for group, found in points.items() if group.startswith("rlstudio.") for name in found}
    return sorted(names)


def text_of(names: list[str]) -> str:
    from rlstudio import __api__
    return "\n".join(["# Public names of RLStudio, written by tests/public_names.py (ADR 0018)", f"# interface {__api__}", *names]) + "\n"


def changes(was: str, now: str) -> tuple[list[str], list[str]]:
    "What has come, and what has gone"
    old, new = (set(line for line in text.splitlines() if not line.startswith("#")) for text in (was, now))
    return sorted(new - old), sorted(old - new)


if __name__ == "__main__":
    was, now = FILE.read_text() if FILE.is_file() else "", text_of(public_names())
    come, gone = changes(was, now)
    for line in come: print(f"+ {line}")
    for line in gone: print(f"- {line}")
    if gone: print(f"{len(gone)} public names have gone or changed. Names that a release has had warn for one minor version first (`deprecated`, `renamed` in core.registry), and the major number of rlstudio.__api__ rises.")
    if "--check" in sys.argv: sys.exit(was != now and f"{FILE.name} is stale: python tests/public_names.py")
    FILE.write_text(now)
