"""What moved between two tables of the same name, cell by cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from knorm_core.results.records import Cell

Rows = Mapping[str, Mapping[str, Any]]  # label -> column -> number


def changed_cells(before: Rows, after: Rows) -> list[Cell]:
    """Every cell of which the two differ, whatever the size of the difference; the largest relative one first.

    A row or column that only one of them has counts as differing in each of its cells.

    >>> changed_cells({"0.5": {"ppl": 4.0}}, {"0.5": {"ppl": 5.0}, "0.1": {"ppl": 6.0}})
    [Cell(row='0.1', column='ppl', baseline=None, value=6.0), Cell(row='0.5', column='ppl', baseline=4.0, value=5.0)]
    """
    labels = [*before, *(label for label in after if label not in before)]
    cells = []
    for label in labels:
        old, new = before.get(label, {}), after.get(label, {})
        for column in [*old, *(column for column in new if column not in old)]:
            was, now = old.get(column), new.get(column)
            if was != now and not (_is_nan(was) and _is_nan(now)):
                cells.append(Cell(label, str(column), was, now))
    return sorted(cells, key=relative_change, reverse=True)


def relative_change(cell: Cell) -> float:
    """By how much a cell moved, relative to its baseline; infinity where the two cannot be subtracted."""
    if not isinstance(cell.baseline, int | float) or not isinstance(cell.value, int | float):
        return math.inf
    if cell.baseline == 0:
        return math.inf if cell.value else 0.0
    change = abs((cell.value - cell.baseline) / cell.baseline)
    return change if change == change else math.inf  # NaN or infinite on one side


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
