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
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
VERDICTS = ("reproduced", "explained", "refuted", "not testable here")
FILE = "results.jsonl"


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the file and the line."""


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
            another model, text or setting), or "none" (a table that has no baseline by design).
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


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The results of a folder, or of a ``.jsonl`` file named itself.

    Raises:
        ResultsError: (a ValueError) no such file, or a line that is not a record of a known schema version.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"no results at {path} ({error}): pytest -m repro --knorm-report DIR writes them") from None
    records: dict[str, list[Any]] = {"run": [], "table": [], "test": [], "verdict": []}
    version = None
    if lines == [""]:
        raise ResultsError(f"{path} is empty: pytest -m repro --knorm-report DIR writes it")
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line, parse_constant=_refused)
            kind = content.pop("kind")
            if version is None:
                version = content.get("version") if kind == "schema" else None
                if version != SCHEMA_VERSION:
                    raise ResultsError(
                        f"{path} has schema version {version!r}; this knorm reads version {SCHEMA_VERSION}"
                    )
                continue
            records[kind].append(_RECORDS[kind](content))
        except ResultsError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ResultsError(
                f"{path}, line {number}: not a record of results ({type(error).__name__}: {error})"
            ) from None
    return Results(records["run"], records["table"], records["test"], records["verdict"])


def write_results(folder: str | os.PathLike[str], results: Results) -> Path:
    """Write ``results.jsonl`` in one rename; return its path."""
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"kind": "schema", "version": SCHEMA_VERSION}]
    records: tuple[Run | Table | Test | Verdict, ...] = (
        *results.runs, *results.tables, *results.tests, *results.verdicts,
    )  # fmt: skip
    for record in records:
        lines.append({"kind": type(record).__name__.lower()} | dataclasses.asdict(record))
    with tempfile.NamedTemporaryFile(
        # Half a surrogate, as a path that is not UTF-8 has, becomes the escape that JSON has for it.
        "w",
        encoding="utf-8",
        errors="backslashreplace",
        dir=target.parent,
        prefix=".results-",
        delete=False,
    ) as file:
        try:
            for line in lines:
                file.write(json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, target)
    return target


def _table(content: Mapping[str, Any]) -> Table:
    baseline = content["baseline"]
    cells = tuple(Cell(**_floats(cell)) for cell in baseline["cells"])
    rows = [_floats(row) for row in content["rows"]]
    _check_types(Table, {**content, "baseline": None})
    _check_types(Baseline, baseline)
    return Table(**{**content, "rows": rows, "baseline": Baseline(**{**baseline, "cells": cells})})


def _verdict(content: Mapping[str, Any]) -> Verdict:
    if content["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {content['verdict']!r} is none of {', '.join(VERDICTS)}")
    stand_in = content["stand_in"]
    if stand_in is not None:
        stand_in = StandIn(**{**stand_in, "numbers": _numbers(stand_in["numbers"])})
    _check_types(Verdict, {**content, "stand_in": None})
    return Verdict(**{**content, "numbers": _numbers(content["numbers"]), "stand_in": stand_in})


def _numbers(content: Sequence[Mapping[str, Any]]) -> list[Number]:
    return [Number(**_floats(number)) for number in content]


def _plain_record(kind: Any) -> Any:
    def record(content: Mapping[str, Any]) -> Any:
        _check_types(kind, content)
        return kind(**content)

    return record


def _check_types(kind: Any, content: Mapping[str, Any]) -> None:
    """Raise a TypeError where a value is not of its field's type: names are looked up and sorted later."""
    for field_ in dataclasses.fields(kind):
        expected = _TYPES.get(str(field_.type).partition("[")[0])
        value = content.get(field_.name)
        if expected and field_.name in content and not isinstance(value, expected):
            raise TypeError(f"{field_.name} is {value!r}, not {field_.type}")


_TYPES: Mapping[str, Any] = {"str": str, "int": int, "float": int | float, "Mapping": dict, "Sequence": list}

_RECORDS: Mapping[str, Any] = {
    "run": _plain_record(Run),
    "table": _table,
    "test": _plain_record(Test),
    "verdict": _verdict,
}


def jsonable(value: Any) -> Any:
    """What JSON can hold: tuples as lists, scalars of NumPy and torch as Python's, non-finite numbers as objects."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [jsonable(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _floats(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the objects that stand for non-finite numbers back."""
    return {name: float(value["float"]) if isinstance(value, dict) else value for name, value in row.items()}


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
