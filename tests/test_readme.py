"The script that turns the index notebook into the README, on notebooks of a few cells."
import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from support import ROOT


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "docs" / "make_readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_readme = load()


def render(root: Path, *cells: dict) -> str:
    return make_readme.render(new_notebook(cells=list(cells)), root).removeprefix(make_readme.HEADER + "\n")


def test_prose_and_code_with_their_outputs(tmp_path: Path) -> None:
    value = new_output("execute_result", {"text/plain": "4"}, execution_count=1)
    stream = new_output("stream", name="stdout", text="hello\n")
    got = render(tmp_path, new_markdown_cell("# Title"), new_code_cell("#| eval: false\n2 + 2", outputs=[stream, value]))
    assert got == "# Title\n\n```python\n2 + 2\n```\n\n```text\nhello\n```\n\n```text\n4\n```\n"


def test_hidden_cells_and_pictures_are_left_out(tmp_path: Path) -> None:
    picture = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})
    hidden = new_code_cell("#| hide\nsecret = 1")
    meta = new_markdown_cell("unseen", metadata={"nbdev": {"hide": ""}})
    assert render(tmp_path, hidden, meta, new_code_cell("plot()", outputs=[picture])) == "```python\nplot()\n```\n"


def test_shell_cells(tmp_path: Path) -> None:
    assert render(tmp_path, new_code_cell("!rlstudio list algos")) == "```sh\nrlstudio list algos\n```\n"


def test_links_start_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "nbs").mkdir()
    for f in ("nbs/a.ipynb", "curve.png"): (tmp_path / f).touch()
    text = '[a](a.ipynb) ![c](../curve.png) <img src="../curve.png"> [w](https://example.org/x) [h](#here)\n\n```sh\n[x](none)\n```'
    assert render(tmp_path, new_markdown_cell(text)) == text.replace("(a.i", "(nbs/a.i").replace("../", "") + "\n"


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(make_readme.ReadmeError, match="'gone.png' leads to nbs/gone.png"):
        render(tmp_path, new_markdown_cell("![x](gone.png)"))


def test_a_stale_readme_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbformat import write
    write(new_notebook(cells=[new_markdown_cell("# One")]), tmp_path / "index.ipynb")
    monkeypatch.setattr(make_readme, "INDEX", tmp_path / "index.ipynb")
    monkeypatch.setattr(make_readme, "README", tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["make_readme.py"])
    assert make_readme.main() == 0
    monkeypatch.setattr("sys.argv", ["make_readme.py", "--check"])
    assert make_readme.main() == 0
    (tmp_path / "README.md").write_text("# Two\n")
    assert make_readme.main() == 1


def test_what_the_readme_imports_and_types_exists() -> None:
    "Every name that it imports, and every command of its shell blocks"
    import click
    from typer.main import get_command

    from rlstudio.studio.cli import app
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    found = [(node.module, a.name) for kind, text in blocks if kind == "python" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) for a in node.names]
    assert len(found) > 4 and not [f"{module}.{name}" for module, name in found if not hasattr(importlib.import_module(str(module)), name)]
    typed = {word for kind, text in blocks if kind == "sh" for word in re.findall(r"\brlstudio ([a-z-]+)", text)}
    assert len(typed) > 15 and not typed - {*(group := get_command(app)).list_commands(click.Context(group))}   # type: ignore[attr-defined]
