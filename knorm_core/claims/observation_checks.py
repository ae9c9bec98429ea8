"""Checks of attention, retrieval and latency: see `knorm_core.claims.checks`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any

from knorm_core.claims.answer import MORE_PROMPTS, Outcome, figure, shown
from knorm_core.claims.tables import Interval, Missing, Tables, describe, find_row, interval, number
from knorm_core.results.records import Number, Table


def correlation(tables: Tables, name: str, *, expected: float) -> Outcome:
    """More than ``expected`` per cent of the heads have a negative rank correlation of key norm and attention."""
    table = tables.table(name)
    found = [number(table, row, "spearman") for row in table.rows]
    if not found:
        raise Missing(f"{table.name} has no heads")
    share, mean = fmean(value < 0 for value in found), fmean(found)
    return Outcome(
        share > expected / 100,
        f"negative in {share * 100:.0f} % of {len(found)} heads, on average {mean:+.2f}",
        (Number("share of heads with a negative correlation", share), Number("mean correlation", mean)),
    )


def attention_loss_stands_out(tables: Tables, name: str, *, layers: Sequence[int]) -> Outcome:
    """Each of these layers has a mean ALr above the upper quartile of the other layers."""
    table = tables.table(name)
    losses = _layer_means(table, "alr")
    others = [loss for layer, loss in losses.items() if layer not in layers]
    if len(others) < 2 or any(layer not in losses for layer in layers):
        raise Missing(f"{table.name} has layers {sorted(losses)}, and {list(layers)} are to be held against others")
    quartile = quantiles(others, n=4, method="inclusive")[2]
    found = {layer: losses[layer] for layer in layers}
    clauses = ", ".join(f"{loss:.1f} in layer {layer}" for layer, loss in found.items())
    return Outcome(
        all(loss > quartile for loss in found.values()),
        f"mean ALr is {clauses}; the upper quartile of the other layers is {quartile:.1f}",
        (*(Number(f"layer {layer}", loss) for layer, loss in found.items()), Number("upper quartile", quartile)),
    )


def attention_loss_is_low(tables: Tables, name: str, *, except_layers: Sequence[int], expected: float) -> Outcome:
    """In every other layer, dropping keys by norm has less than ``expected`` per cent of a random order's mean ALr."""
    table = tables.table(name)
    losses, random = (_layer_means(table, column) for column in ("alr", "alr_random"))
    shares = {layer: loss / random[layer] for layer, loss in losses.items() if layer not in except_layers}
    if not shares:
        raise Missing(f"{table.name} has no layers but {list(except_layers)}")
    layer, mean = max(shares, key=lambda one: shares[one]), fmean(shares.values())
    return Outcome(
        all(share < expected / 100 for share in shares.values()),
        f"ALr is on average {mean * 100:.0f} % of a random order's, and {shares[layer] * 100:.0f} % in layer {layer}",
        (Number("mean share", mean), Number(f"layer {layer}", shares[layer])),
    )


def recall_at(
    tables: Tables,
    name: str,
    *,
    row: Mapping[str, Any],
    expected: float,
    tolerance: float = 0.0,
    uncompressed: Mapping[str, Any] | None = None,
    at_most: bool = False,
) -> Outcome:
    """At least (or ``at_most``) ``expected`` per cent of prompts are answered, give or take ``tolerance``.

    With ``uncompressed``, per cent of what that row answers, which is taken as known. It does not hold where the
    interval of Clopper and Pearson lies on the wrong side, and is open where only the estimate does.
    """
    table = tables.table(name)
    counts = find_row(table, row)
    matches, of = number(table, counts, "matches"), number(table, counts, "of")
    known, beside = 1.0, ""
    if uncompressed is not None:
        reference = find_row(table, uncompressed)
        known = number(table, reference, "matches") / number(table, reference, "of")
        beside = f", uncompressed {reference['matches']:g}"
    if not 0 <= matches <= of or of == 0 or known == 0:
        raise Missing(f"{table.name} has nothing to compare: {matches:g} of {of:g}{beside}")
    from scipy.stats import binomtest

    bounds = binomtest(int(matches), int(of)).proportion_ci(0.95)
    found = Interval(matches / of, float(bounds.low), float(bounds.high))
    bar = known * (expected + (tolerance if at_most else -tolerance)) / 100
    met = found.value <= bar if at_most else found.value >= bar
    excluded = found.low > bar if at_most else found.high < bar
    return Outcome(
        True if met else False if excluded else None,
        f"{matches:g} of {of:g} answered {describe(row)}{beside}",
        (figure(describe(row), found),),
        MORE_PROMPTS,
    )


def ttft(tables: Tables, name: str, *, row: Mapping[str, Any], expected: float, timer: str, first_call: str) -> Outcome:
    """The time to first token falls by as much as claimed: with the ``timer`` "honest", or with a "cold" baseline.

    Judged by `knorm_core.latency.judge_ttft_claim`; ``first_call`` names the table of first calls.
    """
    from knorm_core.latency.claim import EXPLAINED, REPRODUCED, judge_ttft_claim

    table, first = tables.table(name), tables.table(first_call)
    honest = interval(table, find_row(table, row), "warm_ttft_ratio")
    cold = interval(first, find_row(first, {"what": "whole first call"}), "seconds_ratio")
    judged = judge_ttft_claim(cold.value, honest.value, claimed_fall=-expected / 100)
    if timer == "honest":
        why, found = f"{shown(honest)} with honest timers, claimed {expected:+g} %", figure("honest ratio", honest)
    else:
        why = f"a cold baseline makes {-judged.cold_fall * 100:+.1f} %: a first call takes {cold.value:.2f} warm ones"
        found = figure("first call over warm call", cold)
    return Outcome(judged.outcome == (REPRODUCED if timer == "honest" else EXPLAINED), why, (found,))


def _layer_means(table: Table, column: str) -> dict[int, float]:
    """The mean of a column over the heads of every layer."""
    heads = defaultdict(list)
    for row in table.rows:
        heads[int(number(table, row, "layer"))].append(number(table, row, column))
    return {layer: fmean(values) for layer, values in sorted(heads.items())}
