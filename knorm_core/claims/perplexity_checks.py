"""Checks of perplexity and of the cache behind it: see `knorm_core.claims.checks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from knorm_core.claims import rules
from knorm_core.claims.checks import MORE_ROUNDS, MORE_TEXTS, Answer, check
from knorm_core.claims.tables import Missing, Tables, describe, find_row, interval, named_after, number
from knorm_core.results.interval import Interval
from knorm_core.results.records import Number, Table


@check()
def cell_value(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    column: str,
    expected: float,
    source_texts: int,
    tolerance: float = 0.0,
) -> Answer:
    """The cell is the published number, which comes from ``source_texts`` texts, within ``tolerance`` per cent."""
    table = tables.table(name)
    labelled = find_row(table, row)
    value, texts = interval(table, labelled, column), number(table, labelled, "texts")
    ratio = rules.against_published(value, expected, texts=texts, source_texts=source_texts)
    what = f"{column.replace('_', ' ')} at {describe(row)}"
    return Answer(
        rules.cell_value(value, expected, tolerance, texts=texts, source_texts=source_texts),
        f"{what} is {value.value:g} over {texts:g} texts, claimed {expected:g} over {source_texts}, which is {ratio}",
        (Number.named(what, value), Number.named(f"{what}, over what is claimed", ratio)),
        MORE_TEXTS,
    )


@check(of_any_weights=True)
def count(tables: Tables, name: str, *, row: Mapping[str, Any], column: str, expected: float) -> Answer:
    """The cell, a count, is the one that is claimed."""
    table = tables.table(name)
    value = number(table, find_row(table, row), column)
    what = f"{column.replace('_', ' ')} at {describe(row)}"
    why = f"{what} is {value:g}, claimed {expected:g}"
    return Answer(rules.count(value, expected), why, (Number.named(what, Interval.exact(value)),))


@check(of_any_weights=True)
def figures(
    tables: Tables, name: str, *, label: str, column: str, figures: Mapping[str, float], tolerance: float
) -> Answer:
    """Every row that ``label`` names has in ``column`` the figure that was printed, within ``tolerance`` per cent."""
    table = tables.table(name)
    values = {row: number(table, find_row(table, {label: row}), column) for row in figures}
    holds = rules.all_of([rules.figure(value, figures[row], tolerance) for row, value in values.items()])
    why = ", ".join(f"{row}: {value:.4g} for {figures[row]:g}" for row, value in values.items())
    return Answer(holds, why, _numbers({row: Interval.exact(value) for row, value in values.items()}))


@check()
def change(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    expected: float | Sequence[float],
    tolerance: float = 0.0,
    column: str = "ratio",
) -> Answer:
    """The change against keep ratio 1 is ``expected`` per cent, or between two values, give or take ``tolerance``."""
    table = tables.table(name)
    ratio = interval(table, find_row(table, row), column)
    ends = [expected] if isinstance(expected, int | float) else list(expected)
    claimed = " to ".join(f"{end:+g} %".replace("-", "−") for end in ends)
    why = f"{ratio} at {describe(row)}, claimed {claimed}"
    needs = MORE_ROUNDS if name.startswith("latency/") else MORE_TEXTS
    return Answer(rules.change(ratio, ends, tolerance), why, (Number.named(describe(row), ratio),), needs)


@check()
def no_loss(tables: Tables, name: str, *, row: Mapping[str, Any], tolerance: float) -> Answer:
    """The row is no more than ``tolerance`` per cent worse than no eviction."""
    table = tables.table(name)
    ratio = interval(table, find_row(table, row))
    why = f"{ratio} at {describe(row)}"
    return Answer(rules.no_loss(ratio, tolerance), why, (Number.named(describe(row), ratio),), MORE_TEXTS)


@check()
def no_difference(
    tables: Tables, name: str, *, row: Mapping[str, Any], reference: Mapping[str, Any], tolerance: float
) -> Answer:
    """Two rows differ by no more than ``tolerance`` per cent either way."""
    table = tables.table(name)
    ratio = tables.between(name, find_row(table, reference), find_row(table, row))
    why = f"{ratio} at {describe(row)} against {describe(reference)}"
    return Answer(rules.no_difference(ratio, tolerance), why, (Number.named(describe(row), ratio),), MORE_TEXTS)


@check()
def rises(tables: Tables, name: str, *, keep_ratios: Sequence[float]) -> Answer:
    """Perplexity rises at every step from one keep ratio to the next lower one."""
    ratios = sorted(keep_ratios, reverse=True)
    steps = {
        f"from keep {higher:g} to {lower:g}": _between_ratios(tables, name, higher, lower)
        for higher, lower in pairwise(ratios)
    }
    return Answer(rules.rises([*steps.values()]), _listed(steps), _numbers(steps), MORE_TEXTS)


@check()
def worst(tables: Tables, name: str, *, keep_ratio: float, keep_ratios: Sequence[float]) -> Answer:
    """``keep_ratio`` has the highest perplexity of all."""
    return _extreme(tables, name, keep_ratio, keep_ratios, highest=True)


@check()
def mildest(tables: Tables, name: str, *, keep_ratio: float, keep_ratios: Sequence[float]) -> Answer:
    """``keep_ratio`` has the lowest perplexity of all."""
    return _extreme(tables, name, keep_ratio, keep_ratios, highest=False)


@check()
def better(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    reference: Mapping[str, Any],
    keep_ratios: Sequence[float],
    instead: Mapping[str, Any] | None = None,
) -> Answer:
    """``row``, or ``instead`` where it was run, has a lower perplexity than ``reference``, at every keep ratio."""
    table = tables.table(name)
    if instead and all(_has_row(table, {**instead, "keep_ratio": keep}) for keep in keep_ratios):
        row = instead
    ratios = {
        f"at keep {keep:g}": tables.between(
            name, *(find_row(table, {**labels, "keep_ratio": keep}) for labels in (row, reference))
        )
        for keep in keep_ratios
    }
    why = f"{describe(reference)} against {describe(row)}: {_listed(ratios)}"
    return Answer(rules.better([*ratios.values()]), why, _numbers(ratios), MORE_TEXTS)


def _has_row(table: Table, labels: Mapping[str, Any]) -> bool:
    try:
        find_row(table, labels)
    except Missing:
        return False
    return True


@check(of_any_weights=True)
def never_fires(tables: Tables, name: str, *, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """Nothing is evicted in any of these rows."""
    return _evictions(tables, name, rows, lambda evictions: evictions == 0)


@check(of_any_weights=True)
def fires(tables: Tables, name: str, *, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """Something is evicted in each of these rows."""
    return _evictions(tables, name, rows, lambda evictions: evictions > 0)


@check()
def dilutes(
    tables: Tables, name: str, *, diluted: Mapping[str, Any], whole: Mapping[str, Any], keep_ratios: Sequence[float]
) -> Answer:
    """At every keep ratio, the ``diluted`` row shows less of the change that the ``whole`` row shows."""
    table = tables.table(name)
    answers, clauses, numbers = [], [], []
    for keep in keep_ratios:
        rows = [find_row(table, {**labels, "keep_ratio": keep}) for labels in (whole, diluted)]
        full, less = (interval(table, row) for row in rows)
        answers.append(rules.dilutes(full, tables.between(name, *rows)))
        clauses.append(f"{full} becomes {less} at keep {keep:g}")
        numbers += [Number.named(f"keep {keep:g}, whole", full), Number.named(f"keep {keep:g}, diluted", less)]
    return Answer(rules.all_of(answers), ", ".join(clauses), tuple(numbers), MORE_TEXTS)


@check()
def shrinks_with_size(tables: Tables, name: str, *, models: Sequence[str], row: Mapping[str, Any]) -> Answer:
    """The change at ``row`` is smaller in every larger one of these models (smallest first, two or more measured)."""
    measured: dict[str, Interval] = {}
    for model in models:
        for slug in named_after(tables.results, model):
            try:
                table = tables.table(name, slug)
            except Missing:
                continue
            measured[f"for {model}"] = interval(table, find_row(table, row))
            break
    if len(measured) < 2:
        raise Missing(f"there is a table {name} of {len(measured)} of these models: {', '.join(models)}")
    steps = [rules.unpaired(smaller, larger) for smaller, larger in pairwise(measured.values())]
    why = f"at {describe(row)}: {_listed(measured)}"
    return Answer(rules.shrinks(steps), why, _numbers(measured), MORE_TEXTS)


def _between_ratios(tables: Tables, name: str, reference: float, keep_ratio: float) -> Interval:
    table = tables.table(name)
    return tables.between(name, *(find_row(table, {"keep_ratio": keep}) for keep in (reference, keep_ratio)))


def _extreme(tables: Tables, name: str, keep_ratio: float, keep_ratios: Sequence[float], highest: bool) -> Answer:
    others = {
        f"keep {keep:g} against {keep_ratio:g}": _between_ratios(tables, name, keep_ratio, keep)
        for keep in keep_ratios
        if keep != keep_ratio
    }
    holds = rules.extreme([*others.values()], highest=highest)
    return Answer(holds, _listed({f"at {what}": ratio for what, ratio in others.items()}), _numbers(others), MORE_TEXTS)


def _evictions(tables: Tables, name: str, rows: Sequence[Mapping[str, Any]], right: Callable[[float], bool]) -> Answer:
    table = tables.table(name)
    clauses, evictions = [], {}
    for labels in rows:
        row = find_row(table, labels)
        fired = number(table, row, "evictions_per_layer")
        most = f" and at most {number(table, row, 'peak_cache'):g} entries" if "peak_cache" in row else ""
        clauses.append(f"{describe(labels)} has {fired:g} evictions per layer{most}")
        evictions[f"evictions per layer, {describe(labels)}"] = Interval.exact(fired)
    holds = all(right(each.value) for each in evictions.values())
    return Answer(holds, "; ".join(clauses), _numbers(evictions))


def _listed(ratios: Mapping[str, Interval]) -> str:
    return ", ".join(f"{ratio} {where}" for where, ratio in ratios.items())


def _numbers(ratios: Mapping[str, Interval]) -> tuple[Number, ...]:
    return tuple(Number.named(what, ratio) for what, ratio in ratios.items())
