"""Tables that make a claim hold, fail or stay open: what each check needs, from the claim's own declaration.

One maker per check takes its arguments and what is to come out, and returns rows by table ("" is the table that the
claim names). It knows what the check promises, not how it computes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from knorm_core.claims import Claim
from knorm_core.claims.tables import slugs
from knorm_core.results.records import Table

Rows = list[dict[str, Any]]
NARROW = 0.001


def ratio(value: float, low: float | None = None, high: float | None = None, column: str = "ratio") -> dict[str, float]:
    """A ratio and its interval, narrow unless said otherwise."""
    return {
        column: value,
        f"{column}_low": value - NARROW if low is None else low,
        f"{column}_high": value + NARROW if high is None else high,
    }


def anywhere(value: float) -> dict[str, float]:
    """A ratio that might as well be any other."""
    return ratio(value, 0.01, 100.0)


def cell_value(holds, *, row, column, expected, tolerance=0.0):
    return {"": [{**row, column: expected if holds else expected * (1 + tolerance / 100) + 1}]}


def change(holds, *, row, expected, tolerance=0.0, column="ratio"):
    low, high = (expected, expected) if isinstance(expected, int | float) else expected
    claimed, beyond = 1 + (low + high) / 200, 1 + (high + tolerance + 10) / 100
    found = {True: ratio(claimed, column=column), False: ratio(beyond, column=column)}
    return {"": [{**row, **found.get(holds, ratio(beyond, claimed, beyond + 1, column=column))}]}


def no_loss(holds, *, row, tolerance):
    return {"": [{**row, **{True: ratio(1.0), False: ratio(2.0), None: anywhere(1.0)}[holds]}]}


def no_difference(holds, *, row, reference, tolerance):
    found = {True: ratio(1.5), False: ratio(3.0), None: anywhere(1.5)}[holds]
    return {"": [{**reference, **ratio(1.5)}, {**row, **found}]}


def by_keep_ratio(values: Iterable[float], keep_ratios: Iterable[float], open_: bool) -> Mapping[str, Rows]:
    """Rows of perplexity against keep ratio; no ratio at keep 1 but 1."""
    pairs = zip(sorted(keep_ratios, reverse=True), values, strict=False)
    made = {keep: ratio(1.0) if keep == 1 else anywhere(value) if open_ else ratio(value) for keep, value in pairs}
    return {"": [{"keep_ratio": keep, **row} for keep, row in made.items()]}


def rises(holds, *, keep_ratios):
    values = [1.0, 1.2, 1.4, 1.6]
    return by_keep_ratio(values if holds is not False else [1.0, 1.6, 1.4, 1.2], keep_ratios, holds is None)


def worst(holds, *, keep_ratio, keep_ratios):
    return by_keep_ratio([2.0, 1.4, 1.2] if holds is not False else [1.2, 1.4, 2.0], keep_ratios, holds is None)


def mildest(holds, *, keep_ratio, keep_ratios):
    return worst(holds if holds is None else not holds, keep_ratio=keep_ratio, keep_ratios=keep_ratios)


def better(holds, *, one, other, keep_ratios):
    values = {True: (ratio(1.2), ratio(1.8)), False: (ratio(1.8), ratio(1.2)), None: (anywhere(1.2), anywhere(1.8))}
    pairs = zip((one, other), values[holds], strict=True)
    return {"": [{**labels, "keep_ratio": keep, **row} for labels, row in pairs for keep in keep_ratios]}


def never_fires(holds, *, rows):
    return {"": [{**row, "evictions_per_layer": 0 if holds else 3, "peak_cache": 200} for row in rows]}


def fires(holds, *, rows):
    return never_fires(not holds, rows=rows)


def dilutes(holds, *, diluted, whole, keep_ratios):
    values = zip((whole, diluted), (1.5, 1.1) if holds else (1.1, 1.5), strict=True)
    return {"": [{**labels, "keep_ratio": keep, **ratio(value)} for labels, value in values for keep in keep_ratios]}


def correlation(holds, *, expected):
    return {"": heads({layer: {"spearman": -0.5 if holds else 0.5} for layer in range(4)})}


def attention_loss_stands_out(holds, *, layers):
    return {"": heads({layer: {"alr": 9.0 if (layer in layers) == holds else 1.0} for layer in range(8)})}


def attention_loss_is_low(holds, *, except_layers, expected):
    share = expected / 100 * (0.5 if holds else 1.5)
    return {"": heads({layer: {"alr": share * 10, "alr_random": 10.0} for layer in range(4)})}


def heads(layers: Mapping[int, Mapping[str, float]]) -> Rows:
    return [{"layer": layer, "head": head, **values} for layer, values in layers.items() for head in range(2)]


def recall_at(holds, *, row, expected, tolerance=0.0, uncompressed=None, at_most=False):
    # One prompt of two leaves most shares open; all or none of a hundred decide.
    matches, of = (1, 2) if holds is None else (100 if holds != at_most else 0, 100)
    rows = [{**row, "matches": matches, "of": of}]
    return {"": rows if uncompressed is None else [*rows, {**uncompressed, "matches": of, "of": of}]}


def ttft(holds, *, row, expected, timer, first_call):
    """Each timer has a column of its own; a claim has both timers, one of them as a fault."""
    fallen = 1 + expected / 100
    honest = ratio(fallen / 2 if holds else 1.0, column="warm_ttft_ratio") if timer == "honest" else {}
    cold = ratio(2 / fallen if holds else 1.0, column="seconds_ratio") if timer == "cold" else {}
    return {"": [{**row, **honest}], first_call: [{"what": "whole first call", **cold}]}


def shrinks_with_size(holds, *, models, row):
    values = {True: (3.0, 2.0), False: (2.0, 3.0), None: (3.0, 2.0)}[holds]
    found = [anywhere(value) if holds is None else ratio(value) for value in values]
    return {f"{slugs(model)[0]}:": [{**row, **one}] for model, one in zip(models, found, strict=False)}


MAKERS: Mapping[str, Callable[..., Mapping[str, Rows]]] = {
    function.__name__: function
    for function in (
        cell_value, change, no_loss, no_difference, rises, worst, mildest, better, never_fires, fires, dilutes,
        correlation, attention_loss_stands_out, attention_loss_is_low, recall_at, ttft, shrinks_with_size,
    )
}  # fmt: skip

#: Checks that data can leave open, besides those that hold or do not hold.
CAN_BE_OPEN = {
    "change", "no_loss", "no_difference", "rises", "worst", "mildest", "better", "recall_at", "shrinks_with_size",
}  # fmt: skip


def tables_for(
    claim: Claim, model: str, holds: bool | None, under_faults: bool | None = False, text_sets: Iterable[str] = ()
) -> list[Table]:
    """Tables of ``model`` on which the claim comes out as ``holds``, and under its faults as ``under_faults``."""
    names: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    wanted = [(claim.tables, claim.arguments, holds)]
    wanted += [
        (fault.tables or claim.tables, {**claim.arguments, **fault.arguments}, under_faults)
        for fault in claim.faults.values()
    ]
    for text_set in text_sets or claim.text_sets:
        for whats, arguments, outcome in wanted:
            for what in whats:
                for place, rows in MAKERS[claim.check](outcome, **arguments).items():
                    if ":" in place:  # another model's
                        name = f"{place.removesuffix(':')}/{text_set}/{what}"
                    else:
                        name = f"{model}/{place or f'{text_set}/{what}'}"
                    _merge(names[name], rows)
    return [Table(name, (), list(rows.values())) for name, rows in names.items()]


def _merge(table: dict[str, dict[str, Any]], rows: Rows) -> None:
    """Add rows; one that differs from another only in numbers completes it."""
    for row in rows:
        labels = repr([(name, value) for name, value in row.items() if not _is_number(name)])
        table.setdefault(labels, {}).update(row)


def _is_number(column: str) -> bool:
    return column.endswith(("ratio", "_low", "_high")) and column != "keep_ratio"
