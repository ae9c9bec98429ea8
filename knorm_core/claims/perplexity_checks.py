"""Checks of perplexity and of the cache behind it: see `knorm_core.claims.checks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from knorm_core.claims.answer import MORE_TOKENS, Outcome, all_of, figure, shown
from knorm_core.claims.tables import (
    Interval,
    Missing,
    Tables,
    between,
    describe,
    find_row,
    interval,
    named_after,
    number,
)
from knorm_core.results.records import Number, Table


def cell_value(
    tables: Tables, name: str, *, row: Mapping[str, Any], column: str, expected: float, tolerance: float = 0.0
) -> Outcome:
    """The cell is within ``tolerance`` per cent of ``expected``."""
    table = tables.table(name)
    value = number(table, find_row(table, row), column)
    what = f"{column.replace('_', ' ')} at {describe(row)}"
    why = f"{what} is {value:g}, claimed {expected:g}"
    return Outcome(abs(value / expected - 1) <= tolerance / 100, why, (Number(what, value),))


def change(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    expected: float | Sequence[float],
    tolerance: float = 0.0,
    column: str = "ratio",
) -> Outcome:
    """The change against keep ratio 1 is ``expected`` per cent, or between two values, give or take ``tolerance``.

    It does not hold where the whole interval lies outside that range, and is open where only the estimate does.
    """
    table = tables.table(name)
    found = interval(table, find_row(table, row), column)
    ends = [expected] * 2 if isinstance(expected, int | float) else list(expected)
    low, high = 1 + (ends[0] - tolerance) / 100, 1 + (ends[1] + tolerance) / 100
    holds: bool | None = low <= found.value <= high
    if not holds and found.low <= high and found.high >= low:
        holds = None
    claimed = " to ".join(f"{end:+g} %" for end in dict.fromkeys(ends))
    return Outcome(
        holds, f"{shown(found)} at {describe(row)}, claimed {claimed}", (figure(describe(row), found),), MORE_TOKENS
    )


def no_loss(tables: Tables, name: str, *, row: Mapping[str, Any], tolerance: float) -> Outcome:
    """The row is no more than ``tolerance`` per cent worse than no eviction, its interval included.

    It does not hold where the interval excludes no change, and is open where it holds both.
    """
    table = tables.table(name)
    found = interval(table, find_row(table, row))
    holds = True if found.high <= 1 + tolerance / 100 else False if found.low > 1 else None
    return Outcome(holds, f"{shown(found)} at {describe(row)}", (figure(describe(row), found),), MORE_TOKENS)


def no_difference(
    tables: Tables, name: str, *, row: Mapping[str, Any], reference: Mapping[str, Any], tolerance: float
) -> Outcome:
    """Two rows differ by no more than ``tolerance`` per cent either way, their interval included."""
    table = tables.table(name)
    found = between(*(interval(table, find_row(table, labels)) for labels in (reference, row)))
    same = found.high <= 1 + tolerance / 100 and found.low >= 1 - tolerance / 100
    holds = True if same else None if found.low <= 1 <= found.high else False
    why = f"{shown(found)} at {describe(row)} against {describe(reference)}"
    return Outcome(holds, why, (figure(describe(row), found),), MORE_TOKENS)


def rises(tables: Tables, name: str, *, keep_ratios: Sequence[float]) -> Outcome:
    """Perplexity rises at every step from one keep ratio to the next lower one, beyond the interval in all.

    It does not hold where any lower keep ratio is shown to be better than a higher one.
    """
    table = tables.table(name)
    found = _by_ratio(table, keep_ratios)
    ordered = sorted(found.items(), reverse=True)
    fallen = [(one, other) for one, other in combinations(ordered, 2) if between(one[1], other[1]).high < 1]
    rising = all(other.value > one.value for (_, one), (_, other) in pairwise(ordered))
    shown_in_all = between(ordered[0][1], ordered[-1][1]).low > 1
    why = "change " + ", ".join(f"{shown(ratio)} at keep {keep:g}" for keep, ratio in ordered if keep < 1)
    if fallen:
        (higher, _), (lower, _) = fallen[0]
        why += f"; keep {lower:g} is better than {higher:g}"
    numbers = tuple(figure(f"keep {keep:g}", ratio) for keep, ratio in ordered)
    return Outcome(False if fallen else True if rising and shown_in_all else None, why, numbers, MORE_TOKENS)


def worst(tables: Tables, name: str, *, keep_ratio: float, keep_ratios: Sequence[float]) -> Outcome:
    """``keep_ratio`` has the highest perplexity of all; not where another is shown to be worse."""
    return _extreme(tables, name, keep_ratio, keep_ratios, highest=True)


def mildest(tables: Tables, name: str, *, keep_ratio: float, keep_ratios: Sequence[float]) -> Outcome:
    """``keep_ratio`` has the lowest perplexity of all; not where another is shown to be better."""
    return _extreme(tables, name, keep_ratio, keep_ratios, highest=False)


def better(
    tables: Tables,
    name: str,
    *,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    keep_ratios: Sequence[float],
) -> Outcome:
    """The rows of ``one`` have a lower perplexity than those of ``other``, at every keep ratio."""
    table = tables.table(name)
    holds: list[bool | None] = []
    clauses, numbers = [], []
    for keep in keep_ratios:
        first, second = (interval(table, find_row(table, {**labels, "keep_ratio": keep})) for labels in (one, other))
        found = between(first, second)
        holds.append(True if found.low > 1 else False if found.high < 1 else None)
        clauses.append(f"{shown(found)} at keep {keep:g}")
        numbers.append(figure(f"keep {keep:g}", found))
    why = f"{describe(other)} against {describe(one)}: {', '.join(clauses)}"
    return Outcome(all_of(holds), why, tuple(numbers), MORE_TOKENS)


def never_fires(tables: Tables, name: str, *, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """Nothing is evicted in any of these rows."""
    return _evictions(tables, name, rows, lambda count: count == 0)


def fires(tables: Tables, name: str, *, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """Something is evicted in each of these rows."""
    return _evictions(tables, name, rows, lambda count: count > 0)


def dilutes(
    tables: Tables, name: str, *, diluted: Mapping[str, Any], whole: Mapping[str, Any], keep_ratios: Sequence[float]
) -> Outcome:
    """At every keep ratio, the ``diluted`` row shows less of the change that the ``whole`` row shows."""
    table = tables.table(name)
    holds, clauses, numbers = [], [], []
    for keep in keep_ratios:
        pair = [interval(table, find_row(table, {**labels, "keep_ratio": keep})) for labels in (whole, diluted)]
        full, less = (abs(math.log(ratio.value)) for ratio in pair)
        holds.append(less < full)
        clauses.append(
            f"{(pair[0].value - 1) * 100:+.1f} % becomes {(pair[1].value - 1) * 100:+.1f} % at keep {keep:g}"
        )
        numbers += [
            figure(f"keep {keep:g}, {what}", ratio) for what, ratio in zip(("whole", "diluted"), pair, strict=True)
        ]
    return Outcome(all(holds), ", ".join(clauses), tuple(numbers))


def shrinks_with_size(tables: Tables, name: str, *, models: Sequence[str], row: Mapping[str, Any]) -> Outcome:
    """The change at ``row`` is smaller in every larger one of these models (smallest first, two or more measured)."""
    measured: dict[str, Interval] = {}
    for model in models:
        for slug in named_after(tables.results, model):
            try:
                table = tables.table(name, slug)
            except Missing:
                continue
            measured[model] = interval(table, find_row(table, row))
            break
    if len(measured) < 2:
        raise Missing(f"there is a table {name} of {len(measured)} of these models: {', '.join(models)}")
    steps = [between(one, other) for one, other in pairwise(measured.values())]
    holds = all_of([True if step.high < 1 else False if step.low >= 1 else None for step in steps])
    why = f"at {describe(row)}: " + ", ".join(f"{shown(ratio)} for {model}" for model, ratio in measured.items())
    return Outcome(holds, why, tuple(figure(model, ratio) for model, ratio in measured.items()), MORE_TOKENS)


def _by_ratio(table: Table, keep_ratios: Sequence[float]) -> dict[float, Interval]:
    return {keep: interval(table, find_row(table, {"keep_ratio": keep})) for keep in keep_ratios}


def _extreme(tables: Tables, name: str, keep_ratio: float, keep_ratios: Sequence[float], highest: bool) -> Outcome:
    found = _by_ratio(tables.table(name), keep_ratios)
    # Every other row over this one: below 1 where this one is the worse.
    others = {keep: between(found[keep_ratio], ratio) for keep, ratio in found.items() if keep != keep_ratio}
    confirming = all(ratio.high < 1 if highest else ratio.low > 1 for ratio in others.values())
    beyond = [keep for keep, ratio in others.items() if (ratio.low > 1 if highest else ratio.high < 1)]
    why = "change " + ", ".join(f"{shown(ratio)} at keep {keep:g}" for keep, ratio in found.items())
    if beyond:
        why += f"; {'worse' if highest else 'better'} than {keep_ratio:g}: {', '.join(f'{keep:g}' for keep in beyond)}"
    numbers = tuple(figure(f"keep {keep:g}", ratio) for keep, ratio in found.items())
    return Outcome(True if confirming else False if beyond else None, why, numbers, MORE_TOKENS)


def _evictions(tables: Tables, name: str, rows: Sequence[Mapping[str, Any]], right: Callable[[float], bool]) -> Outcome:
    table = tables.table(name)
    clauses, numbers = [], []
    for labels in rows:
        row = find_row(table, labels)
        count, peak = (number(table, row, column) for column in ("evictions_per_layer", "peak_cache"))
        clauses.append(f"{describe(labels)} has {count:g} evictions per layer and at most {peak:g} entries")
        numbers.append(Number(f"evictions per layer, {describe(labels)}", count))
    return Outcome(all(right(one.value) for one in numbers), "; ".join(clauses), tuple(numbers))
