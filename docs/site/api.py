"The reference of every public name, read from the package that the chapters have written: arguments, errors, and the way back to the chapter."
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from modules import ROOT, package, page_of

sys.path[:0] = [str(ROOT / "docs")]
from docstrings import comments, fields, told  # noqa: E402

Function = ast.FunctionDef | ast.AsyncFunctionDef
MARK = re.compile(r"^# %% \S*?(nbs/\S+\.ipynb) #(\w+)")
SHORT = 88   # characters of a constant's value


@dataclass
class Module:
    "One module of the package, as its text says"
    path: Path
    errors: dict[str, list[str]] = field(default_factory=dict)   # function → what it raises by itself

    @cached_property
    def text(self) -> str: return self.path.read_text()

    @cached_property
    def lines(self) -> list[str]: return self.text.splitlines()

    @cached_property
    def notes(self) -> dict[int, str]: return comments(self.text)

    @cached_property
    def tree(self) -> ast.Module: return ast.parse(self.text)

    @property
    def short(self) -> str: return f"{self.path.parent.name}.{self.path.stem}"

    @property
    def name(self) -> str: return f"rlstudio.{self.short}"

    @cached_property
    def chapter(self) -> str:
        "The notebook that wrote it"
        found = re.search(r"File to edit: \S*?(nbs/\S+\.ipynb)\.", self.text)
        return found[1] if found else ""

    @cached_property
    def doc(self) -> str: return ast.get_docstring(self.tree) or ""

    @cached_property
    def public(self) -> list[str]:
        "Its `__all__`"
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__": return list(ast.literal_eval(node.value))
        return []

    @cached_property
    def nodes(self) -> dict[str, ast.stmt]:
        "Name → the statement that defines it"
        found: dict[str, ast.stmt] = {}
        for top in self.tree.body:
            for node in (n for n in ast.walk(top) if isinstance(n, ast.stmt)) if isinstance(top, ast.If | ast.Try | ast.With) else [top]:
                if isinstance(node, Function | ast.ClassDef): found.setdefault(node.name, node)
                if isinstance(node, ast.Assign | ast.AnnAssign):
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        for x in ast.walk(target):
                            if isinstance(x, ast.Name): found.setdefault(x.id, node)
        return found

    def cell(self, line: int) -> str:
        "The id of the cell that a line comes from"
        for text in reversed(self.lines[:line]):
            if m := MARK.match(text): return m[2]
        return ""


def modules() -> list[Module]: return [Module(p) for p in package()]


# Words on their way into Markdown

def safe(text: str) -> str:
    "A comment as Markdown: code in backticks stays, what else means something there does not"
    parts = re.split(r"(`[^`]+`|(?<![\w*])\*\w[^*`]*\w\*(?![\w*]))", " ".join(text.split()))
    said = "".join(p if p.startswith("*") and p.endswith("*") and len(p) > 3 else p if p.startswith("`") and p.endswith("`") and len(p) > 1 else re.sub(r"([\\<$\[\]{}|*_~`#])", r"\\\1", p) for p in parts)
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([:>+-])", r"\\\1", said))


def code(text: str) -> str:
    "Inline code, whatever is in it"
    text = " ".join(text.split())
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def prose(doc: str) -> str:
    "The words of a docstring before its sections"
    return re.split(r"^(?:Args|Returns):$", doc, maxsplit=1, flags=re.M)[0].strip()


def signature(f: Function, method: bool = False) -> str:
    "As it is called, types and defaults included"
    args = f.args
    if method and args.args and args.args[0].arg in ("self", "cls"):
        args = ast.arguments(**{k: getattr(args, k) for k in args._fields} | {"args": args.args[1:]})
    returns = f" -> {ast.unparse(f.returns)}" if f.returns else ""
    return " ".join(f"({ast.unparse(args)}){returns}".split())


# What a function raises

def message(node: ast.expr) -> str:
    "The words of an error, with {…} where values stand"
    match node:
        case ast.Constant(value=str(text)): return text
        case ast.JoinedStr(values=values): return "".join(v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in values if isinstance(v, ast.Constant | ast.FormattedValue))
        case ast.BinOp(left=left, op=ast.Add(), right=right): return message(left) + message(right)
    return ""


def raised(f: ast.AST) -> list[tuple[str, str]]:
    "Error and message of each `raise` in a function's own body"
    found = []
    for node in ast.walk(f):
        if not isinstance(node, ast.Raise) or node.exc is None: continue
        call = node.exc
        name = ast.unparse(call.func if isinstance(call, ast.Call) else call)
        if not re.fullmatch(r"(\w+\.)*[A-Z]\w*", name): continue   # raised again, or made by a function
        words = message(call.args[0]) if isinstance(call, ast.Call) and call.args else ""
        found.append((name, words))
    return list(dict.fromkeys(found))


def called(f: ast.AST) -> set[str]:
    "The functions that it calls by their bare names"
    return {n.func.id for n in ast.walk(f) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def through(m: Module, f: Function, own: set[str]) -> list[tuple[str, str]]:
    "Errors of the functions of the same module that it calls: error, and by which one"
    found: dict[str, str] = {}
    seen, queue = {f.name}, sorted(called(f))
    while queue:
        name = queue.pop(0)
        if name in seen or not isinstance(g := m.nodes.get(name), Function): continue
        seen.add(name)
        for error, _ in raised(g):
            if error not in own: found.setdefault(error, name)
        queue += sorted(called(g))
    return sorted(found.items())


# One entry

def indent(text: str, by: str = "   ") -> str: return "\n".join(by + line if line else "" for line in text.splitlines())


def ways(m: Module, line: int, depth: int = 0) -> str:
    "Back to the chapter, and to the line of the module"
    up = "../" * 2
    stem = m.chapter.removeprefix("nbs/").removesuffix(".ipynb")
    return (f'<p class="ways"><a href="{up}book/{stem}.html#cell-{m.cell(line)}">in its chapter</a> · '
            f'<a href="{up}{page_of(m.path)}.html#L-{line}">source</a></p>')


def arguments(m: Module, f: Function) -> list[str]:
    "The field list of a function"
    args, returned = told(f, m.lines, m.notes)
    rows = []
    for name, said in args.items():
        if "," in name or "→" in name: rows.append(f":returns: {safe(said)}" if "→" in name else f":param {name.split(',')[0]}: {safe(said)}")
        else: rows.append(f":param {name.lstrip('*')}: {safe(said)}")
    if returned: rows.append(f":returns: {safe(returned)}")
    own = raised(f)
    rows += [f":raises {error}: {code(words) if words else 'see the source'}" for error, words in own]
    rows += [f":raises {error}: by {code(by)}" for error, by in through(m, f, {e for e, _ in own})]
    return rows


def function(m: Module, f: Function, owner: str = "") -> str:
    "A function or a method"
    said = [ast.unparse(d) for d in f.decorator_list]
    kind = "function" if not owner else "property" if any(d.endswith("property") for d in said) else "method"
    flags = [f":{flag}:" for flag, mark in (("classmethod", "classmethod"), ("staticmethod", "staticmethod")) if mark in said]
    call = f.name if kind == "property" else f.name + signature(f, bool(owner) and "staticmethod" not in said)
    typed = [f":type: {' '.join(ast.unparse(f.returns).split())}"] if kind == "property" and f.returns else []
    doc = prose(ast.get_docstring(f) or "")
    rows = arguments(m, f)
    if doc and any(row.split(": ", 1)[-1] == safe(doc) for row in rows): doc = ""
    body = "\n\n".join(filter(None, [safe(doc), "\n".join(rows), "" if owner else ways(m, f.lineno)]))
    ticks = "`" * (4 if owner else 3)
    return f"{ticks}{{py:{kind}}} {call}\n" + "".join(f"{x}\n" for x in [*flags, *typed]) + f"\n{body}\n{ticks}"


def methods(m: Module, cls: ast.ClassDef) -> Iterator[str]:
    "Those that a reader may call"
    seen = set()
    for node in cls.body:
        if not isinstance(node, Function) or node.name in seen: continue
        if any("overload" in ast.unparse(d) or d_setter(d) for d in node.decorator_list): continue
        if node.name.startswith("_") and node.name != "__call__": continue
        seen.add(node.name)
        yield function(m, node, cls.name)


def d_setter(d: ast.expr) -> bool: return isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter")


def made_of_fields(m: Module, cls: ast.ClassDef) -> str:
    "How a dataclass or a NamedTuple is called, whose constructor nobody wrote"
    if not any("dataclass" in ast.unparse(d) for d in cls.decorator_list) and "NamedTuple" not in [ast.unparse(b) for b in cls.bases]: return ""
    rows = [n for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_") and "ClassVar" not in ast.unparse(n.annotation)]
    return " ".join(f"({', '.join(ast.unparse(n) for n in rows)})".split()) if rows else ""


def klass(m: Module, cls: ast.ClassDef) -> str:
    "A class, its fields and its methods"
    init = next((n for n in cls.body if isinstance(n, Function) and n.name == "__init__"), None)
    rows = [f":param {k}: {safe(v)}" for k, v in fields(cls, m.lines, m.notes).items() if k != "…"]
    more = fields(cls, m.lines, m.notes).get("…")
    call = signature(init, True) if init else made_of_fields(m, cls)
    call = re.sub(r" -> None$", "", call)
    bases = [ast.unparse(b) for b in cls.bases if ast.unparse(b) not in ("object",)]
    error = any(b.endswith(("Error", "Exception", "Warning")) or b in ("KeyError",) for b in bases)
    parts = [f"Bases: {', '.join(map(code, bases))}" if bases else "", safe(prose(ast.get_docstring(cls) or "")), safe(more) if more else "",
             "\n".join(rows + (arguments(m, init) if init else [])), ways(m, cls.lineno), *methods(m, cls)]
    return f"`````{{py:{'exception' if error else 'class'}}} {cls.name}{call}\n\n" + "\n\n".join(filter(None, parts)) + "\n`````"


def constant(m: Module, name: str, node: ast.stmt) -> str:
    "A value: what the comment beside it says, and how it is written"
    assert isinstance(node, ast.Assign | ast.AnnAssign)
    said = m.notes.get(node.end_lineno or 0, "") or m.notes.get(node.lineno, "")
    value, target = node.value, node.targets[0] if isinstance(node, ast.Assign) else node.target
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        value = value.elts[[ast.unparse(t) for t in target.elts].index(name)]
    text = " ".join(ast.unparse(value).split()) if value else ""
    shown = text if len(text) <= SHORT else text[:SHORT - 1] + "…"
    options = [f":type: {' '.join(ast.unparse(node.annotation).split())}"] if isinstance(node, ast.AnnAssign) else []
    parts = [safe(said), f"Value: {code(shown)}" if shown else "", ways(m, node.lineno)]
    return f"```{{py:data}} {name}\n" + "".join(f"{x}\n" for x in options) + "\n" + "\n\n".join(filter(None, parts)) + "\n```"


def entry(m: Module, name: str) -> str:
    "One public name"
    node = m.nodes[name]
    if name.endswith("_"): return f'<span id="{m.name}.{name}"></span>\n\n{written(m, name, node)}'   # Sphinx would cut the address
    return written(m, name, node)


def written(m: Module, name: str, node: ast.stmt) -> str:
    "By its kind"
    if isinstance(node, ast.ClassDef): return klass(m, node)
    if isinstance(node, Function): return function(m, node)
    return constant(m, name, node)


def page(m: Module) -> str:
    "The reference of one module"
    stem = m.chapter.removeprefix("nbs/").removesuffix(".ipynb")
    head = [f"# {m.short}", f"*{safe(m.doc.splitlines()[0])}*" if m.doc else "",
            f'<p class="chapter-links">Chapter <a href="../../book/{stem}.html">{stem}</a> · <a href="../../{page_of(m.path)}.html">the generated module</a></p>',
            f"```{{py:module}} {m.name}\n```"]
    return "\n\n".join([*filter(None, head), *(entry(m, n) for n in m.public)]) + "\n"


def promise(m: Module) -> str: return m.doc.splitlines()[0] if m.doc else ""
