"""What stands beside an argument in a notebook becomes a part of its docstring in the package, so that `help`, `?` and editors show it.

`nbdev-export` calls `sections` for each exported cell (`export_procs` in pyproject.toml). The comments stay where they are.
"""
import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
Edit = tuple[int, int, str]  # lines from … to (exclusive), and what comes there


def comments(source: str) -> dict[int, str]:
    "Line → the comment on it, without what is for a tool"
    found = {t.start[0]: t.string[1:].strip() for t in tokenize.generate_tokens(StringIO(source).readline) if t.type == tokenize.COMMENT}
    return {line: said for line, text in found.items() if (said := re.sub(r"^(noqa|type: ignore)\S*( [A-Z]+\d+\b)?( \([^)]*\))?,? *", "", text))}


def parameters(f: Function) -> list[tuple[str, ast.expr | None, ast.arg]]:
    "Each parameter as it is written in a call, with its default"
    a, plain = f.args, [*f.args.posonlyargs, *f.args.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = [(p.arg, d, p) for p, d in zip(plain, defaults)] + ([(f"*{a.vararg.arg}", None, a.vararg)] if a.vararg else [])
    rows += [(p.arg, d, p) for p, d in zip(a.kwonlyargs, a.kw_defaults)] + ([(f"**{a.kwarg.arg}", None, a.kwarg)] if a.kwarg else [])
    return [row for row in rows if row[0] not in ("self", "cls") and not row[0].startswith("_")]


def after(line: int, lines: list[str], notes: dict[int, str]) -> str:
    "The comment at the end of a line, and those that go on below it on lines of their own"
    said = [notes.get(line, "")]
    while said[0] and line < len(lines) and lines[line].lstrip().startswith("#"): line += 1; said.append(notes.get(line, ""))
    return " ".join(filter(None, said))


def told(f: Function, lines: list[str], notes: dict[int, str]) -> tuple[dict[str, str], str]:
    "What is said about each parameter, and about the return"
    rows = {name: after((default or p).end_lineno or 0, lines, notes) for name, default, p in parameters(f)}
    end = f.returns.end_lineno if f.returns else None
    returned = notes.get(end, "") if end else ""
    if not rows or end != f.lineno: return {k: v for k, v in rows.items() if v}, returned
    one_comment = f"{', '.join(rows)}" if ast.unparse(f.returns or f) == "None" else f"{', '.join(rows)} → {ast.unparse(f.returns or f)}"
    return ({one_comment: returned} if returned else {}), ""  # all in one line: one comment, about all of it


def fields(cls: ast.ClassDef, lines: list[str], notes: dict[int, str]) -> dict[str, str]:
    "What is said about each field of a dataclass or a NamedTuple, whose constructor nobody wrote"
    bases = [ast.unparse(b) for b in cls.bases]
    data = any("dataclass" in ast.unparse(d) for d in cls.decorator_list)
    if not data and "NamedTuple" not in bases: return {}
    rows = {}
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id.startswith("_") or "ClassVar" in ast.unparse(node.annotation): continue
        above = notes.get(node.lineno - 1, "") if lines[node.lineno - 2].lstrip().startswith("#") else ""
        if text := notes.get(node.end_lineno or 0, "") or above: rows[node.target.id] = text
    more = [b for b in bases if b.endswith("Config")]
    return rows | ({"…": f"and those of {', '.join(more)}"} if rows and more else {})


def one_line(text: str) -> str:
    "A docstring in one line"
    for char, spelled in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")): text = text.replace(char, spelled)
    return f'"{text}"'


def literal(text: str, indent: str) -> str:
    "A docstring: in one line if it is one, else with its end on a line of its own"
    if "\n" not in text: return one_line(text)
    body = "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines()).lstrip(" ")
    return ("r" if "\\" in text else "") + f'"""{body}\n{indent}"""'


def docstring(summary: str, args: dict[str, str], returns: str = "") -> str:
    "The summary, and sections in Google's form"
    parts = [summary]  # '' makes a first line without text, so that what follows keeps its indent
    if args: parts.append("\n".join(["Args:", *(f"    {name}: {text}" for name, text in args.items())]))
    if returns: parts.append(f"Returns:\n    {returns}")
    return "\n\n".join(parts) if summary else "\n".join(parts)


def edit(node: Function | ast.ClassDef, text: str, lines: list[str]) -> Edit:
    "Put a docstring into a function or a class, instead of the one that is there"
    first = node.body[0]
    line, last = lines[first.lineno - 1].encode(), (first.end_lineno or 0)
    before, behind = line[:first.col_offset].decode(), lines[last - 1].encode()[first.end_col_offset:].decode()
    old = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    if before.strip(): return first.lineno, first.lineno + 1, before + one_line(text) + (behind if old else f"; {line[first.col_offset:].decode()}")
    return (first.lineno, last + 1, before + literal(text, before) + behind) if old else (first.lineno, first.lineno, before + literal(text, before))


def edits(body: list[ast.stmt], lines: list[str], notes: dict[int, str]) -> Iterator[Edit]:
    "What changes in the public definitions of a module or a class"
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if rows := fields(node, lines, notes): yield edit(node, docstring(ast.get_docstring(node) or "", rows), lines)
            yield from edits(node.body, lines, notes)
        if not isinstance(node, Function) or (node.name.startswith("_") and node.name not in ("__init__", "__call__")): continue
        if any(ast.unparse(d).startswith("app.") for d in node.decorator_list): continue  # a command: what it says is its help
        summary, (args, returns) = ast.get_docstring(node) or "", told(node, lines, notes)
        if not summary and node.name != "__init__" and not (len(args) > 1 or (args and returns)):  # one comment is all that there is: it is the docstring
            summary, args, returns = returns or " ".join(args.values()), {}, ""
        if args or returns or summary != (ast.get_docstring(node) or ""): yield edit(node, docstring(summary, args, returns), lines)


def with_sections(source: str) -> str:
    "The source of a cell, its docstrings with a section for arguments and one for what comes back"
    try: tree, notes = ast.parse(source), comments(source)
    except (SyntaxError, tokenize.TokenError): return source  # a magic
    lines = source.splitlines()
    for start, stop, text in sorted(edits(tree.body, lines, notes), reverse=True): lines[start - 1:stop - 1] = text.split("\n")
    return "\n".join(lines)


def sections(cell: Any) -> None:
    "A processor of nbdev: rewrites a cell on its way into the package"
    if cell.cell_type == "code" and {"export", "exports", "exporti"} & cell.directives_.keys(): cell.set_source(with_sections(cell.source))
