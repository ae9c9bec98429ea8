"""Tables that make a claim hold, fail or stay open: what each check needs, from the claim's own declaration.

One maker per check takes its arguments and what is to come out, and returns rows by table ("" is the table that the
claim names). It knows what the check promises, not how it computes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from knorm_core.claims import Claim
from knorm_core.claims.tables import slugs
from knorm_core.results.records import Table, pair

Rows = list[dict[str, Any]]
NARROW = 0.001
KEY = ("case", "policy", "keep_ratio", "sinks", "positions", "seed", "skip_layers", "when")


def label(row: Mapping[str, Any]) -> str:
    """What tells a row of a made-up table from the others."""
    return Table("", KEY, ()).label({column: row.get(column) for column in KEY})


def ratio(value: float, low: float | None = None, high: float | None = None, column: str = "ratio") -> dict[str, float]:
    """A ratio and its interval, narrow unless said otherwise."""
    return {
        column: value,
        f"{column}_low": value - NARROW if low is None else low,
        f"{column}_high": value + NARROW if high is None else high,
    }


def pairs(ratios: Mapping[tuple[str, str], Mapping[str, float]]) -> Rows:
    """Rows of a table of paired ratios: {(reference, row): ratio}, both by their labels."""
    return [{"pair": pair(row, reference), **each} for (reference, row), each in ratios.items()]


def cell_value(holds, *, row, column, expected, source_texts, tolerance=0.0):
    value, texts = (expected if holds is not False else 3 * expected), {"texts": 8}
    reach = 3.0 if holds is None else 1 + 1e-4
    return {"": [{**row, **texts, column: value, f"{column}_low": value / reach, f"{column}_high": value * reach}]}


def count(holds, *, row, column, expected):
    return {"": [{**row, column: expected if holds else expected + 1}]}


def figures(holds, *, label, column, figures, tolerance):
    return {"": [{label: row, column: printed if holds else 3 * printed} for row, printed in figures.items()]}


def change(holds, *, row, expected, tolerance=0.0, column="ratio"):
    low, high = (expected, expected) if isinstance(expected, int | float) else expected
    claimed, beyond = 1 + (low + high) / 200, 1 + (high + tolerance + 10) / 100
    made = {True: ratio(claimed, column=column), False: ratio(beyond, column=column)}
    return {"": [{**row, **made.get(holds, ratio(claimed, claimed - 0.4, claimed + 0.4, column=column))}]}


def no_loss(holds, *, row, tolerance):
    # Open: worse than no eviction beyond its interval, and not beyond the tolerance.
    made = {True: ratio(1.0), False: ratio(2.0), None: ratio(1.04, 1.01, 1 + tolerance / 100 + 0.02)}
    return {"": [{**row, **made[holds]}]}


def no_difference(holds, *, row, reference, tolerance):
    made = {True: ratio(1.0), False: ratio(2.0), None: ratio(1.04, 1.01, 1 + tolerance / 100 + 0.02)}[holds]
    rows = [{**reference, **ratio(1.5)}, {**row, **ratio(1.6)}]
    return {"": rows, "-pairs": pairs({(label(reference), label(row)): made})}


def by_keep_ratio(steps: Mapping[tuple[float, float], Any], keep_ratios: Iterable[float]) -> Mapping[str, Rows]:
    """Rows of perplexity against keep ratio, with these paired ratios between them; no ratio at keep 1 but 1."""
    rows = [
        {"keep_ratio": keep, **(exact() if keep == 1 else steps.get((1.0, keep), ratio(1.5)))} for keep in keep_ratios
    ]
    recorded = {(label({"keep_ratio": a}), label({"keep_ratio": b})): each for (a, b), each in steps.items() if a != 1}
    return {"": rows, "-pairs": pairs(recorded)}


def exact() -> dict[str, float]:
    return {"ratio": 1, "ratio_low": 1, "ratio_high": 1}


def rises(holds, *, keep_ratios):
    ratios = sorted(keep_ratios, reverse=True)
    steps = dict.fromkeys(pairwise(ratios), ratio(1.2))
    # Open: the last step is not shown, though the row against the first one would be.
    steps[ratios[-2], ratios[-1]] = {True: ratio(1.2), False: ratio(0.9), None: ratio(1.05, 0.99, 1.1)}[holds]
    return by_keep_ratio(steps, ratios)


def worst(holds, *, keep_ratio, keep_ratios):
    others = [keep for keep in keep_ratios if keep != keep_ratio]
    ratios = dict.fromkeys([(keep_ratio, keep) for keep in others], ratio(0.8))
    ratios[keep_ratio, others[-1]] = {True: ratio(0.8), False: ratio(1.2), None: ratio(0.97, 0.9, 1.05)}[holds]
    return by_keep_ratio(ratios, keep_ratios)


def mildest(holds, *, keep_ratio, keep_ratios):
    others = [keep for keep in keep_ratios if keep != keep_ratio]
    ratios = dict.fromkeys([(keep_ratio, keep) for keep in others], ratio(1.2))
    ratios[keep_ratio, others[-1]] = {True: ratio(1.2), False: ratio(0.8), None: ratio(1.05, 0.99, 1.1)}[holds]
    return by_keep_ratio(ratios, keep_ratios)


def better(holds, *, row, reference, keep_ratios, instead=None):
    made = {True: ratio(1.2), False: ratio(0.8), None: ratio(1.05, 0.99, 1.1)}[holds]
    rows = [{**labels, "keep_ratio": keep, **ratio(1.5)} for labels in (row, reference) for keep in keep_ratios]
    both = [tuple(label({**labels, "keep_ratio": keep}) for labels in (row, reference)) for keep in keep_ratios]
    return {"": rows, "-pairs": pairs(dict.fromkeys(both, made))}


def never_fires(holds, *, rows):
    return {"": [{**row, "evictions_per_layer": 0 if holds else 3, "peak_cache": 200} for row in rows]}


def fires(holds, *, rows):
    return never_fires(not holds, rows=rows)


def dilutes(holds, *, diluted, whole, keep_ratios):
    made = {True: ratio(0.8), False: ratio(1.2), None: ratio(0.97, 0.9, 1.05)}[holds]
    rows = [{**labels, "keep_ratio": keep, **ratio(1.5)} for labels in (whole, diluted) for keep in keep_ratios]
    both = [tuple(label({**labels, "keep_ratio": keep}) for labels in (whole, diluted)) for keep in keep_ratios]
    return {"": rows, "-pairs": pairs(dict.fromkeys(both, made))}


def correlation(holds, *, expected):
    value = {True: ratio(-0.5, column="spearman"), False: ratio(0.5, column="spearman")}
    return {"": heads(dict.fromkeys(range(4), value.get(holds, ratio(-0.5, -0.9, 0.1, column="spearman"))))}


def attention_loss_stands_out(holds, *, layers):
    high, low = ratio(9.0, column="alr"), ratio(1.0, column="alr")
    unsure = ratio(9.0, 0.5, 20.0, column="alr")
    made = {True: (high, low), False: (low, high), None: (unsure, low)}[holds]
    return {"": heads({layer: made[layer not in layers] for layer in range(8)})}


def attention_loss_is_low(holds, *, except_layers, expected):
    bar = expected / 10
    loss = {True: ratio(bar / 2, column="alr"), False: ratio(bar * 2, column="alr")}
    random = ratio(10.0, column="alr_random")
    made = {**loss.get(holds, ratio(bar / 2, bar / 4, bar * 2, column="alr")), **random}
    return {"": heads(dict.fromkeys(range(4), made))}


def heads(layers: Mapping[int, Mapping[str, float]]) -> Rows:
    return [{"layer": layer, "head": head, **values} for layer, values in layers.items() for head in range(2)]


def recall_at(holds, *, row, expected, tolerance=0.0, uncompressed=None, at_most=False):
    # One prompt of two leaves every share open; all or none of a hundred decide.
    matches, of = (1, 2) if holds is None else (100 if holds != at_most else 0, 100)
    rows = [{**row, "matches": matches, "of": of}]
    return {"": rows if uncompressed is None else [*rows, {**uncompressed, "matches": of, "of": of}]}


def shrinks_with_size(holds, *, models, row):
    values = {True: (3.0, 2.0), False: (2.0, 3.0), None: (3.0, 2.0)}[holds]
    made = [ratio(value, 0.01, 100.0) if holds is None else ratio(value) for value in values]
    return {f"{slugs(model)[0]}:": [{**row, **each}] for model, each in zip(models, made, strict=False)}


MAKERS: Mapping[str, Callable[..., Mapping[str, Rows]]] = {
    function.__name__: function
    for function in (
        cell_value, count, figures, change,
        no_loss, no_difference, rises, worst, mildest, better, never_fires, fires, dilutes,
        correlation, attention_loss_stands_out, attention_loss_is_low, recall_at, shrinks_with_size,
    )
}  # fmt: skip

#: Checks of counts, where nothing is sampled: they hold or do not hold.
NEVER_OPEN = {"count", "figures", "never_fires", "fires"}


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
        for kinds, arguments, answer in wanted:
            for kind in kinds:
                for place, rows in MAKERS[claim.check](answer, **arguments).items():
                    if place.endswith(":"):  # another model's
                        name = f"{place.removesuffix(':')}/{text_set}/{kind}"
                    elif place in ("", "-pairs"):
                        name = f"{model}/{text_set}/{kind}{place}"
                    else:
                        name = f"{model}/{place}"
                    _merge(names[name], rows)
    return [_table(name, list(rows.values())) for name, rows in names.items()]


def _table(name: str, rows: Rows) -> Table:
    if name.endswith("-pairs"):
        return Table(name, ("pair",), rows)
    return Table(name, KEY, [dict.fromkeys(KEY) | row for row in rows])


def _merge(table: dict[str, dict[str, Any]], rows: Rows) -> None:
    """Add rows; one that differs from another only in numbers completes it."""
    for row in rows:
        labels = repr([(name, value) for name, value in row.items() if not _is_number(name)])
        table.setdefault(labels, {}).update(row)


def _is_number(column: str) -> bool:
    if column in ("tokens_to_first", "share_of_generation", "change"):
        return True
    return column.endswith(("ratio", "_low", "_high")) and column != "keep_ratio"
