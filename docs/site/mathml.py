"Mathematics as MathML, which every browser draws by itself: no script, no font, no request."
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


class MathError(ValueError):
    "LaTeX that does not become MathML"


def mathml(latex: str, display: str) -> str:
    "One formula; what is not understood stops the build"
    found = convert(latex.strip(), display=display)
    if "\\" in found: raise MathError(f"this formula would be printed with its backslashes: {latex!r}")
    return found.replace("<math ", f'<math aria-label="{escape(" ".join(latex.split()), quote=True)}" ', 1)


def inline(self: Any, node: nodes.Node) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.Node) -> None:
    self.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
