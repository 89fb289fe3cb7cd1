#!/usr/bin/env python3
"""The history of the key figures: `python docs/make_kpi.py` writes the table in docs/kpi.md and its picture from benchmarks/results/kpi.jsonl, `--check` fails when they are not fresh."""
import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
HISTORY, PAGE, PICTURE = ROOT / "benchmarks/results/kpi.jsonl", ROOT / "docs/kpi.md", ROOT / "docs/images/kpi.svg"
BEGIN, END = "<!-- history: written by docs/make_kpi.py -->\n", "<!-- end of the history -->\n"
FIGURES = {"env_steps_per_second": "env steps per second", "seconds_to_threshold": "time to threshold, s", "eval_return_mean": "final return",
           "reproduced": "share of runs reproduced", "coverage_percent": "coverage, %", "ci_seconds": "CI time, s"}
WIDTH, HEIGHT, MARGIN = 260, 120, 16   # of one panel


def rows() -> list[dict[str, Any]]:
    "The stored measurements of CartPole, oldest first"
    found = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    return sorted((r for r in found if r.get("config", "cartpole") == "cartpole"), key=lambda r: r["time"])


def shown(value: float | None) -> str:
    "A figure for people"
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def table(history: list[dict[str, Any]]) -> str:
    "A row a measurement"
    head = ["measured", "commit", *FIGURES.values()]
    lines = [[r["time"].replace("T", " ")[:16], f"`{r['commit'][:7]}`", *(shown(r["kpis"].get(k)) for k in FIGURES)] for r in history]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def panel(name: str, values: list[float | None], x: int, y: int) -> list[str]:
    "One figure over the measurements: from zero to its largest value, the last one written beside its point"
    there = [(i, v) for i, v in enumerate(values) if v is not None]
    out = [f'<text x="{x}" y="{y + 12}" class="name">{escape(FIGURES[name])}</text>', f'<line x1="{x}" y1="{y + HEIGHT}" x2="{x + WIDTH}" y2="{y + HEIGHT}" class="axis"/>']
    if not there: return [*out, f'<text x="{x}" y="{y + HEIGHT - 8}">not measured yet</text>']
    top, step = max(v for _, v in there) or 1, (WIDTH - 70) / max(len(values) - 1, 1)
    points = [(x + 4 + i * step, y + HEIGHT - 4 - v / top * (HEIGHT - 40)) for i, v in there]
    out.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" class="line"/>')
    out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return [*out, f'<text x="{points[-1][0] + 7:.1f}" y="{points[-1][1] + 4:.1f}">{shown(there[-1][1])}</text>']


def picture(history: list[dict[str, Any]]) -> str:
    "Six panels, three a row; grey and blue are seen on light and dark paper"
    parts = [line for k, name in enumerate(FIGURES) for line in
             panel(name, [r["kpis"].get(name) for r in history], MARGIN + k % 3 * (WIDTH + MARGIN), MARGIN + k // 3 * (HEIGHT + 2 * MARGIN))]
    width, height = 3 * WIDTH + 4 * MARGIN, 2 * HEIGHT + 5 * MARGIN
    style = "text{font:11px sans-serif;fill:#808080}.name{font-weight:bold}.axis{stroke:#808080;stroke-width:.5}.line{fill:none;stroke:#3b82c4;stroke-width:1.5}circle{fill:#3b82c4}"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="Key figures over time">',
                      f"<style>{style}</style>", *parts, "</svg>"]) + "\n"


def page(text: str, history: list[dict[str, Any]]) -> str:
    "The page with the history between its marks"
    before, rest = text.split(BEGIN)
    note = "Measurements from left to right; a figure that a measurement left out has no point. The CI times without other figures are what the checks of landings printed."
    return before + BEGIN + f"![Six key figures over the measurements so far](images/kpi.svg)\n\n{note}\n\n{table(history)}\n\n" + END + rest.split(END)[1]


def main() -> int:
    history = rows()
    fresh = {PAGE: page(PAGE.read_text(), history), PICTURE: picture(history)}
    if "--check" not in sys.argv[1:]:
        for path, text in fresh.items(): path.write_text(text)
        return 0
    stale = [path.name for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    if stale: print(f"{', '.join(stale)}: not what benchmarks/results/kpi.jsonl says; run: python docs/make_kpi.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__": sys.exit(main())
