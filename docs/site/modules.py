"The generated package as pages with numbered lines, and a sidebar that opens only the present branch."
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

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
        context["toctree"] = lambda **options: whole(**options | {"collapse": True})


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-collect-pages", pages)
    app.connect("html-page-context", present_branch, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
