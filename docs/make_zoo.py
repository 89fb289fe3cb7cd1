#!/usr/bin/env python3
"""docs/zoo.md from benchmarks/results: `python docs/make_zoo.py` writes it, `--check` fails when it is not fresh.

Every number comes from the raw lines that `benchmarks/learning.py` and `benchmarks/zoo.py` have stored; nothing is typed by hand but what others have published (`PUBLISHED` in benchmarks/learning.py).
"""
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from learning import published  # noqa: E402
from long import long_figure  # noqa: E402
from long import stored as long_runs  # noqa: E402
from zoo import entries, family, overrides, stored, wanted  # noqa: E402

from rlstudio.evidence.stats import StatsError, interval, iqm  # noqa: E402

PAGE = ROOT / "docs" / "zoo.md"
FAMILIES = {"classic": "Classic control and small worlds", "box2d": "Box2D", "mujoco": "MuJoCo", "atari": "Atari"}
HEAD = ("world", "algorithm", "seeds", "IQM", "95 % interval", "worst seed", "published", "env steps", "level", "engine", "command")
TEXT = """# The zoo of results

*Written by docs/make_zoo.py from [benchmarks/results](../benchmarks/results): change the measurements, not this page.*

How well each packaged config learns. The score of a run is the mean return of its greedy evaluation after training, over 100 fresh episodes. IQM is the mean of the middle half of the seeds, with its 95 % interval
(arXiv:2108.13264; Student's t, chapter [stats](../nbs/74_evidence.stats.ipynb)). *Worst seed* is what you may get in a single run. With fewer than {few} seeds an interval covers less than it says, so there is none. Published values are those of the
Stable-Baselines3 zoo: one run each, with the training steps in brackets, on older versions of some worlds.

*Engine* is what `settings.ini` was asked for, where the line says so: it changes the last bits of a run, not how well a config learns. `graphs` is for a GPU.

`python benchmarks/zoo.py` says what is missing, `--run` measures it, and `python docs/make_zoo.py` writes this page.
"""
FEW = 5   # seeds below which no interval is printed


def number(x: float) -> str:
    "Short, and without a minus before zero"
    return f"{x + 0.:,.1f}" if abs(x) < 1000 else f"{x:,.0f}"


def on_device(rows: list[dict[str, Any]]) -> str:
    "The option that asks for the device of the measurement; old lines do not say it, and were of the CPU"
    device = rows[0].get("device", "cpu")
    return "" if device == "cpu" else f" --device {device}"


def row(name: str, path: Path, config: Any, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    "One config over its seeds"
    scores = [r["eval_return_mean"] for r in rows]
    try: found = interval(scores) if len(scores) >= FEW else None
    except StatsError: found = None
    between = f"{number(found.low)} … {number(found.high)}" if found else "–"
    world = config.env.id + (", continuous" if config.env.kwargs.get("continuous") else "")
    return (world, config.algo.name.upper(), str(len(rows)) + ("" if len(rows) >= wanted(name, config) else f" of {wanted(name, config)}"), number(float(iqm(scores))), between, number(min(scores)),
            published(config.algo.name, config.env.id, name), f"{rows[0]['total_steps']:,}", min(r.get("level", "?") for r in rows), ", ".join(sorted({r.get("engine", "tape") for r in rows})), f"`{' '.join(['rlstudio run', name, *overrides(name)])} --seed 1{on_device(rows)}`")


def tables() -> dict[str, list[tuple[str, ...]]]:
    "Family → the rows of what was measured"
    found: dict[str, list[tuple[str, ...]]] = {f: [] for f in FAMILIES}
    for name, path, config in entries():
        if rows := list(stored(path, config).values()): found[family(config)].append(row(name, path, config, rows))
    return {f: sorted(rows) for f, rows in found.items()}


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    "A table"
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)])


def picture_of(row: dict[str, Any]) -> Path:
    "Where the curve of a long run lies"
    return ROOT / "docs" / "images" / f"long-{row['algo']}-{row['env'].split('/')[-1].lower()}.svg"


def long_section() -> str:
    "What was run once, as a curve"
    parts = ["## Long runs\n\nOne seed each, since they are dear: they show that a configuration learns, not how well it does on average. [Raw points](../benchmarks/results/long_runs.jsonl), by [benchmarks/long.py](../benchmarks/long.py).\n"]
    for r in long_runs():
        (_, first, _), (_, last, _) = r["evaluations"][0], r["evaluations"][-1]
        said = (f"{r['algo'].upper()} on {r['env']}: a greedy episode returns {number(first)} at {r['evaluations'][0][0]:,} env steps and {number(last)} at {r['env_steps']:,}; an episode of training {number(r['training'][-1][1])}")
        parts.append(f"![{said}](images/{picture_of(r).name})\n\n{said}. Engine {r['engine']}, level {r['level']}, {r['machine']['why'].rpartition(', ')[2]} with {r['env_steps_per_second']:,.0f} env steps a second.\n")
    return "\n".join(parts) if len(parts) > 1 else ""


def draw_long() -> None:
    "The curves as pictures; the same points give the same file"
    import matplotlib
    with matplotlib.rc_context({"svg.hashsalt": "rlstudio", "svg.fonttype": "none"}):
        for r in long_runs(): long_figure(r).savefig(picture_of(r), metadata={"Date": None, "Creator": None})


def page() -> str:
    "The whole page"
    parts = [TEXT.format(few=FEW)]
    for f, rows in tables().items():
        if rows: parts.append(f"## {FAMILIES[f]}\n\n{markdown(HEAD, rows)}\n")
    if text := long_section(): parts.append(text)
    absent = [name for name, path, c in entries() if not stored(path, c)]
    if absent: parts.append(f"## Not measured yet\n\n{', '.join(f'`{name}`' for name in absent)}\n")
    made = sorted({f"torch {r['versions']['torch']}, numpy {r['versions']['numpy']}, {r['machine']['cpu']}" for _, path, c in entries() for r in stored(path, c).values()})
    parts.append("## Made with\n\n" + "\n".join(f"- {m}" for m in made) + "\n")
    return "\n".join(parts)


def readme_table() -> Any:
    "For nbs/index.ipynb: one line a config, without what only the page needs"
    from IPython.display import Markdown
    keep = [HEAD.index(h) for h in ("world", "algorithm", "seeds", "IQM", "95 % interval", "worst seed", "published", "env steps")]
    return Markdown(markdown(tuple(HEAD[i] for i in keep), [tuple(r[i] for i in keep) for rows in tables().values() for r in rows]))


def main() -> int:
    fresh = page()
    if "--check" not in sys.argv[1:]: 
        PAGE.write_text(fresh)
        draw_long()
        return 0
    if PAGE.is_file() and PAGE.read_text() == fresh: return 0
    print("docs/zoo.md is not what benchmarks/results say; run: python docs/make_zoo.py", file=sys.stderr)
    return 1


if __name__ == "__main__": sys.exit(main())
