"Hooks of the whole test run: stored outputs of tutorials count as run, and the slowest notebooks are printed."
import pytest

NOTEBOOK_SECONDS = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTEBOOK_SECONDS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "nbdev-clean clears execution counts, which nbval takes for cells that never ran"
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None: cell["execution_count"] = 1


@pytest.fixture(scope="session")
def notebook_seconds(request: pytest.FixtureRequest) -> dict[str, float]:
    "Where a test leaves how long a notebook took, for the table at the end"
    return request.config.stash[NOTEBOOK_SECONDS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seconds = sorted(config.stash[NOTEBOOK_SECONDS].items(), key=lambda kv: -kv[1])
    if not seconds: return
    terminalreporter.section("slowest notebooks")
    for name, took in seconds[:15]: terminalreporter.write_line(f"{took:6.1f}s {name}")
