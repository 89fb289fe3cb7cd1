"Hooks of the whole test run: stored outputs of tutorials count as run, and the slowest notebooks are printed."
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seconds = sorted(config.stash[NOTEBOOK_SECONDS].items(), key=lambda kv: -kv[1])
    if not seconds: return
    terminalreporter.section("slowest notebooks")
    for name, took in seconds[:15]: terminalreporter.write_line(f"{took:6.1f}s {name}")
