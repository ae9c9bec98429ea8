"""What moved between two results: circumstances, cells, tables that only one has, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from knorm_core.results.records import VOCABULARY, ChangedCell, Results, Table, TableRow, is_number

LabelledRows = Mapping[str, TableRow]  # label -> column -> number

# What is measured or noted beside the numbers rather than what decides them.
_NOT_SOURCES = ("environment", "busy", "failures", "gains_from", "versions", VOCABULARY)


@dataclass(frozen=True)
class Difference:
    """A version, a property of the machine, an option, or what tables were made from; "" where one has none."""

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
    """All that moved.

    Attributes:
        common: names of the tables that both have, as the first has them.
        only_before, only_after: names of the tables that only one of the two has.
    """

    differences: tuple[Difference, ...]
    moved: tuple[Moved, ...]
    common: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    flips: tuple[Flip, ...]

    @property
    def beyond_tolerance(self) -> bool:
        """Whether any cell moved by more than its golden tolerance."""
        return any(cell.beyond_tolerance for cell in self.moved)


def compare(before: Results, after: Results) -> Comparison:
    """Compare two results; the cells of a table beyond tolerance first, then those beyond an interval, then by size."""
    pairs = list(_pairs(before, after))
    matched = [{id(pair[side]) for pair in pairs} for side in (0, 1)]  # a name may stand there twice
    return Comparison(
        differences=(*_circumstances_that_differ(before, after), *_sources_that_differ(pairs)),
        moved=tuple(cell for pair in pairs for cell in _moved(*pair)),
        common=tuple(old.name for old, _ in pairs),
        only_before=tuple(table.name for table in before.tables if id(table) not in matched[0]),
        only_after=tuple(table.name for table in after.tables if id(table) not in matched[1]),
        flips=tuple(_flips(before, after)),
    )


def _pairs(before: Results, after: Results) -> Iterator[tuple[Table, Table]]:
    """Tables that were made with the same settings, under whatever name; then those of one name."""
    left = list(after.tables)
    old = list(before.tables)
    for same in (_same_setting, lambda table, other: table.name == other.name):
        for table in list(old):
            match = next((other for other in left if same(table, other)), None)
            if match is not None:
                old = [each for each in old if each is not table]
                left = [each for each in left if each is not match]
                yield table, match


def _same_setting(table: Table, other: Table) -> bool:
    places = [(each.model, each.text_set, each.kind) for each in (table, other)]
    if places[0] != places[1]:
        return False
    return table.settings == other.settings if table.settings else table.name == other.name


def _circumstances_that_differ(before: Results, after: Results) -> list[Difference]:
    old, new = _circumstances(before), _circumstances(after)
    pairs = [Difference(name, old.get(name, ""), new.get(name, "")) for name in dict.fromkeys((*old, *new))]
    return [pair for pair in pairs if pair.before != pair.after]


def _circumstances(results: Results) -> dict[str, str]:
    """Versions, machine and options by name; several values where the runs of one folder differ."""
    values: dict[str, dict[str, None]] = {}
    for run in results.runs:
        options = {name: value for name, value in run.options.items() if name != "knorm_report"}
        for name, value in {**run.versions, **run.machine, **options}.items():
            values.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(each) for name, each in values.items()}


def _sources_that_differ(pairs: Iterable[tuple[Table, Table]]) -> list[Difference]:
    """What tables of both were made from: models, texts and settings that are not the same, and of which tables."""
    tables: dict[tuple[str, str, str], list[str]] = {}
    for old, new in pairs:
        before, after = _sources(old), _sources(new)
        for name in dict.fromkeys((*before, *after)):
            was, now = (str(sources.get(name, "")) for sources in (before, after))
            if was != now:
                tables.setdefault((name, was, now), []).append(old.name)
    return [
        Difference(f"{name} of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}", was, now)
        for (name, was, now), names in tables.items()
    ]


def _sources(table: Table) -> dict[str, Any]:
    plain = {name: value for name, value in table.made_from.items() if name not in (*_NOT_SOURCES, "settings")}
    return plain | dict(table.settings)


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
            None if baseline is None else not baseline.allows(cell.column, cell.baseline, cell.value),
            _beyond_interval(cell, old.get(cell.row, {}), new.get(cell.row, {})),
        )
        for cell in changed_cells(old, new)
    ]
    return sorted(cells, key=lambda cell: (not cell.beyond_tolerance, not cell.beyond_interval, -cell.relative))


def _labelled(table: Table) -> dict[str, dict[str, Any]]:
    """Rows by label, without the columns that make the label; of several rows with one label each has its number."""
    rows: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        label, count = table.label(row), 1
        while (name := label if count == 1 else f"{label} (row {count} of this label)") in rows:
            count += 1
        rows[name] = {column: value for column, value in row.items() if column not in table.key}
    return rows


def _absolute(cell: ChangedCell) -> float | None:
    if not is_number(cell.baseline) or not is_number(cell.value):
        return None
    return cell.value - cell.baseline


def _beyond_interval(cell: ChangedCell, old: TableRow, new: TableRow) -> bool | None:
    if not is_number(cell.baseline) or not is_number(cell.value):
        return None
    beyond = [
        not low <= other <= high
        for row, other in ((old, cell.value), (new, cell.baseline))
        if is_number(low := row.get(f"{cell.column}_low")) and is_number(high := row.get(f"{cell.column}_high"))
    ]
    return any(beyond) if beyond else None


def _flips(before: Results, after: Results) -> list[Flip]:
    old, new = ({verdict.id: verdict for verdict in results.verdicts} for results in (before, after))
    flips = []
    for name, verdict in {**new, **old}.items():
        was, now = (verdicts[name].verdict if name in verdicts else "" for verdicts in (old, new))
        if was != now:
            flips.append(Flip(name, verdict.claim, was, now))
    return flips


def changed_cells(before: LabelledRows, after: LabelledRows) -> list[ChangedCell]:
    """Every cell of which the two differ, whatever the size of the difference; the largest relative one first.

    A row or column that only one of them has counts as differing in each of its cells.

    >>> for cell in changed_cells({"0.5": {"ppl": 4.0}}, {"0.5": {"ppl": 5.0}, "0.1": {"ppl": 6.0}}): print(cell)
    ChangedCell(row='0.1', column='ppl', baseline=None, value=6.0)
    ChangedCell(row='0.5', column='ppl', baseline=4.0, value=5.0)
    """
    labels = [*before, *(label for label in after if label not in before)]
    cells = []
    for label in labels:
        old, new = before.get(label, {}), after.get(label, {})
        for column in [*old, *(column for column in new if column not in old)]:
            was, now = old.get(column), new.get(column)
            if not _same(was, now):
                cells.append(ChangedCell(label, str(column), was, now))
    return sorted(cells, key=relative_change, reverse=True)


def relative_change(cell: ChangedCell) -> float:
    """By how much a cell moved, relative to its baseline; infinity where the two cannot be subtracted."""
    if not isinstance(cell.baseline, int | float) or not isinstance(cell.value, int | float):
        return math.inf
    if cell.baseline == 0:
        return math.inf if cell.value else 0.0
    change = abs((cell.value - cell.baseline) / cell.baseline)
    return change if change == change else math.inf  # NaN or infinite on one side


def _same(was: Any, now: Any) -> bool:
    """Whether two cells are equal; NaN is itself, in a list too."""
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(map(_same, was, now))
    return bool(was == now) or all(isinstance(each, float) and math.isnan(each) for each in (was, now))
