"""The pages of `docs/pages`: what they tell a reader to type is typed, in order and in one workspace a page, and what they show is what comes out.

How a block is treated, by its language and by HTML comments in the lines before it, which no reader sees:

- `python` is executed; the value of its last line is printed, as in a notebook. `sh`: each line is a command. `yaml`, `ini`, `text`: see below.
- A block whose first line is a comment with a file's name, `# my_env.py` or `# pole.yaml`, is that file.
- `<!-- test: OLD => NEW -->` makes a budget tiny: OLD, which must be there, becomes NEW before the block is run.
- `<!-- tiny: 1_024 -->`: each training in the block has this many steps, and one episode of evaluation.
- `<!-- exit: 2 -->`: the command in the block ends with this code. `<!-- raises: ConfigError -->`: the Python does.
- `<!-- not run: REASON -->`: it is not; the reason is one of `REASONS`. A block of a peer (`peer`) is run by benchmarks/peers/pages.py, which stores what came of it;
  `elsewhere, test_file::test_name` names the tests that run it.
- A `text` block behind one that was run is what it says: each of its lines is in there, `…` stands for anything.
"""
import ast
import hashlib
import io
import json
import re
import shlex
import sys
import tomllib
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import typer
from support import ROOT, run

import rlstudio.core.registry as registry
from rlstudio.core.options import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, NetConfig, TrainConfig
from rlstudio.evidence.table import RUN_FILES
from rlstudio.runs.config import Settings
from rlstudio.studio.cli import app

PAGES = ROOT / "docs" / "pages"
FOLDERS = ("howto", "coming-from", "help", "project")
REASONS = {"peer": "code of another library", "cluster": "needs a cluster or an account", "install": "installs packages", "elsewhere": "the tests of other files that are named run it"}
LANGUAGES = {"python", "sh", "yaml", "ini", "text"}
FENCE = re.compile(r"(?P<notes>(?:<!--[^\n]*-->\n)*)```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
TINY = "train.total_steps={} eval.episodes=1 eval.every=0 checkpoint.best=false"
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|ini))$")


@dataclass(frozen=True)
class Block:
    "One fence of a page, and what its comments say"
    line: int
    language: str
    code: str
    notes: list[tuple[str, str]] = field(default_factory=list)

    def said(self, kind: str) -> list[str]: return [text for k, text in self.notes if k == kind]

    @property
    def file(self) -> str:
        found = FILE.match(self.code.partition("\n")[0])
        return found[1] if found else ""

    def ready(self) -> str:
        "Its code with tiny budgets"
        code = self.code.replace("\\\n", " ") if self.language == "sh" else self.code
        for change in self.said("test"):
            old, _, new = change.partition(" => ")
            assert old in code, f"line {self.line}: {old!r} is not in the block"
            code = code.replace(old, new)
        for steps in self.said("tiny"): code = re.sub(r"^(rlstudio (?:run|study) [^#\n]*)", rf"\1 {TINY.format(steps)} ", code, flags=re.M)
        return code


def blocks(text: str) -> list[Block]:
    "The fences of a page, in order"
    found = []
    for m in FENCE.finditer(text):
        notes = [(k, v.strip()) for k, v in re.findall(r"<!-- ([a-z ]+): (.*?) -->", m["notes"])]
        found.append(Block(text.count("\n", 0, m.start("language")) + 1, m["language"].strip(), m["code"], notes))
    return found


def pages(*folders: str) -> list[Path]:
    "The pages, but the plugins' own, whose package has tests of its own"
    return sorted(p for f in folders or FOLDERS for p in (PAGES / f).rglob("*.md"))


def names(paths: list[Path]) -> list[str]: return [p.relative_to(PAGES).with_suffix("").as_posix() for p in paths]


class Heard(io.StringIO):
    "What was printed, by a program that believes in a terminal which knows every letter"
    encoding = "utf-8"


# A workspace: typed commands and typed Python, in this process wherever that is the same

def typed(command: str, folder: Path) -> tuple[int, str]:
    "Exit code and words of one line of a shell"
    words = shlex.split(command, comments=True)
    if words[0] != "rlstudio" or set(words) & {"|", ">", "&&", "<"}:
        done = run("bash", "-c", command, cwd=folder, coverage=False, timeout=120)
        return done.returncode, done.stdout + done.stderr
    heard, code = Heard(), 0
    with redirect_stdout(heard), redirect_stderr(heard):
        try: app(words[1:], prog_name="rlstudio")
        except SystemExit as e: code = e.code if isinstance(e.code, int) else int(e.code is not None)
    return code, heard.getvalue()


def typed_python(code: str, scope: dict[str, Any], file: str) -> str:
    "What a cell with this code prints; the value of its last line too"
    tree, heard, last = ast.parse(code), Heard(), None
    if isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"): last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    with redirect_stdout(heard), redirect_stderr(heard):
        exec(compile(tree, file, "exec"), scope)
        value = eval(compile(last, file, "eval"), scope) if last else None
        if value is not None: print(repr(value))
    return heard.getvalue()


def squeezed(text: str) -> str: return " ".join(re.sub(r"[│╭╮╰╯─]+", " ", text).split())


def missing(shown: str, printed: str) -> list[str]:
    "Lines of a text block that were not printed"
    heard = squeezed(printed)
    as_pattern = [".*?".join(map(re.escape, re.split(" ?… ?", squeezed(line)))) for line in shown.splitlines() if line.strip()]
    return [p for p in as_pattern if not re.search(p, heard)]


def play(path: Path, folder: Path) -> list[str]:
    "Type a page into a workspace; what went wrong, with its line"
    wrong, printed, scope = list[str](), "", dict[str, Any](__name__="__main__")
    for b in blocks(path.read_text()):
        if b.said("not run"): continue
        code, where = b.ready(), f"{path.relative_to(ROOT)}:{b.line}"
        if b.file:
            (folder / b.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / b.file).write_text(code)
        elif b.language == "sh":
            printed, ends = "", int((b.said("exit") or ["0"])[0])
            for line in code.splitlines():
                if not line.strip() or line.startswith("#"): continue
                got, words = typed(line, folder)
                printed += words
                if got != ends: wrong.append(f"{where}: {line}\nexit code {got}, expected {ends}\n{words[-2000:]}")
        elif b.language == "python":
            expected = (b.said("raises") or [""])[0]
            try:
                printed = typed_python(code, scope, where)
                if expected: wrong.append(f"{where}: expected {expected}")
            except Exception as e:
                printed = str(e)
                if type(e).__name__ != expected: wrong.append(f"{where}: {''.join(traceback.format_exception(e)[-3:])}")
        elif b.language == "text" and (gone := missing(code, printed)): wrong.append(f"{where}: not printed: {gone}\nbut\n{printed[-3000:]}")
    return wrong


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "An empty folder to work in; whatever a page registers or imports is forgotten afterwards"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("MPLBACKEND", "agg")
    kinds = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
    held, ids, modules, imports, path = [dict(r._here) for r in kinds], dict(gymnasium.registry), set(sys.modules), [*registry._imported], [*sys.path]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield tmp_path
    for r, here in zip(kinds, held, strict=True):
        r._here.clear()
        r._here.update(here)
    for name in set(gymnasium.registry) - set(ids):
        if not isinstance(gymnasium.registry[name].entry_point, str): del gymnasium.registry[name]    # a class of the page; packages register texts, once a process
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)): del sys.modules[name]
    registry._imported[:], sys.path[:] = imports, path


ALL = pages()


@pytest.mark.parametrize("page", ALL, ids=names(ALL))
def test_what_a_page_says_is_so(page: Path, workspace: Path) -> None:
    wrong = play(page, workspace)
    assert not wrong, "\n\n".join(wrong)


def untested(b: Block) -> list[str]:
    "What the tests that a block names do not have: themselves, and the block's commands"
    if not any(why.startswith("elsewhere") for why in b.said("not run")): return []
    told = re.findall(r"(test_\w+)::(test_\w+)", " ".join(b.said("not run")))
    texts = {file: (ROOT / "tests" / f"{file}.py").read_text() for file, _ in told if (ROOT / "tests" / f"{file}.py").exists()}
    lost = [f"{file}::{test}" for file, test in told if f"def {test}(" not in texts.get(file, "")] + ["no test is named"] * (not told)
    typed_ = re.findall(r"^(?:rlstudio|python) (\S+)", b.code, re.M) if b.language == "sh" else []
    return lost + [word for word in typed_ if not any(Path(word).stem in text for text in texts.values())]


@pytest.mark.parametrize("page", ALL, ids=names(ALL))
def test_a_page_is_well_made(page: Path) -> None:
    text = page.read_text()
    prose = FENCE.sub("", text)
    assert len(re.findall(r"^# ", prose, re.M)) == 1 and prose.startswith("# "), "one H1, on the first line"
    assert "```" not in prose, "a fence that is not closed"
    for b in blocks(text):
        assert b.language in LANGUAGES, f"line {b.line}: a fence of {b.language!r}"
        assert {why.partition(",")[0] for why in b.said("not run")} <= set(REASONS), f"line {b.line}: {b.said('not run')}"
        assert not (lost := untested(b)), f"line {b.line}: {lost}"
        wide = [line for line in b.code.splitlines() if len(line) > 105 and b.language != "text"]
        assert not wide, f"line {b.line}: too wide for a page: {wide}"
        if b.language in ("yaml", "ini"): assert b.file or b.said("not run"), f"line {b.line}: without a name in its first line"
    links = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in t]
    lost = [t for t in links if t and not (page.parent / t).exists()]
    assert not lost, f"links to nowhere: {lost}"
    if page.parent.name == "howto": assert len(text.splitlines()) <= 110, "more than a screen or two: shorten it"


# What the text names is there: keys, options, commands, metrics, settings, files

CODE = re.compile(r"`([^`\n]+)`")
SECTIONS = {"env": EnvConfig, "net": NetConfig, "train": TrainConfig, "eval": EvalConfig, "checkpoint": CheckpointConfig, "log": LogConfig}


def known_keys() -> set[str]:
    "'section.key' of every section and every algorithm of ours"
    ours = [registry.algos.get(n).Config for n in ("ppo", "a2c", "dqn", "sac", "td3")]
    return {f"{name}.{f.name}" for name, cls in SECTIONS.items() for f in fields(cls)} | {f"algo.{f.name}" for cls in ours for f in fields(cls)}


def known_commands() -> dict[str, set[str]]:
    "Command → its options"
    group, found = typer.main.get_command(app), dict[str, set[str]]()
    at = typer.Context(group)
    for name in group.list_commands(at):  # type: ignore[attr-defined]
        command = group.get_command(at, name)  # type: ignore[attr-defined]
        command = command.real() if hasattr(command, "real") else command    # of an entry point: imported when it is used
        options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
        for below in getattr(command, "commands", {}).values(): options |= {o for p in below.params for o in [*p.opts, *p.secondary_opts]}
        found[name] = options | {"--help"}
    return found


def our_words(page: Path) -> Iterator[str]:
    "Code in the text and lines of shells that are ours, one by one"
    text = page.read_text()
    for b in blocks(text):
        if b.language == "sh" and "peer" not in b.said("not run") and "2" not in b.said("exit"): yield from b.code.replace("\\\n", " ").splitlines()
    prose = FENCE.sub("", text)
    for line in prose.splitlines():
        cells = line.split(" | ")
        if page.parent.name == "coming-from" and len(cells) > 1: line = cells[-1]      # the column on the left is theirs
        yield from CODE.findall(line)


def not_there(page: Path) -> list[str]:
    "What a page names and the code does not have"
    keys, commands, wrong = known_keys(), known_commands(), list[str]()
    everything = set().union(*commands.values())
    for word in our_words(page):
        found = re.findall(rf"\b((?:{'|'.join([*SECTIONS, 'algo'])})\.[a-z_0-9]+)\b(?!\()", word)
        wrong += [key for key in found if key not in keys and not (ROOT / "rlstudio" / f"{key.replace('.', '/')}.py").is_file()]
        options = re.findall(r"(?<!\S)--[a-z-]+", word.partition(" #")[0])
        if m := re.match(r"rlstudio ([a-z][a-z-]*)", word):
            if m[1] not in commands: wrong.append(word)
            wrong += [f"{m[1]} {o}" for o in options if o not in commands.get(m[1], options)]
        elif not re.match("rlstudio|python|pip", word) and page.parent.name != "coming-from": wrong += [o for o in options if o not in everything]
        wrong += [name for name in re.findall(r"\b(?:policy|value|loss|grad|episode|eval|speed|schedule)/[a-z_]+\b", word) if f"'{name}'" not in METRICS]
    return wrong


@pytest.mark.parametrize("page", ALL, ids=names(ALL))
def test_what_a_page_names_is_there(page: Path) -> None: assert not not_there(page)


def test_names_that_are_not_there_are_found(tmp_path: Path) -> None:
    (page := tmp_path / "howto" / "x.md").parent.mkdir()
    page.write_text("# X\n\n`algo.gama`, `eval.every`, `policy/kl`, `--sead`, `rlstudio train x`\n\n```sh\nrlstudio run x --episodes 3   # --none\n```\n")
    assert sorted(not_there(page)) == ["--sead", "algo.gama", "policy/kl", "rlstudio train x", "run --episodes"]


METRICS = "".join(p.read_text() for folder in ("train", "algos") for p in (ROOT / "rlstudio" / folder).glob("*.py")) + "'episode/longest'"     # the page's own


def test_the_page_of_files_has_them_all() -> None:
    text = (PAGES / "help" / "files.md").read_text()
    shown = dict(re.findall(r"^(\w+) =(?: (.*))?$", text, re.M))
    assert shown == {f.name: " ".join(f.default) if isinstance(f.default, tuple) else str(f.default) for f in fields(Settings)}
    assert not [name for name in shown if f"| `{name}` |" not in text]
    assert not [name for name in RUN_FILES if name not in text]


def test_the_page_of_installing_has_every_extra() -> None:
    told = re.findall(r"^\| (`.*?) \|", (PAGES / "help" / "install.md").read_text(), re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not set(extras) - {x for cell in told for x in CODE.findall(cell)}


def test_the_messages_of_the_table_are_those_of_the_code() -> None:
    code = "".join(p.read_text() for p in (ROOT / "rlstudio").rglob("*.py"))
    told = [m for row in re.findall(r"^\| (`.*?) \|", (PAGES / "help" / "first-errors.md").read_text(), re.M) for m in CODE.findall(row)]
    assert len(told) >= 5
    assert not [m for m in told for part in m.split("…") if part.strip() and part not in code and part.strip(" '[`") not in code]


def test_what_is_said_of_a_healthy_range_is_so() -> None:
    "The tree of decisions repeats two bounds of the glossary"
    text, ranges = (PAGES / "howto" / "debug.md").read_text(), {name: healthy for name, _, _, healthy in registry.algos.get("ppo").metrics}
    for name in ("policy/approx_kl", "policy/clip_fraction"): assert f"`{name}` > {ranges[name][1]:g}" in text


# The harness itself notices what is wrong

@pytest.mark.parametrize(("page", "says"), [
    ("```python\n1 / 0\n```", "ZeroDivisionError"), ("```python\n1 + 1\n```\n\n```text\n3\n```", "not printed"), ("```sh\nrlstudio list algo\n```", "exit code 2"),
    ("<!-- exit: 2 -->\n```sh\nrlstudio list configs\n```", "exit code 0, expected 2"), ("<!-- raises: KeyError -->\n```python\nx = 1\n```", "expected KeyError")])
def test_a_wrong_page_is_found(page: str, says: str, workspace: Path) -> None:
    file = PAGES / "howto" / "none.md"
    assert says in "\n".join(play_text(page, file, workspace))


def play_text(text: str, path: Path, folder: Path) -> list[str]:
    "`play` for a text"
    class Told(type(path)):  # type: ignore[misc]
        def read_text(self, *args: Any, **kw: Any) -> str: return f"# T\n\n{text}\n"
    return play(Told(path), folder)


def test_a_block_that_no_test_runs_is_found() -> None:
    assert untested(blocks("<!-- not run: elsewhere, test_gate::test_the_quick_gate -->\n```sh\nrlstudio gate quick\n```\n")[0]) == []
    assert untested(blocks("<!-- not run: elsewhere, test_gate::test_none -->\n```sh\nrlstudio variance\n```\n")[0]) == ["test_gate::test_none", "variance"]
    assert untested(blocks("<!-- not run: elsewhere -->\n```sh\nls\n```\n")[0]) == ["no test is named"]


def test_what_is_shown_of_a_peer_has_been_run() -> None:
    "Each block of another library has a row that says so; after a change of a page: python benchmarks/peers/pages.py --only PAGE"
    rows = {(r["page"], r["block"]): r for r in map(json.loads, (ROOT / "benchmarks/results/peer_pages.jsonl").read_text().splitlines())}
    shown = {(p.stem, hashlib.sha256(b.ready().encode()).hexdigest()[:16]): f"{p.name}:{b.line}" for p in pages("coming-from") for b in blocks(p.read_text()) if "peer" in b.said("not run")}
    assert len(shown) > 4 and not [where for key, where in shown.items() if key not in rows or not rows[key]["ok"]]


def test_a_budget_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="not in the block"): blocks("<!-- test: 1_000 => 1 -->\n```python\nx = 2\n```\n")[0].ready()


def test_comments_are_read() -> None:
    b, = blocks("<!-- test: a => b -->\n<!-- exit: 3 -->\n```sh\nrlstudio a\n```\n")
    assert b.ready() == "rlstudio b\n" and b.said("exit") == ["3"] and b.language == "sh"
    assert missing("a … c\nsecond", "a b  c\n and second") == [] and missing("third", "a b c") == ["third"]
