#!/usr/bin/env python3
"""docs/faults.md from the markers of the tests: `python docs/make_faults.py` writes it, `--check` fails when it is not fresh.

A test that shows number N of the fault catalogue carries `@pytest.mark.faults(N)`; several numbers are several arguments. This script reads the marks from the sources of the tests, without importing them. It adds
what happens in each case, and the table of benchmarks/results/kills.jsonl. A number without a test needs a reason here; one with a test must have none.
"""
import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS, PAGE, KILLS = ROOT / "tests", ROOT / "docs" / "faults.md", ROOT / "benchmarks" / "results" / "kills.jsonl"

CASES: dict[int, tuple[str, str]] = {  # number → the fault, what happens
    1: ("SIGKILL at random times, several per run", "`resume` goes on from the newest checkpoint, to the weights of the run that nobody killed"),
    2: ("SIGKILL at each step of a save", "a checkpoint is whole or not there; the same end"),
    3: ("SIGTERM, SIGINT, SIGHUP", "a checkpoint at the end of the iteration, status `interrupted`, exit code 143 or 130; pressed again, an end at once, without a traceback; SIGHUP saves and goes on, under `nohup` too"),
    4: ("a kill during a resume", "as number 1"),
    5: ("a kill between publishing and pruning", "the new checkpoint counts; old ones are pruned at the next save"),
    6: ("temporary folders that are left over", "ignored, never the newest, removed at the next save"),
    7: ("two processes on one run", "the second refuses (exit code 2); the lock of a dead process is taken over"),
    8: ("no space at the k-th write", "a clear error, the checkpoints before it are untouched; a failure that cannot be noted is a warning"),
    9: ("an `fsync` that fails", "never taken for saved"),
    10: ("`RLIMIT_FSIZE`", "as number 8"),
    11: ("a full file system of 1 MiB", "as number 8; with more space the run comes to the same end"),
    12: ("a folder that is read-only", "an error before anything is trained"),
    13: ("bit flips", "noticed, the file is named, the checkpoint before is used"),
    14: ("truncation, no bytes, zeros at the end", "noticed, the file is named"),
    15: ("files that are deleted, swapped, or too many", "refused, the file is named"),
    16: ("an edited manifest", "refused, even if its hashes are made right"),
    17: ("the newest two of three are damaged; all are", "the third is used, and that is said; an error, and nothing begins from scratch"),
    18: ("a clock that runs backwards", "checkpoints are ordered by step"),
    19: ("another config, environment or code at a resume", "refused with the difference, or a new leg; other code lowers the level"),
    20: ("other threads, CPU or versions at a resume", "the level is lowered for good, and says why"),
    21: ("old checkpoints and runs; newer ones", "old ones load or are refused with what to do; newer ones are refused"),
    22: ("a migration that is killed", "its source is untouched"),
    23: ("a worker that is killed", "an error within seconds, with env, seed and last action; no orphan"),
    24: ("an environment, in process or in a worker, that raises", "an error with env, copy, step and action; exit code 1; what was learned is kept"),
    25: ("one that hangs", "after 30 s a line says which one and for how long; one signal ends the run"),
    26: ("one that exits", "an error like any other: `sys.exit(0)` never looks like success"),
    27: ("one that is slow", "no error, and the same bits"),
    28: ("NaN, infinity, wrong type, shape or space, a reward that is no number", "refused where it appears: env, field, given, expected"),
    29: ("a gradient that is not finite", "the update is not applied; the message names the step"),
    30: ("an environment that is not deterministic", "found by the trial at the start, which plays twice, the second time on another day; or, where only another process shows it, at a resume: level L1"),
    31: ("an environment that draws from a global generator", "named; level L1"),
    32: ("metrics cut at each byte; a rotation that is killed", "readable and appendable; the torn tail is put aside and counted"),
    33: ("a sweep whose worker or driver is killed", "each trial exactly once"),
    34: ("plugins that raise, exit, shadow, duplicate, were made for another interface, or are not allowed", "named and left out; not even imported before they are allowed"),
    35: ("the malicious corpus", "refused, nothing is executed, bounded time and memory"),
    36: ("a header that claims 1 TiB", "refused before anything is allocated"),
}
REASONS: dict[int, str] = {  # numbers without a test: why
}
PARTLY: dict[int, str] = {  # what of a number is not shown
}

FAMILIES: dict[str, tuple[str, ...]] = {  # of benchmarks/kills.py → the algorithms that cannot play there: an action space, or no memory
    "batched classic": (), "Gymnasium classic": (), "Box2D": (), "BipedalWalker": ("dqn",), "MuJoCo": ("dqn",), "Atari": ("sac", "td3"), "toy text": ("sac", "td3"),
    "Dict": (), "pixels": (), "recurrent": ("dqn", "sac", "td3"), "workers": (),
}


def marked() -> dict[int, list[str]]:
    "number → the tests that show it, as file::name"
    found = defaultdict[int, list[str]](list)
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.faults":
                    for number in mark.args: found[ast.literal_eval(number)].append(f"{path.name}::{node.name}")
    return found


def problems(tests: dict[int, list[str]]) -> list[str]:
    "What is wrong with the marks"
    unknown = [f"{n}: no such number, in {', '.join(names)}" for n, names in tests.items() if n not in CASES]
    missing = [f"{n}: neither a test nor a reason" for n in CASES if n not in tests and n not in REASONS]
    both = [f"{n}: a test and a reason why there is none" for n in REASONS if n in tests]
    return unknown + missing + both


def kills() -> str:
    "What benchmarks/kills.py has stored, as a table"
    rows = [json.loads(line) for line in KILLS.read_text().splitlines()] if KILLS.exists() else []
    families, algos = FAMILIES | {r["family"]: () for r in rows if r["family"] not in FAMILIES}, ("a2c", "ppo", "dqn", "sac", "td3")

    def cell(family: str, algo: str) -> str:
        own = [r for r in rows if (r["family"], r["algo"], r["kind"]) == (family, algo, "random")]
        levels = {level: [r["ok"] for r in own if (r["level"] or "no level") == level] for level in sorted({r["level"] or "no level" for r in own}, reverse=True)}
        return ", ".join(f"{sum(ok)} of {len(ok)}{'' if level == 'L3' else f' ended at {level}'}" for level, ok in levels.items()) or ("–" if algo in families[family] else "not run")
    random, points = ([r for r in rows if r["kind"] == kind] for kind in ("random", "point"))
    head = [f"| family | {' | '.join(algos)} |", f"|---|{'---|' * len(algos)}"]
    lines = head + [f"| {f} | {' | '.join(cell(f, a) for a in algos)} |" for f in families]
    said = (f"{len(random)} runs, {sum(len(r['kills']) for r in random)} kills at random times, 1 to 3 a run: {sum(r['same'] for r in random)} ended with the bits of the run that nobody killed, "
            f"{sum(r['ok'] and not r['same'] for r in random)} ended at a lower level that their manifest names, {sum(not r['ok'] for r in random)} failed. "
            f"At each crash point of a save: {sum(r['ok'] for r in points)} of {len(points)}.")
    return "\n\n".join([said, "\n".join(lines)])


def page() -> str:
    "The text of docs/faults.md"
    tests = marked()
    rows = []
    for n, (fault, answer) in CASES.items():
        files = defaultdict[str, list[str]](list)
        for test in dict.fromkeys(tests.get(n, [])):
            file, name = test.split("::")
            files[file].append(name.removeprefix("test_"))
        shown = "; ".join(f"[{file[5:-3]}](../tests/{file}): {', '.join(f'`{name}`' for name in names)}" for file, names in files.items())
        rows.append(f"| {n} | {fault} | {answer} | {shown or 'not tested: ' + REASONS.get(n, '')}{' (' + PARTLY[n] + ')' if n in PARTLY else ''} |")
    return f"""<!-- Written by docs/make_faults.py from the marks of the tests: edit those, or the script, not this file. -->
# What can go wrong, and what happens then

Processes die, disks fill, environments misbehave, and folders come from strangers. Each fault has a number. `pytest --no-cov -m faults` runs the tests of all of them in a few minutes; with `RLSTUDIO_FAULTS=all` in the
environment some run longer. A test says `@pytest.mark.faults(N)`; a gate checks that this table is fresh and that every number has a test or a reason.

| | fault | what happens | tests |
|---|---|---|---|
{chr(10).join(rows)}

## Killed at random times

`python benchmarks/kills.py` kills trainings of every algorithm in every family of worlds with SIGKILL, also while they resume, and compares the end with a run that nobody disturbed. What is stored so far, in
[benchmarks/results/kills.jsonl](../benchmarks/results/kills.jsonl) (–: this algorithm cannot play there):

{kills()}
"""


def main() -> int:
    if wrong := problems(marked()):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page(): return 0
    print("docs/faults.md is not what the marks say; run: python docs/make_faults.py", file=sys.stderr)
    return 1


if __name__ == "__main__": sys.exit(main())
