"""``--knorm-progress``: a bar, what is computed now, and how long it will take, in place of a line per test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from knorm_core.contract.command_line import options
from knorm_core.results.file import ResultsError, read_results

_LINE_EVERY = 30.0  # seconds, where output is no terminal
_FIRST_GUESS = 10.0  # seconds from which on a first run's pace says something


def pytest_addoption(parser: pytest.Parser) -> None:
    options(parser).addoption(
        "--knorm-progress",
        action="store_true",
        default=False,
        help="show a bar, what is computed and how long it will take (better after a first run into the same "
        "--knorm-report), in place of a line per test",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if config.getoption("knorm_progress") and terminal is not None and not hasattr(config, "workerinput"):
        terminal.showfspath = terminal._show_progress_info = False
        config.pluginmanager.register(Bar(terminal, _earlier_seconds(config)), "knorm-progress")


def _earlier_seconds(config: pytest.Config) -> dict[str, float]:
    """How long each test took in an earlier run, from the results in the report's folder."""
    folder = config.getoption("knorm_report")
    try:
        return {} if folder is None else {test.nodeid: test.seconds for test in read_results(folder).tests}
    except ResultsError:
        return {}


class Bar:
    """The progress of a run; the controller's, since xdist's workers report to it."""

    def __init__(self, terminal: Any, earlier: dict[str, float]) -> None:
        self._earlier = earlier
        self._file = terminal._tw._file
        console = Console(file=self._file, force_terminal=terminal.isatty)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not terminal.isatty,
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("")
        self._terminal = terminal.isatty
        self._started = self._printed = time.monotonic()
        self._tests: list[str] = []
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._running: dict[str, None] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        if not self._tests:
            self._begin([name.partition("@")[0] for name in ids])

    def _begin(self, tests: list[str]) -> None:
        self._tests = tests
        self._started = time.monotonic()
        self._bar.start()
        self._show()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid.partition("@")[0]] = None
        self._show()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("@")[0]
        if report.failed:
            self._failed.add(name)
        if report.when == "teardown":
            self._done.add(name)
            self._running.pop(name, None)
            self._show()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """No letter for what passed or was skipped; failures are shown as ever."""
        if report.failed or hasattr(report, "wasxfail"):
            return None
        if report.when == "call" or report.skipped:
            return report.outcome, "", report.outcome.upper()  # the word is for pytest's summary
        return "", "", ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self._tests:
            self._show(last=True)
            self._bar.stop()

    def seconds_left(self, now: float) -> float | None:
        """How long the tests that are left will take at this run's pace; None as long as nothing can be said.

        Tests count by how long they took earlier; those of which that is not known, all of them in a first run,
        count as much as the others on average.
        """
        elapsed = now - self._started
        if not self._done or (not self._known and elapsed < _FIRST_GUESS):
            return None
        known = [self._earlier[name] for name in self._tests if name in self._earlier]
        usual = sum(known) / len(known) if any(known) else 1.0
        before, left = (
            sum(self._earlier.get(name, usual) for name in self._tests if (name in self._done) == done)
            for done in (True, False)
        )
        return left * elapsed / before if before else None

    @property
    def _known(self) -> bool:
        """Whether it is known of every test how long it took earlier."""
        return all(name in self._earlier for name in self._tests)

    def sentence(self, now: float) -> str:
        """Such as "12 of 126 tests, 1 failed; about 8 min left; table matches baseline[pg19-cache]"."""
        parts = [
            f"{len(self._done)} of {len(self._tests)} tests" + f", {len(self._failed)} failed" * bool(self._failed)
        ]
        left = self.seconds_left(now)
        if left is not None and len(self._done) < len(self._tests):
            about = "about" if self._known else "perhaps"
            parts.append(f"{about} {left / 60:.0f} min left" if left >= 90 else f"{about} {left:.0f} s left")
        if self._running:
            parts.append(next(iter(self._running)).rpartition("::")[2].removeprefix("test_").replace("_", " "))
        return "; ".join(parts)

    def _show(self, last: bool = False) -> None:
        now = time.monotonic()
        text = self.sentence(now)
        self._bar.update(self._task, total=len(self._tests), completed=len(self._done), description=text)
        if not self._terminal and (last or now - self._printed >= _LINE_EVERY):
            print(f"\nknorm: {text}", end="", file=self._file, flush=True)
            self._printed = now
