"""Results of runs as JSON Lines: what the report, the ledger of claims and a comparison of two runs are made from.

A results folder holds ``results.jsonl``, one JSON object a line, each with a ``kind``:

========== ==========================================================================================
``schema`` the first line: ``version``, an integer; a reader refuses a version that it does not know
``run``    one pytest run: when, with which command, options, software and machine, and how it ended
``table``  named rows of numbers, what they were made from, and how they compare with their baseline
``test``   one test: its node id, outcome (passed, failed, skipped), seconds, and why if not passed
``verdict`` one claim, judged by the tables of this file and by nothing else; see `Verdict`
========== ==========================================================================================

A table's name is ``model/text set/what`` (as its baseline's path), ``key`` names the columns that label its
rows, and the other columns are numbers. Numbers that JSON does not have are written as
``{"float": "inf"}``, ``"-inf"`` and ``"nan"``, and read back as floats. A later run replaces the tables and tests of
the same name and keeps the others, so that one folder can gather the reproduction and the latency of a machine.
Reading and writing is in `knorm_core.results.file`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VERDICTS = ("reproduced", "explained", "refuted", "not testable here")


@dataclass(frozen=True)
class Run:
    """One pytest run.

    Attributes:
        id: names the run in its tables and tests.
        started: ISO 8601 with time zone; ``seconds`` how long it took.
        command: as the user can type it again.
        exit_status: pytest's.
        options: the ``--knorm-…`` options by name.
        versions: knorm, torch, transformers, python, ….
        machine: platform, processor, cores, threads per process, device.
    """

    id: str
    started: str
    seconds: float
    command: str
    exit_status: int
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number that differs from its baseline; None where the baseline or the run has no such cell."""

    row: str
    column: str
    baseline: float | str | None
    value: float | str | None


@dataclass(frozen=True)
class Baseline:
    """How a table compares with its baseline.

    Attributes:
        status: "same" (within ``rtol`` and ``atol``), "changed", "missing", "other source" (made from
            another model, text or setting), "damaged" (its file cannot be read), or "none" (a table that has no
            baseline by design).
        cells: what differs, within tolerance or not, largest first.
    """

    status: str
    rtol: float = 0.0
    atol: float = 0.0
    cells: Sequence[Cell] = ()


@dataclass(frozen=True)
class Table:
    """Named rows of numbers; see the module for names and keys."""

    name: str
    key: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    made_from: Mapping[str, Any] = field(default_factory=dict)
    baseline: Baseline = field(default_factory=lambda: Baseline("none"))
    run: str = ""


@dataclass(frozen=True)
class Test:
    """One test's outcome."""

    __test__ = False  # not a class of tests

    nodeid: str
    outcome: str
    seconds: float
    message: str = ""
    run: str = ""


@dataclass(frozen=True)
class Number:
    """One number that a verdict rests on, with its 95 % interval where there is one (else None)."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class StandIn:
    """What another model shows of a claim that is about one that was not run; it is no verdict on the claim.

    Attributes:
        model: its slug, the first part of its tables' names.
        verdict, why, numbers, tables: as in `Verdict`, had the claim been about this model.
    """

    model: str
    verdict: str
    why: str
    numbers: Sequence[Number] = ()
    tables: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """One published claim, and what became of it. All text is plain; all sentences end with a full stop.

    Attributes:
        id: unique, such as "report-pg19-ppl-0.9"; verdicts come in the order of the ledger, by source.
        source: "report" or "paper".
        claim: one sentence, as published.
        where: the table's cell or the section that it stands in.
        setting: how the source measured it.
        about: the model that it is about, such as "EleutherAI/pythia-70m", or "any model".
        expected: the published value or direction, for people: "57.48", "rises as keep falls".
        tolerance: what still counts as the same, for people: "2 %"; empty where there is nothing to allow for.
        verdict: one of `VERDICTS`.
        why: one generated sentence with the numbers; for "not testable here", what is missing, or the numbers
            that leave it open.
        numbers: what the sentence rests on; empty where there were no tables.
        needs: for "not testable here", what it would take, such as "tox -e pythia with a network"; else empty.
        stand_in: for "not testable here" without tables, what the model at hand shows, kept apart; else None.
        tables: names of the tables that it was judged by; empty where there were none.
    """

    id: str
    source: str
    claim: str
    where: str
    setting: str
    about: str
    expected: str
    tolerance: str
    verdict: str
    why: str
    numbers: Sequence[Number] = ()
    needs: str = ""
    stand_in: StandIn | None = None
    tables: Sequence[str] = ()


@dataclass(frozen=True)
class Results:
    """What one results folder holds, in the order in which it was recorded."""

    runs: Sequence[Run] = ()
    tables: Sequence[Table] = ()
    tests: Sequence[Test] = ()
    verdicts: Sequence[Verdict] = ()

    def table(self, name: str) -> Table | None:
        """The table of that name, or None."""
        return next((table for table in self.tables if table.name == name), None)

    def updated(self, later: Results) -> Results:
        """These results with those of a later run, which replace tables and tests of the same name."""
        names, nodeids = {table.name for table in later.tables}, {test.nodeid for test in later.tests}
        tables = [*(table for table in self.tables if table.name not in names), *later.tables]
        tests = [*(test for test in self.tests if test.nodeid not in nodeids), *later.tests]
        named = {table.run for table in tables} | {test.run for test in tests} | {run.id for run in later.runs}
        return Results([run for run in (*self.runs, *later.runs) if run.id in named], tables, tests, later.verdicts)
