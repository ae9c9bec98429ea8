"""What moved between two results: circumstances, cells, tables that only one has, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knorm_core.compare.cells import changed_cells, relative_change
from knorm_core.results.records import Baseline, Cell, Results, Table


@dataclass(frozen=True)
class Difference:
    """A version, a property of the machine or an option that is not the same; "" where one has none."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Moved:
    """One cell that is not the same; None in place of a number that is not there.

    Attributes:
        absolute: after - before; None where the two cannot be subtracted.
        relative: its size relative to the number before; infinity where there is none.
        beyond_tolerance: whether it is more than the table's golden tolerance; None for a table without a baseline.
        beyond_interval: whether either number lies outside the other's 95 % interval; None where there is none.
    """

    table: str
    row: str
    column: str
    before: Any
    after: Any
    absolute: float | None
    relative: float
    beyond_tolerance: bool | None
    beyond_interval: bool | None


@dataclass(frozen=True)
class Flip:
    """A claim whose verdict is not the same; "" where only one of the two has judged it."""

    id: str
    claim: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """All that moved. ``only_before`` and ``only_after`` name tables that only one of the two has."""

    differences: tuple[Difference, ...]
    moved: tuple[Moved, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    flips: tuple[Flip, ...]

    @property
    def beyond_tolerance(self) -> bool:
        """Whether any cell moved by more than its golden tolerance."""
        return any(cell.beyond_tolerance for cell in self.moved)


def compare(before: Results, after: Results) -> Comparison:
    """Compare two results; the cells of a table beyond tolerance first, then those beyond an interval, then by size."""
    old, new = ({table.name: table for table in results.tables} for results in (before, after))
    return Comparison(
        differences=tuple(_differences(before, after)),
        moved=tuple(cell for name in old if name in new for cell in _moved(old[name], new[name])),
        only_before=tuple(name for name in old if name not in new),
        only_after=tuple(name for name in new if name not in old),
        flips=tuple(_flips(before, after)),
    )


def _differences(before: Results, after: Results) -> list[Difference]:
    old, new = _circumstances(before), _circumstances(after)
    names = dict.fromkeys((*old, *new))
    pairs = [Difference(name, old.get(name, ""), new.get(name, "")) for name in names]
    return [pair for pair in pairs if pair.before != pair.after]


def _circumstances(results: Results) -> dict[str, str]:
    """Versions, machine and options by name; several values where the runs of one folder differ."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        options = {name: value for name, value in run.options.items() if name != "knorm_report"}
        for name, value in {**run.versions, **run.machine, **options}.items():
            found.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _moved(before: Table, after: Table) -> list[Moved]:
    old, new = _labelled(before), _labelled(after)
    baseline = next((table.baseline for table in (before, after) if table.baseline.status != "none"), None)
    cells = [
        Moved(
            before.name,
            cell.row,
            cell.column,
            cell.baseline,
            cell.value,
            _absolute(cell),
            relative_change(cell),
            None if baseline is None else _beyond_tolerance(cell, baseline),
            _beyond_interval(cell, old.get(cell.row, {}), new.get(cell.row, {})),
        )
        for cell in changed_cells(old, new)
    ]
    return sorted(cells, key=lambda cell: (not cell.beyond_tolerance, not cell.beyond_interval, -cell.relative))


def _labelled(table: Table) -> dict[str, dict[str, Any]]:
    """Rows by label, without the columns that make the label."""
    return {
        " ".join(str(row[column]) for column in table.key): {
            column: value for column, value in row.items() if column not in table.key
        }
        for row in table.rows
    }


def _absolute(cell: Cell) -> float | None:
    if not _numbers(cell.baseline, cell.value):
        return None
    return cell.value - cell.baseline  # type: ignore[operator]


def _beyond_tolerance(cell: Cell, baseline: Baseline) -> bool:
    if not _numbers(cell.baseline, cell.value):
        return True
    was, now = float(cell.baseline), float(cell.value)  # type: ignore[arg-type]
    return not abs(now - was) <= baseline.atol + baseline.rtol * abs(was)  # NaN is beyond


def _beyond_interval(cell: Cell, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool | None:
    if not _numbers(cell.baseline, cell.value):
        return None
    found = []
    for row, other in ((old, cell.value), (new, cell.baseline)):
        low, high = row.get(f"{cell.column}_low"), row.get(f"{cell.column}_high")
        if _numbers(low, high):
            found.append(not low <= other <= high)  # type: ignore[operator]
    return any(found) if found else None


def _flips(before: Results, after: Results) -> list[Flip]:
    old, new = ({verdict.id: verdict for verdict in results.verdicts} for results in (before, after))
    flips = []
    for name, verdict in {**new, **old}.items():
        was, now = (verdicts[name].verdict if name in verdicts else "" for verdicts in (old, new))
        if was != now:
            flips.append(Flip(name, verdict.claim, was, now))
    return flips


def _numbers(*values: Any) -> bool:
    return all(
        isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value)) for value in values
    )
