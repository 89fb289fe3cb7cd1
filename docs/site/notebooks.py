"A notebook of the book as a page: directives out, imports and answers folded, definitions with their address; its outputs are those that it has stored."
import ast
import copy
import html
import re
from typing import Any

from links import Site, one_line

Cell = dict[str, Any]
EXPORTS = {"export", "exports", "exporti"}


def text_of(cell: Cell) -> str: return "".join(cell["source"])


def markdown(text: str) -> Cell: return {"cell_type": "markdown", "metadata": {}, "source": text}


def directives(cell: Cell) -> dict[str, str]:
    "What nbdev is told, in lines or in the metadata"
    told = dict(cell.get("metadata", {}).get("nbdev", {}))
    return told | {k: v.strip() for k, v in re.findall(r"^#\|\s*([\w]+):?(.*)$", text_of(cell), re.M)}


def only_imports(code: str) -> bool:
    "Nothing but imports and settings of pictures?"
    try: body = ast.parse(code).body
    except SyntaxError: return False
    quiet = re.compile(r"(set_matplotlib_formats|plt\.rcParams|warnings\.|torch\.set_num_threads|runs = Path\(tempfile|here = Path)")
    return bool(body) and any(isinstance(n, ast.Import | ast.ImportFrom) for n in body) and all(
        isinstance(n, ast.Import | ast.ImportFrom) or quiet.match(ast.unparse(n)) or (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING") for n in body)


def alt(code: str, before: str) -> str:
    "Words for a picture: its titles and axes, else the last sentence before it"
    titles = [m[1] for m in re.finditer(r"""(?:title|set_title|suptitle)\(?=?\s*f?['"]([^'"{}]+)['"]""", code)]
    axes = [m[1] for m in re.finditer(r"""(?:xlabel|ylabel|set_xlabel|set_ylabel)\(?=?\s*f?['"]([^'"{}]+)['"]""", code)]
    said = re.sub(r"[$`*\[\]<>\\]", "", one_line(before)).rstrip(":")
    last = re.split(r"(?<=[.!?])\s", said)[-1][:160]
    return "; ".join(filter(None, ["Plot", ", ".join(dict.fromkeys(titles)), ("axes: " + ", ".join(dict.fromkeys(axes))) if axes else "", last]))


def code_cell(cell: Cell, before: str) -> Cell | None:
    "A code cell as the reader sees it; None: not at all"
    told = directives(cell)
    if "hide" in told or ("default_exp" in told and not EXPORTS & told.keys()): return None
    code = re.sub(r"^#\|.*\n?", "", text_of(cell), flags=re.M).strip("\n")
    if not code and not cell["outputs"]: return None
    tags = []
    if told.get("echo") == "false" or not code: tags.append("remove-input")
    elif only_imports(code) or re.match(r"# (Exercise|Check)\b", code): tags.append("hide-input")
    new = {"cell_type": "code", "execution_count": None, "metadata": {"tags": tags}, "outputs": copy.deepcopy(cell["outputs"]), "source": code}
    if re.match(r"# (Exercise|Check)\b", code): new["metadata"]["mystnb"] = {"code_prompt_show": f"{code.splitlines()[0].lstrip('# ')}: show", "code_prompt_hide": "Hide"}
    elif "hide-input" in tags: new["metadata"]["mystnb"] = {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}
    if any(k.startswith("image/") for o in new["outputs"] for k in o.get("data", {})):
        new["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt(code, before)}
    for o in new["outputs"]:
        if "metadata" in o: o["metadata"] = {}
        if "data" in o: o["data"].pop("application/vnd.jupyter.widget-view+json", None)
    return new


def exported(cell: Cell, module: str, public: set[str]) -> Cell | None:
    "The address of a definition: `#cell-…`, and its names in the reference"
    if not EXPORTS & directives(cell).keys() or cell["cell_type"] != "code": return None
    try: body = ast.parse(re.sub(r"^#\|.*\n?", "", text_of(cell), flags=re.M)).body
    except SyntaxError: body = []
    names = [n for node in body for n in ([node.name] if hasattr(node, "name") else
             [t.id for target in getattr(node, "targets", [getattr(node, "target", None)]) for t in ast.walk(target or ast.Pass()) if isinstance(t, ast.Name)]
             if isinstance(node, ast.Assign | ast.AnnAssign) else [])]
    links = [f'<a href="../reference/api/{module}.html#rlstudio.{module}.{n}">{html.escape(n)}</a>' for n in dict.fromkeys(names) if n in public]
    return markdown(f'<p class="exported" id="cell-{cell["id"]}">{" · ".join(links)}</p>')


def page(nb: dict[str, Any], source: str, target: str, site: Site, module: str = "", public: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    "The notebook that MyST-NB renders"
    cells: list[Cell] = []
    before = ""
    for cell in nb["cells"]:
        if cell["cell_type"] == "raw": continue
        if cell["cell_type"] == "markdown":
            if "hide" in cell.get("metadata", {}).get("nbdev", {}): continue
            before = text_of(cell)
            cells.append(markdown(site.relink(before, source, target)))
            continue
        shown = code_cell(cell, before)
        if shown is None: continue
        if module and (where := exported(cell, module, public)): cells.append(where)
        cells.append(shown)
    links = [f'<a href="../files/{source}" download>open this {"chapter" if module else "notebook"}</a>{" (a notebook)" if module else ""}']
    site.copies.add(source)
    if module: links += [f'<a href="../modules/{module}.html">the generated module</a>', f'<a href="../reference/api/{module}.html">its reference</a>']
    cells.insert(1, markdown(f'<p class="chapter-links">{" · ".join(links)}</p>'))
    meta = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 4}
