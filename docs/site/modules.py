"The generated package as pages with numbered lines, and a sidebar that opens only the present branch."
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.addnodes import pending_xref

SIGNATURE = re.compile(r"<dl>\s*((?:<dd><em class=\"sig-param.*?</dd>\s*)+)</dl>", re.S)
ROOT = Path(__file__).resolve().parents[2]


def package() -> list[Path]:
    "Every module that a chapter has written"
    return [p for p in sorted((ROOT / "rlstudio").glob("*/*.py")) if p.name != "__init__.py"]


def page_of(module: Path) -> str:
    "rlstudio/data/returns.py → modules/data.returns"
    return f"modules/{module.parent.name}.{module.stem}"


def pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    "One page a module: how Sphinx asks for it"
    lines = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="highlight")
    for module in package():
        name, text = f"rlstudio.{module.parent.name}.{module.stem}", module.read_text()
        promise = (ast.get_docstring(ast.parse(text)) or "").splitlines()[:1]
        back = f'<a href="../reference/api/{module.parent.name}.{module.stem}.html">Reference of <code>{name}</code></a>'
        body = f"<h1>The module <code>{name}</code></h1>\n<p>Written by its chapter; the chapter is the source. {back}.</p>\n{highlight(text, PythonLexer(), lines)}"
        yield page_of(module), {"title": f"{name} (module)", "body": body, "meta": {"description": "".join(promise)}, "parents": [], "display_toc": False}, "page.html"


def present_branch(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    "Three hundred pages in the sidebar of three hundred pages would be most of the site"
    if whole := context.get("toctree"):
        context["toctree"] = lambda **options: whole(**options | {"collapse": True}).replace('role="heading"', 'role="heading" aria-level="2"')
    if "sig-param" in context.get("body", ""):   # a list without terms inside a term: screen readers stumble over it
        context["body"] = SIGNATURE.sub(lambda m: m[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>"), context["body"])


def known_names() -> dict[str, str]:
    "Class → its full name, of the public ones; two of one name are none"
    found: dict[str, list[str]] = {}
    for module in package():
        tree = ast.parse(module.read_text())
        public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])
        for n in tree.body:
            if isinstance(n, ast.ClassDef) and n.name in public: found.setdefault(n.name, []).append(f"rlstudio.{module.parent.name}.{module.stem}.{n.name}")
    return {name: full[0] for name, full in found.items() if len(full) == 1}


def types_that_are_ours(app: Any, doctree: Any) -> None:
    "In signatures our own types lead to their entries; the others are words (Sphinx would look for each of them among all names)"
    for text in [t for t in doctree.findall(nodes.Text) if t == " -- "]: text.parent.replace(text, nodes.Text(" – "))   # between an argument and its words
    for node in list(doctree.findall(pending_xref)):
        if node.get("refdomain") != "py": continue
        full = app.env.rlstudio_names.get(node["reftarget"].rsplit(".", 1)[-1])
        if full is None: node.replace_self(node.children)
        else: node.attributes.pop("refspecific", None); node.attributes.update({"reftarget": full, "reftype": "class"})


def beside_the_sources(app: Any) -> None:
    "MyST-NB would put the pictures of outputs beside the folder of the site"
    app.env.rlstudio_names = known_names()
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(Path(app.srcdir).parent / "pictures"))


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", beside_the_sources, priority=900)
    app.connect("doctree-read", types_that_are_ours)
    app.connect("html-collect-pages", pages)
    app.connect("html-page-context", present_branch, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
