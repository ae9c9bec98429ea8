"""Checks of attention, retrieval and latency: see `knorm_core.claims.checks`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any

from knorm_core.claims import rules
from knorm_core.claims.checks import MORE_PROMPTS, MORE_TEXTS, Answer, check
from knorm_core.claims.tables import Missing, Tables, describe, find_row, interval, number
from knorm_core.results.interval import Interval
from knorm_core.results.records import Number, Table


@check()
def correlation(tables: Tables, name: str, *, expected: float) -> Answer:
    """More than ``expected`` per cent of the heads have a negative rank correlation of key norm and attention."""
    table = tables.table(name)
    heads = [interval(table, row, "spearman") for row in table.rows]
    if not heads:
        raise Missing(f"{table.name} has no heads")
    share, mean = rules.negative_share(heads), _each_end(fmean, heads)
    return Answer(
        rules.correlation(heads, expected),
        f"negative in {share.value * 100:.0f} % [{share.low * 100:.0f}, {share.high * 100:.0f}] of {len(heads)} heads, "
        f"on average {mean.value:+.2f}",
        (Number.named("share of heads with a negative correlation", share), Number.named("mean correlation", mean)),
        MORE_TEXTS,
    )


@check()
def attention_loss_stands_out(tables: Tables, name: str, *, layers: Sequence[int]) -> Answer:
    """Each of these layers has a mean ALr above the upper quartile of the other layers."""
    table = tables.table(name)
    losses = _layer_means(table, "alr")
    others = [loss for layer, loss in losses.items() if layer not in layers]
    if len(others) < 2 or any(layer not in losses for layer in layers):
        raise Missing(f"{table.name} has layers {sorted(losses)}, and {list(layers)} are to be held against others")
    quartile = _each_end(lambda ends: quantiles(ends, n=4, method="inclusive")[2], others)
    clauses = ", ".join(f"{losses[layer].value:.1f} in layer {layer}" for layer in layers)
    return Answer(
        rules.all_of([rules.stands_out(losses[layer], quartile) for layer in layers]),
        f"mean ALr is {clauses}; the upper quartile of the other layers is {quartile.value:.1f}",
        (
            *(Number.named(f"layer {layer}", losses[layer]) for layer in layers),
            Number.named("upper quartile", quartile),
        ),
        MORE_TEXTS,
    )


@check()
def attention_loss_is_low(tables: Tables, name: str, *, except_layers: Sequence[int], expected: float) -> Answer:
    """In every other layer, dropping keys by norm has at most ``expected`` per cent of a random order's mean ALr."""
    table = tables.table(name)
    losses, random = (_layer_means(table, column) for column in ("alr", "alr_random"))
    shares = {
        layer: Interval(loss.value / random[layer].value, loss.low / random[layer].high, loss.high / random[layer].low)
        for layer, loss in losses.items()
        if layer not in except_layers
    }
    if not shares:
        raise Missing(f"{table.name} has no layers but {list(except_layers)}")
    layer = max(shares, key=lambda layer: shares[layer].value)
    mean = _each_end(fmean, list(shares.values()))
    return Answer(
        rules.is_low([*shares.values()], expected),
        f"ALr is on average {mean.value * 100:.0f} % of a random order's, and {shares[layer].value * 100:.0f} % in "
        f"layer {layer}",
        (Number.named("mean share", mean), Number.named(f"layer {layer}", shares[layer])),
        MORE_TEXTS,
    )


@check()
def recall_at(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    expected: float,
    tolerance: float = 0.0,
    uncompressed: Mapping[str, Any] | None = None,
    at_most: bool = False,
) -> Answer:
    """At least (or ``at_most``) ``expected`` per cent of prompts are answered, give or take ``tolerance``.

    With ``uncompressed``, per cent of the prompts that this row answers. Which of them the compressed row answers as
    well is known up to a range where the one does not answer all; the interval then covers the range.
    """
    table = tables.table(name)
    matches, of = _counts(table, row)
    beside, fewest, most, among = "", matches, matches, of
    if uncompressed is not None:
        among, _ = _counts(table, uncompressed)
        beside = f", uncompressed {among}"
        fewest, most = max(0, matches + among - of), min(matches, among)
    why = f"{matches} of {of} answered {describe(row)}{beside}"
    able = [number(table, each, "matches") > 0 for each in table.rows if each.get("keep_ratio") == 1]
    if not among or (able and not any(able)):
        why += "; a model that answers nothing uncompressed is evidence of nothing"
        return Answer(None, why, (), "a model that answers without compression")
    from scipy.stats import binomtest

    low, high = (binomtest(kept, among).proportion_ci(0.95) for kept in (fewest, most))
    share = Interval(most / among, float(low.low), float(high.high))
    bar = (expected + (tolerance if at_most else -tolerance)) / 100
    return Answer(rules.recall(share, bar, at_most=at_most), why, (Number.named(describe(row), share),), MORE_PROMPTS)


def _counts(table: Table, labels: Mapping[str, Any]) -> tuple[int, int]:
    row = find_row(table, labels)
    matches, of = number(table, row, "matches"), number(table, row, "of")
    if not 0 <= matches <= of or of == 0:
        raise Missing(f"{table.name} has nothing to compare: {matches:g} of {of:g}")
    return int(matches), int(of)


def _layer_means(table: Table, column: str) -> dict[int, Interval]:
    """The mean of a column over the heads of every layer, its limits as wide as if all heads erred alike."""
    heads = defaultdict(list)
    for row in table.rows:
        heads[int(number(table, row, "layer"))].append(interval(table, row, column))
    return {layer: _each_end(fmean, each) for layer, each in sorted(heads.items())}


def _each_end(function: Callable[[Sequence[float]], float], intervals: Iterable[Interval]) -> Interval:
    """A rising function of several numbers, of their estimates and of each side of their limits."""
    ends = [(each.value, each.low, each.high) for each in intervals]
    return Interval(*(function(end) for end in zip(*ends, strict=True)))
