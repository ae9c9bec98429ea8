"""What changed against the baselines, table by table and cell by cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from knorm_core.compare import relative_change
from knorm_core.report.section import MOST_ROWS, Absent, Section, ShownTable
from knorm_core.report.words import counted, listed, number
from knorm_core.results.records import ChangedCell, Results, Table

_FIRST = ("changed", "other source", "damaged", "missing", "same")
_MEANING = {
    "changed": "beyond the tolerance",
    "other source": "made from another model, text or setting",
    "damaged": "its file cannot be read",
    "missing": "no baseline yet: pytest --force-regen makes it",
    "same": "within the tolerance",
}


def section(results: Results) -> Section:
    """A sentence, one row per table, and every cell that differs."""
    tables = [table for table in results.tables if table.baseline.status != "none"]
    tables.sort(key=lambda table: _FIRST.index(table.baseline.status) if table.baseline.status in _FIRST else -1)
    cells = [(table, cell) for table in tables for cell in table.baseline.cells]
    return Section(
        "baselines",
        "What changed against the baselines",
        "Do these numbers agree with those that the suite is pinned to?",
        tables=([_by_table(tables)] if tables else []) + ([_by_cell(cells)] if cells else []),
        absent=[] if tables else [Absent("tables that have a baseline", "tox")],
        template="baselines.html",
        content={"finding": finding(tables)},
    )


def finding(tables: Sequence[Table]) -> str:
    """Whether every table agrees with its baseline, and how far the furthest cell is from its own."""
    if not tables:
        return ""
    counts = Counter(table.baseline.status for table in tables)
    parts = [f"{counts[status]} {_SENTENCES.get(status, status)}" for status in counts if status != "same"]
    if parts:
        head = f"Of {counted(len(tables), 'table')} {listed(parts)}"
    elif len(tables) > 1:
        head = f"All {counted(len(tables), 'table')} agree with their baselines"
    else:
        head = "The table agrees with its baseline"
    cells = [(table, cell) for table in tables for cell in table.baseline.cells]
    beyond = [pair for pair in cells if not pair[0].baseline.allows(pair[1].column, pair[1].baseline, pair[1].value)]
    if not cells:
        return f"{head}; no cell differs."
    table, cell = max(beyond or cells, key=lambda pair: relative_change(pair[1]))
    if not beyond:
        return f"{head}; every cell is within the tolerance, the furthest by {relative_change(cell):.1e}."
    furthest = (
        "the one cell beyond the tolerance is"
        if len(beyond) == 1
        else (f"of {len(beyond):,} cells beyond the tolerance, the furthest is")
    )
    return f"{head}; {furthest} {_described(table, cell)}."


_SENTENCES = {
    "changed": "changed",
    "other source": "made from another model, text or setting",
    "damaged": "with a baseline that cannot be read",
    "missing": "without a baseline yet",
}


def _described(table: Table, cell: ChangedCell) -> str:
    by = relative_change(cell)
    before, now = number(cell.baseline), number(cell.value)
    if before == now:
        before, now = (
            f"{value:.12g}" if isinstance(value, float) else str(value) for value in (cell.baseline, cell.value)
        )
    relative = f", {by:.1e} relative" if math.isfinite(by) else ""
    return f"{cell.column} at {cell.row} of {table.name} ({before} → {now}{relative})"


def _by_table(tables: Sequence[Table]) -> ShownTable:
    return ShownTable(
        "Every table and its baseline",
        ["table", "status", "meaning", "cells that differ", "largest relative change", "tolerance, relative"],
        [
            [
                table.name,
                table.baseline.status,
                _MEANING.get(table.baseline.status, ""),
                len(table.baseline.cells),
                max((relative_change(cell) for cell in table.baseline.cells), default=0.0),
                table.baseline.rtol,
            ]
            for table in tables
        ],
    )


def _by_cell(cells: Sequence[tuple[Table, ChangedCell]]) -> ShownTable:
    return ShownTable(
        "Every cell that differs",
        ["table", "row", "column", "baseline", "now", "relative change"],
        [
            [table.name, cell.row, cell.column, cell.baseline, cell.value, relative_change(cell)]
            for table, cell in cells[:MOST_ROWS]
        ],
        left_out=max(0, len(cells) - MOST_ROWS),
    )
