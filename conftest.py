"Hooks of the whole test run: stored outputs of tutorials count as run, and the slowest notebooks and files are printed."
from collections.abc import Iterable

import pytest
from printed import Printed

NOTEBOOK_SECONDS = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTEBOOK_SECONDS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "nbdev-clean clears execution counts, which nbval takes for cells that never ran; and the outputs of tutorials are compared as those of chapters are"
    for item in items:
        if (cell := getattr(item, "cell", None)) is None: continue
        cell["execution_count"] = 1
        item.sanitize = lambda text, clean=item.sanitize: Printed(clean(text)) if isinstance(text, str) else text


@pytest.fixture(scope="session")
def notebook_seconds(request: pytest.FixtureRequest) -> dict[str, float]:
    "Where a test leaves how long a notebook took, for the table at the end"
    return request.config.stash[NOTEBOOK_SECONDS]


def seconds_by_file(reports: Iterable[pytest.TestReport]) -> dict[str, float]:
    "How long the tests of each file took together, set-up and tidying included"
    total: dict[str, float] = {}
    for r in reports:
        name = r.nodeid.partition("::")[0]
        total[name] = total.get(name, 0.0) + r.duration
    return total


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    files = seconds_by_file(r for rs in terminalreporter.stats.values() for r in rs if isinstance(r, pytest.TestReport))
    for title, seconds in (("slowest notebooks", config.stash[NOTEBOOK_SECONDS]), ("slowest files", files if len(files) > 1 else {})):
        if seconds: terminalreporter.section(title)
        for name, took in sorted(seconds.items(), key=lambda kv: -kv[1])[:15]: terminalreporter.write_line(f"{took:6.1f}s {name}")
