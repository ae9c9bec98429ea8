"""Results of runs as JSON Lines: what the report, the ledger of claims and a comparison of two runs are made from.

A results folder holds ``results.jsonl``, one JSON object a line, each with a ``kind``:

========== ==========================================================================================
``schema`` the first line: ``version``, an integer; a reader refuses a version that it does not know
``run``    one pytest run: when, with which command, options, software and machine, and how it ended
``table``  named rows of numbers, what they were made from, and how they compare with their baseline
``test``   one test: its node id, outcome (passed, failed, skipped), seconds, and why if not passed
``verdict`` one claim, judged by the tables of this file and by nothing else; see `Verdict`
========== ==========================================================================================

A table's name is ``model/text set/kind`` (as its baseline's path; after options that are not the defaults, with
eight hexadecimal digits that stand for them), ``key`` names the columns that label its rows, and the other columns are
numbers. Numbers that JSON does not have are written as
``{"float": "inf"}``, ``"-inf"`` and ``"nan"``, and read back as floats. A later run replaces the tables and tests of
the same name and keeps the others, so that one folder can gather the reproduction and the latency of a machine.
Reading and writing is in `knorm_core.results.file`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

from knorm_core.results.interval import Interval

#: The verdicts on a claim, and what each means. A verdict is on the model that the claim is about.
VERDICTS: Mapping[str, str] = {
    "reproduced": "the interval lies within what is claimed",
    "explained": "it comes out under a named fault, and not without it",
    "refuted": "the interval lies wholly outside what is claimed",
    "open": "it was measured, and the interval decides neither",
    "not testable here": "its model or data were not run",
}
REPRODUCED, EXPLAINED, REFUTED, OPEN, NOT_TESTABLE = VERDICTS

#: What another model shows of a claim. It is no verdict on the claim.
TRANSFERS: Mapping[str, str] = {
    "carries over": "it holds on that model, too",
    "does not carry over": "it does not hold on that model",
    "open": "the interval decides neither",
}
CARRIES_OVER, DOES_NOT_CARRY_OVER, _ = TRANSFERS

# A confidence limit counts some blocks of tokens several times, so where single tokens part by some 1e-6 (see
# `knorm_core.methods.onepass`), it moves further than the mean over all of them: by 1.4e-6 between two processors.
_LIMITS = 10

#: in what a table was made from: the size of the model's vocabulary, beside which its perplexity is to be seen
VOCABULARY = "vocabulary"
#: What a policy's own row has for its control, in a table of a policy beside its controls.
ITSELF = "itself"

TableRow = Mapping[str, Any]
TableRows = Sequence[TableRow]


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
class ChangedCell:
    """One number that differs from its baseline; None where the baseline or the run has no such cell."""

    row: str
    column: str
    baseline: float | bool | str | None
    value: float | bool | str | None


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
    cells: Sequence[ChangedCell] = ()

    def rtol_of(self, column: str) -> float:
        """The relative tolerance of one column: confidence limits move further than the number between them."""
        return self.rtol * (_LIMITS if column.endswith(("_low", "_high")) else 1)

    def allows(self, column: str, baseline: Any, value: Any) -> bool:
        """Whether a cell is within the tolerance; what is not finite is so only where it is the same."""
        if not is_number(baseline) or not is_number(value):
            return False
        if not math.isfinite(baseline) or not math.isfinite(value):
            return bool(baseline == value)
        return bool(abs(value - baseline) <= self.atol + self.rtol_of(column) * abs(baseline))


@dataclass(frozen=True)
class Table:
    """Named rows of numbers; see the module for names and keys."""

    name: str
    key: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    made_from: Mapping[str, Any] = field(default_factory=dict)
    baseline: Baseline = field(default_factory=lambda: Baseline("none"))
    run: str = ""

    @cached_property
    def _parts(self) -> tuple[str, str, str, str]:
        model, _, rest = self.name.partition("/")
        text_set, _, last = rest.partition("/")
        kind, variant = re.fullmatch(r"(.*?)((?:-[0-9a-f]{8})?)", last, re.DOTALL).groups()  # type: ignore[union-attr]
        return model, text_set, kind, variant

    @property
    def model(self) -> str:
        """The model's slug."""
        return self._parts[0]

    @property
    def text_set(self) -> str:
        """The name of its texts."""
        return self._parts[1]

    @property
    def kind(self) -> str:
        """What was measured, such as "ppl-absolute"."""
        return self._parts[2]

    @property
    def variant(self) -> str:
        """What its name ends in where options were not the defaults; else empty."""
        return self._parts[3]

    @property
    def where(self) -> str:
        """Model and texts, and what tells it from the same of other options, for headings."""
        return f"{self.model}, {self.text_set}{self.variant.replace('-', ', options ')}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was made with, by name; empty where that was not recorded."""
        settings = self.made_from.get("settings")
        return settings if isinstance(settings, Mapping) else {}

    def label(self, row: TableRow) -> str:
        """What tells a row from the others: the values of its key."""
        values = [row[column] for column in self.key]
        return " ".join(str(tuple(value) if isinstance(value, list) else value) for value in values)


def pair(label: str, reference: str) -> str:
    """The label of a ratio of two rows of one table, in the table ``…-pairs`` beside it.

    >>> pair("0.5", "0.9")
    '0.5 over 0.9'
    """
    return f"{label} over {reference}"


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
class Number(Interval):
    """One number that a verdict rests on, with its interval, and what it is of."""

    what: str

    @classmethod
    def named(cls, what: str, interval: Interval) -> Number:
        """An interval with its name."""
        return cls(interval.value, interval.low, interval.high, what)


@dataclass(frozen=True)
class Transfer:
    """What a model shows of a claim that is about another one.

    Attributes:
        model: its slug, the first part of its tables' names.
        answer: one of `TRANSFERS`.
        why, numbers, tables: as in `Verdict`.
    """

    model: str
    answer: str
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
        about: the models that it is about, such as "EleutherAI/pythia-70m", or "any model".
        expected: the published value or direction, for people: "57.48", "rises as keep falls".
        tolerance: what still counts as the same, for people: "2 %"; empty where there is nothing to allow for.
        verdict: one of `VERDICTS`.
        why: one generated sentence with the numbers; for "not testable here", what is missing.
        numbers: what the sentence rests on; empty where there were no tables.
        needs: for "open" and "not testable here", what would settle it; else empty.
        transfers: what each other model shows.
        tables: names of the tables that it was judged by; empty where there were none.
        own: the verdict on each model that the claim is about and that has tables, by the model's slug.
        own_only: whether the claim is one of which no other model can say anything, such as a perplexity.
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
    transfers: Sequence[Transfer] = ()
    tables: Sequence[str] = ()
    own: Mapping[str, str] = field(default_factory=dict)
    own_only: bool = False

    @property
    def reason(self) -> str:
        """What follows the verdict's name: why, and what it would take."""
        sentences = [f". {self.why}"] if self.tables else []
        if self.needs:
            sentences.append(f"{'Needs' if sentences else ': needs'} {self.needs}.")
        return " ".join(sentences)

    @property
    def rests_on(self) -> set[str]:
        """Names of the tables behind it, those of other models too."""
        return {*self.tables, *(name for transfer in self.transfers for name in transfer.tables)}


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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a cell holds a number; NaN is none."""
    return isinstance(value, int | float) and value == value
