"""What the tests recorded (xdist or not): judged when the run is through, and written where ``--knorm-report`` says."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from knorm_core.contract.command_line import options
from knorm_core.plugin.ledger import Ledger
from knorm_core.plugin.report_files import unwritable, write
from knorm_core.results.file import FILE, ResultsError, read_results
from knorm_core.results.records import Baseline, ChangedCell, Results, Run, Table, Test

_PROPERTY = "knorm_result"
_VERSIONS = ("knorm", "torch", "transformers", "datasets", "numpy", "scipy", "pytest")
_recorder: pytest.StashKey[Recorder] = pytest.StashKey()

RecordTable = Callable[..., None]


@pytest.fixture
def record_table(record_property: Callable[[str, object], None]) -> RecordTable:
    """Record a table for ``--knorm-report``: ``record_table(name, rows, key=…, made_from=…, baseline=…)``.

    Tables with a golden are recorded by `knorm_core.plugin.golden`; this is for those without one.
    """

    def record(
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        key: Sequence[str],
        made_from: Mapping[str, Any] | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        table = Table(name, list(key), [dict(row) for row in rows], dict(made_from or {}), baseline or Baseline("none"))
        record_property(_PROPERTY, dataclasses.asdict(table))

    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-report",
        default=None,
        metavar="DIR",
        help="write the results as data and as a page, DIR/index.html (default: no report)",
    )
    group.addoption(
        "--knorm-claims",
        action="store_true",
        default=False,
        help="list the published claims that this run's tables do not test, too",
    )


class Recorder:
    """Gathers the reports of a run; the controller's, since xdist's workers send theirs to it."""

    def __init__(self) -> None:
        self.id, self.started, self._clock = uuid.uuid4().hex[:12], datetime.now(UTC), time.monotonic()
        self.tables: list[Table] = []
        self.tests: dict[str, Test] = {}
        self.unreadable = ""  # why earlier results in the folder could not be read
        self.ledger: Ledger | None = None
        self.written: list[tuple[str, bool]] = []  # where what was written, and whether that is bad news

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            before = self.tests.get(report.nodeid)
            worst = before.outcome if before and before.outcome == "failed" else report.outcome
            self.tests[report.nodeid] = Test(report.nodeid, worst, report.duration, _reason(report), self.id)
        if report.when == "call":
            for name, content in report.user_properties:
                if name == _PROPERTY:
                    self.tables.append(_table(content, self.id))

    def results(self, config: pytest.Config, exit_status: int) -> Results:
        run = Run(
            id=self.id,
            started=self.started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._clock,
            command=shlex.join(["pytest", *map(str, config.invocation_params.args)]),
            exit_status=int(exit_status),
            options={name: _plain(value) for name, value in vars(config.option).items() if name.startswith("knorm_")},
            versions={name: version(name) for name in _VERSIONS} | {"python": platform.python_version()},
            machine=_machine(config),
        )
        return Results([run], self.tables, list(self.tests.values()))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        if sentence := unwritable(config.getoption("knorm_report")):
            raise pytest.UsageError(sentence)
        config.stash[_recorder] = Recorder()
        config.pluginmanager.register(config.stash[_recorder], "knorm-recorder")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    recorder = session.config.stash.get(_recorder, None)
    if recorder is None:
        return
    report = session.config.getoption("knorm_report")
    results = Results(tables=recorder.tables)
    if report:
        earlier = Results()
        if (Path(report) / FILE).exists():
            try:
                earlier = read_results(report)
            except ResultsError as error:
                recorder.unreadable = str(error)
        results = earlier.updated(recorder.results(session.config, exitstatus))
    recorder.ledger = _judged(results, recorder.tables, session.config.rootpath)
    if report:
        recorder.written = write(dataclasses.replace(results, verdicts=recorder.ledger.verdicts), report)


def _judged(results: Results, own: Sequence[Table], root: Path) -> Ledger:
    """The verdicts; where tables of earlier runs break a check, those of this run's tables alone."""
    try:
        return Ledger.of(results, own, root)
    except Exception as error:
        sentence = f"tables of earlier runs cannot be judged ({type(error).__name__}: {error})"
    try:
        ledger = Ledger.of(Results(tables=own), own, root)
    except Exception as error:
        return Ledger((), False, f"this run's tables cannot be judged ({type(error).__name__}: {error})")
    return ledger._replace(error=f"{sentence}; the verdicts rest on this run's alone")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    recorder = config.stash.get(_recorder, None)
    if recorder is None:
        return
    if recorder.ledger is not None:
        recorder.ledger.show(terminalreporter, untested=config.getoption("knorm_claims"))
    if recorder.unreadable:
        terminalreporter.line(f"earlier results were replaced: {recorder.unreadable}", yellow=True)
    for sentence, bad in recorder.written:
        terminalreporter.line(sentence, red=bad)


def _table(content: Any, run: str) -> Table:
    """A table as a worker has sent it."""
    baseline = Baseline(**content["baseline"])
    baseline = dataclasses.replace(baseline, cells=[ChangedCell(**cell) for cell in content["baseline"]["cells"]])
    return Table(**{**content, "baseline": baseline, "run": run})


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # a skip: (file, line, reason)
        return str(report.longrepr[2])
    return str(report.longrepr)


def _machine(config: pytest.Config) -> dict[str, Any]:
    from knorm_core.latency.environment import cpu_name  # imports torch

    return {
        "platform": platform.platform(terse=True),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "workers": getattr(config.option, "numprocesses", None) or 1,
        "device": config.getoption("knorm_device"),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
