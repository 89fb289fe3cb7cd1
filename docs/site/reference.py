"Pages that are computed from the code: config, command line, metrics, events, errors, file formats."
import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from api import Module, code, modules, safe
from docstrings import comments, fields

HERE = Path(__file__).parent


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    "A Markdown table"
    def line(cells: tuple[str, ...]) -> str: return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", c) for c in cells) + " |"
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


# Config

def said_of(cls: type) -> dict[str, str]:
    "Field → the comment beside it, those of base classes too"
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("rlstudio."): continue
        source = inspect.getsource(base)
        tree = ast.parse(source)
        node = tree.body[0]
        assert isinstance(node, ast.ClassDef)
        found |= fields(node, source.splitlines(), comments(source))
    return found


def default_of(f: Any) -> str:
    "As one would write it in YAML"
    from rlstudio.core.options import as_text
    if f.default is not MISSING: return code(as_text(f.default))
    if f.default_factory is not MISSING: return code(as_text(f.default_factory()))
    return "required"


def section(cls: type, prefix: str, skip: set[str] = set()) -> str:  # noqa: B006
    "The keys of one section"
    from rlstudio.core.options import expected, field_specs
    words, specs = said_of(cls), field_specs(cls)
    rows = []
    for f in fields_of(cls):  # type: ignore[arg-type]
        if f.name in skip: continue
        anchor = f'<span id="{prefix}{f.name}"></span>' if prefix else ""
        rows.append((anchor + code(f"{prefix}{f.name}"), safe(expected(specs[f.name].hint)), default_of(f), safe(words.get(f.name, ""))))
    return table(("key", "a value is", "default", "meaning"), rows)


def algorithms() -> list[tuple[str, Any]]:
    "Those of the package: name, class"
    from rlstudio.core.registry import algos
    names = [n for n in sorted(algos.names()) if algos.get(n).__module__.startswith("rlstudio.")]
    return [(n, algos.get(n)) for n in names]


def config_page() -> str:
    "Every key of a config, of each algorithm, and of settings.ini"
    from rlstudio.core.options import Config
    from rlstudio.runs.config import Settings
    hints = get_type_hints(Config)
    words = said_of(Config)
    parts = ["# Config reference", "A config is YAML with the sections below; on the command line and in `Run.from_config` a key is `section.key=value`, and the section may be left out where only one has the key.\n"
             "A wrong key or value is answered with its place, what was expected, and a suggestion. This page is computed from the classes that check a config.",
             "```sh\nrlstudio run ppo/cartpole train.total_steps=5e4 algo.clip_range=0.1\n```"]
    for name, cls in hints.items():
        if name == "algo": continue
        parts += [f"## {name}", f"{safe((cls.__doc__ or words.get(name, '')).split('Args:')[0])}.", section(cls, f"{name}.")]
    for name, algo in algorithms():
        chapter = algo.__module__.removeprefix("rlstudio.")
        parts += [f"## algo: {name}", f"`algo.name: {name}`, from the chapter [{chapter}](api/{chapter}.md).", section(algo.Config, "algo.", {"name"}).replace('id="algo.', f'id="algo.{name}.')]
    parts += ["## settings.ini", "What belongs to a machine and not to an experiment. The file is looked up in the current folder and in its parents; all keys stand below `[DEFAULT]`.",
              section(Settings, "").replace("null", "")]
    return "\n\n".join(parts) + "\n"


def configs_page() -> str:
    "The configs that come along"
    from rlstudio.runs.config import packaged_configs
    found = packaged_configs()
    parts = ["# Packaged configs", "Each is a name that `rlstudio run` knows, and a file to copy. Results of each are in the [zoo](../project/zoo.md)."]
    for name, path in found.items():
        text = path.read_text().rstrip()
        parts += [f"## {name}", f"```yaml\n{text}\n```\n\n```sh\nrlstudio run {name}\n```"]
    return "\n\n".join(parts) + "\n"


# Command line

def commands() -> Iterator[tuple[str, Any]]:
    "Each command of ours, groups opened"
    from typer import Context
    from typer.main import get_command

    from rlstudio.studio.cli import app
    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "list_commands"): yield name, command; return
        if name and command.invoke_without_command: yield name, command
        context = Context(command)
        for key in command.list_commands(context):   # those, too, that are imported when they are asked for
            sub = command.get_command(context, key)
            if hasattr(sub, "real"): sub = sub.real()
            ours = hasattr(sub, "list_commands") or inspect.unwrap(sub.callback).__module__.startswith("rlstudio.")
            if ours and not sub.hidden: yield from below(f"{name} {key}".strip(), sub)
    yield from below("", get_command(app))


def parameter(p: Any) -> tuple[str, str, str]:
    "How it is typed, its default, its meaning"
    words = p.help or ""
    default = re.search(r"\s*\[default: (.*)\]\s*$", words)
    words = words[:default.start()] if default else words
    hint = p.type_descriptor.annotation
    kind = str(getattr(hint, "__name__", hint)).replace("typing.", "")
    if p.param_type_name == "argument":
        shown = p.metavar or p.name.upper()
        return code(shown), "required" if p.required else "", safe(words)
    flag = getattr(p, "is_flag", False)
    shown = ", ".join(p.opts) + ("" if flag else f" {(p.metavar or kind).upper() if not p.metavar else p.metavar}")
    value = default[1] if default else "" if p.default in (None, False, (), [], "") or flag or callable(p.default) else str(p.default)
    return code(shown), safe(value), safe(words)


def usage(name: str, command: Any) -> str:
    "How it is called"
    args = [(p.metavar or p.name.upper()) if p.required else f"[{(p.metavar or p.name.upper()).strip('[]').removesuffix(']...')}]" + ("..." if p.nargs == -1 else "") for p in command.params if p.param_type_name == "argument"]
    return " ".join(["rlstudio", name, *args, "[OPTIONS]"])


EXITS = (("0", "fine"), ("1", "the run failed on its way, or it found what it was asked to look for (`check-env`: a world with faults)"), ("2", "a mistake of the user, with one message and its fix"),
         ("3", "a difference, damage or a regression was found (`verify`, `audit`, `drift`, `gate`)"), ("130, 143", "stopped by Ctrl-C or by SIGTERM; everything is saved, `rlstudio resume` goes on"))


def cli_page() -> str:
    "Every command with its arguments and options"
    found = list(commands())
    parts = ["# Command line reference", "Computed from the program itself: `rlstudio --help`, and `rlstudio COMMAND --help`. The chapter is [studio.cli](api/studio.cli.md).",
             table(("command", "what it does"), [(f"[{name}](#{slug(name)})", safe(first(c.help))) for name, c in found]),
             "## Exit codes", table(("code", "meaning"), [(code(k), v) for k, v in EXITS])]
    for name, c in found:
        doc = (c.help or "").replace("\b", "").strip()
        rows = [parameter(p) for p in c.params if not getattr(p, "hidden", False)]
        parts += [f"## {name}", safe(doc), f"```text\n{usage(name, c)}\n```"]
        if rows: parts.append(table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def first(text: str | None) -> str: return (text or "").strip().split("\n\n")[0]


def slug(name: str) -> str: return name.replace(" ", "-")


# Metrics and events

def glossary() -> dict[str, Any]:
    "Every metric that the package explains"
    from rlstudio.algos.common import register_rows
    from rlstudio.train.evaluate import Evaluate
    from rlstudio.train.metrics import GLOSSARY, UNEXPLAINED
    from rlstudio.train.trainer import register_trainer_metrics
    register_trainer_metrics(); Evaluate()
    for _, algo in algorithms(): register_rows(algo)
    return {k: m for k, m in GLOSSARY.items() if m.formula != UNEXPLAINED}


def remedies() -> dict[str, str]: return dict(yaml.safe_load((HERE / "metrics.yaml").read_text()))


def healthy(m: Any) -> str:
    "A range in words"
    low, high = m.healthy
    if low == float("-inf") and high == float("inf"): return "any"
    if high == float("inf"): return f"≥ {low:g}"
    return f"≤ {high:g}" if low == float("-inf") else f"{low:g} … {high:g}"


def metrics_page() -> str:
    "Name, formula, unit, healthy range, what to do"
    known, do = glossary(), remedies()
    rows = [(f'<span id="{k}"></span>' + code(k), safe(m.formula), safe(m.unit), healthy(m), do.get(k, "").replace("|", "\\|")) for k, m in sorted(known.items())]
    parts = ["# Glossary of metrics", "One record an iteration goes into `metrics.jsonl` and to every sink. Formula, unit and range are those that the code registers ([train.metrics](api/train.metrics.md)); "
             "outside its range a value is marked in the console and in the panel. A knob that a callback turns is logged as `schedule/…`.", table(("metric", "formula", "unit", "healthy", "what to do"), rows)]
    return "\n\n".join(parts) + "\n"


def events_page() -> str:
    "Who is called when"
    from rlstudio.train.trainer import EVENTS
    rows = [(code(k), code(f"on_{k}(trainer)"), safe(v)) for k, v in EVENTS.items()]
    parts = ["# Events of a training", "A [callback](api/train.trainer.md) overrides the methods of the events that it wants; `Run.train(callbacks=[…])` and `Trainer.train` call them in the order of the list. The chapter is [train.trainer](../book/41_train.trainer.ipynb).",
             table(("event", "method", "when, and what holds"), rows),
             "```python\nfrom rlstudio import Callback\n\nclass Say(Callback):\n    def on_iteration_end(self, trainer):\n        print(trainer.metrics['step'])\n```"]
    return "\n\n".join(parts) + "\n"


# Errors

def error_page() -> str:
    "Every error type of the package, and what the command line does with it"
    rows = []
    for m in modules():
        for name in m.public:
            node = m.nodes.get(name)
            if not isinstance(node, ast.ClassDef) or not any(ast.unparse(b).split(".")[-1].endswith(("Error", "Exception", "Warning")) for b in node.bases): continue
            rows.append((f'<a href="api/{m.short}.html#{m.name}.{name}"><code>{name}</code></a>', code(", ".join(ast.unparse(b) for b in node.bases)), safe((ast.get_docstring(node) or "").split("Args:")[0]), f"[{m.short}](api/{m.short}.md)"))
    parts = ["# Errors", "Every error of the library says what was given, what was expected, and the fix. On the command line an error of these types is one message and exit code 2; the functions that raise each one name it in the [reference](api/index.md).",
             table(("error", "is a", "meaning", "module"), sorted(rows))]
    return "\n\n".join(parts) + "\n"


# File formats

def versions() -> dict[str, int]:
    "Each format's version, as the code has it"
    from rlstudio.evidence.study import STUDY_VERSION
    from rlstudio.evidence.table import KEPT_VERSION
    from rlstudio.runs.checkpoint import SCHEMA_VERSION
    from rlstudio.runs.export import AGENT_VERSION
    from rlstudio.runs.folder import RUN_VERSION
    return {"run": RUN_VERSION, "checkpoint": SCHEMA_VERSION, "agent": AGENT_VERSION, "study": STUDY_VERSION, "table": KEPT_VERSION}


# pattern of the path, format whose version it has, what is in it, chapter
FILES: tuple[tuple[str, str, str, str], ...] = (
    ("config.yaml", "run", "the resolved config, every default written out; it loads to an equal config", "runs.config"),
    ("config.legN.yaml", "run", "the config of an earlier leg, where a run has gone on with a changed one", "runs.legs"),
    ("manifest.json", "run", "who, when, which versions, the machine's arithmetic, status, the level of reproducibility and why, the legs", "runs.folder"),
    ("metrics.jsonl", "run", "one record a line: the metrics of an iteration; older ones in `metrics.NNNNNN.jsonl`, cut-off lines in `metrics.aside`", "train.metrics"),
    ("ledger.jsonl", "run", "hashes of weights, optimiser, streams and experience after each update, each line chained to the one before", "train.ledger"),
    ("hashes.json", "run", "SHA-256 of every file of the run, for `rlstudio verify`", "runs.folder"),
    ("evaluations.json", "run", "each evaluation with the return and length of every episode", "train.evaluate"),
    ("result.json", "run", "the verdict of a finished run; `result.legN.json`: of an earlier leg", "runs.run"),
    ("run.lock", "run", "held by the process that writes; empty", "runs.folder"),
    ("checkpoints/step_N/manifest.json", "checkpoint", "version, step, SHA-256 of the two files beside it", "runs.checkpoint"),
    ("checkpoints/step_N/state.json", "checkpoint", "the whole state of the trainer as a tree; arrays are named, not held", "runs.checkpoint"),
    ("checkpoints/step_N/state.safetensors", "checkpoint", "the arrays of that tree", "runs.checkpoint"),
    ("checkpoints/best/…", "checkpoint", "the checkpoint of the best evaluation, in the same form", "runs.checkpoint"),
    ("plots/learning_curve.png", "run", "the learning curve", "runs.pictures"),
    ("videos/rollout.webp", "run", "one episode as an animation", "runs.pictures"),
    ("agent.json", "agent", "an exported agent: its config, its spaces, hashes; no code", "runs.export"),
    ("weights.safetensors", "agent", "its weights", "runs.export"),
    ("study.yaml", "study", "the arms, seeds, grid or search of a study, in whose folder its runs are", "evidence.study"),
)


def covered(name: str) -> bool:
    "Is this file of a run's folder in the table?"
    name = re.sub(r"step_\d+", "step_N", name)
    name = re.sub(r"\.leg\d+\.", ".legN.", re.sub(r"metrics\.\d+\.jsonl|metrics\.aside", "metrics.jsonl", name))
    name = "ledger.jsonl" if name == "ledger.aside" else name.replace("result.legN.json", "result.json")
    return any(name == pattern or (pattern.endswith("…") and name.startswith(pattern[:-1])) for pattern, *_ in FILES)


def files_page() -> str:
    "Run folder, checkpoint, ledger, agent, study"
    v = versions()
    by = {m.short: m for m in modules()}
    def row(f: tuple[str, str, str, str]) -> tuple[str, ...]:
        return code(f[0]), f"{f[1]} {v[f[1]]}", f[2], f"[{f[3]}]({chapter_link(by[f[3]])})"
    parts = ["# File formats", "What a run, a checkpoint, an exported agent and a study consist of. No file holds code, none is a pickle, and each is written whole or not at all. Older versions are read or brought up to date by `rlstudio migrate`; "
             "newer ones are refused with a message ([versions](../project/adr/0014-what-a-version-promises.md)).",
             "## Versions now", table(("format", "version"), [(k, str(n)) for k, n in v.items()]),
             "## Files", table(("file", "format and version", "content", "chapter"), [row(f) for f in FILES])]
    return "\n\n".join(parts) + "\n"


def chapter_link(m: Module) -> str: return f"../book/{m.chapter.removeprefix('nbs/')}"


PAGES: dict[str, Callable[[], str]] = {"reference/config.md": config_page, "reference/configs.md": configs_page, "reference/cli.md": cli_page, "reference/metrics.md": metrics_page,
                                       "reference/events.md": events_page, "reference/errors.md": error_page, "reference/files.md": files_page}
