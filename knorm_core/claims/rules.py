"""The rules of the ledger: pure functions of intervals that say whether a claim holds.

A rule answers True (the whole interval lies within what is claimed), False (it lies wholly outside), or None (open).
`knorm_core.results.records.VERDICTS` has the words that follow from that. Ratios of two rows of one table are paired:
they come from the same tokens. The first line of each docstring is the rule as the docs state it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from knorm_core.results.interval import Interval
from knorm_core.results.records import EXPLAINED, OPEN, REFUTED, REPRODUCED

_ROUNDING = 0.005  # two decimals are printed
#: Every rule by its name.
RULES: dict[str, Callable[..., bool | None]] = {}


def _rule(function: Callable[..., bool | None]) -> Callable[..., bool | None]:
    RULES[function.__name__] = function
    return function


def within(interval: Interval, low: float = -math.inf, high: float = math.inf) -> bool | None:
    """Whether the whole interval lies from ``low`` to ``high``; None where it lies neither within nor outside.

    >>> [within(Interval(1.04, *limits), high=1.05) for limits in ((1.03, 1.05), (1.01, 1.07), (1.06, 1.09))]
    [True, None, False]
    """
    if low <= interval.low and interval.high <= high:
        return True
    return False if interval.high < low or interval.low > high else None


def above(interval: Interval, bar: float) -> bool | None:
    """Whether a number is shown to be above a bar; False where it is shown not to be."""
    return True if interval.low > bar else False if interval.high <= bar else None


def below(interval: Interval, bar: float) -> bool | None:
    """Whether a number is shown to be below a bar; False where it is shown not to be."""
    return True if interval.high < bar else False if interval.low >= bar else None


def all_of(answers: Collection[bool | None]) -> bool | None:
    """Whether all hold: no if any does not, else open if any is open."""
    return False if False in answers else None if None in answers else True


def verdict(plain: bool | None, under_faults: Collection[bool | None] = (), *, fails_everywhere: bool = True) -> str:
    """Explained where it fails on every table and holds under a named fault; else what the answer itself says."""
    if plain is False and fails_everywhere and True in under_faults:
        return EXPLAINED
    return {True: REPRODUCED, False: REFUTED, None: OPEN}[plain]


@_rule
def no_loss(ratio: Interval, tolerance: float) -> bool | None:
    """No loss: the interval of the change lies at or below the tolerance; refuted where it lies above it."""
    return within(ratio, high=1 + tolerance / 100)


@_rule
def no_difference(ratio: Interval, tolerance: float) -> bool | None:
    """No difference: the interval of two rows' ratio lies within the tolerance either way; refuted where outside."""
    return within(ratio, 1 - tolerance / 100, 1 + tolerance / 100)


@_rule
def figure(value: float, printed: float, tolerance: float) -> bool | None:
    """A figure of the same evaluation: it differs from what was printed by its rounding and the tolerance at most."""
    return abs(value - printed) <= _ROUNDING + tolerance / 100 * abs(printed)


@_rule
def change(ratio: Interval, expected: Sequence[float], tolerance: float) -> bool | None:
    """A change: its interval fits into what is claimed, give or take the tolerance; refuted where wholly outside."""
    return within(ratio, 1 + (min(expected) - tolerance) / 100, 1 + (max(expected) + tolerance) / 100)


@_rule
def cell_value(value: Interval, expected: float, tolerance: float, *, texts: float, source_texts: float) -> bool | None:
    """A number: the interval of its ratio to the published one, both sides' sampling in it, is within the tolerance."""
    return no_difference(against_published(value, expected, texts=texts, source_texts=source_texts), tolerance)


@_rule
def count(value: float, expected: float) -> bool | None:
    """A count: it is the one that is claimed; nothing is sampled, so nothing is open."""
    return value == expected


@_rule
def rises(steps: Sequence[Interval]) -> bool | None:
    """A rise: every step down in the keep ratio is shown to raise perplexity; refuted where one is shown not to."""
    return all_of([above(step, 1) for step in steps])


@_rule
def extreme(others: Sequence[Interval], *, highest: bool) -> bool | None:
    """The worst (or best) row: every other is shown to be better (or worse); refuted where one is shown not to be."""
    return all_of([below(ratio, 1) if highest else above(ratio, 1) for ratio in others])


@_rule
def better(ratios: Sequence[Interval]) -> bool | None:
    """One policy better than another: shown at every keep ratio; refuted where it is shown not to be at one."""
    return all_of([above(ratio, 1) for ratio in ratios])


@_rule
def dilutes(whole: Interval, diluted_over_whole: Interval) -> bool | None:
    """A change is diluted: the whole one is shown, and the diluted row is shown to lie between it and none."""
    if not whole.excludes_no_change:
        return None
    return below(diluted_over_whole, 1) if whole.low > 1 else above(diluted_over_whole, 1)


@_rule
def correlation(heads: Sequence[Interval], expected: float) -> bool | None:
    """A correlation is usual: more than that share of heads is shown to have it; refuted where no more can have it."""
    return above(negative_share(heads), expected / 100)


@_rule
def stands_out(layer: Interval, bar: Interval) -> bool | None:
    """A layer stands out: its interval lies above that of the others' upper quartile; refuted where below it."""
    return True if layer.low > bar.high else False if layer.high <= bar.low else None


@_rule
def is_low(shares: Sequence[Interval], expected: float) -> bool | None:
    """A loss is low: every layer's interval lies below that share of a random order's; refuted where one lies above."""
    return all_of([within(share, high=expected / 100) for share in shares])


@_rule
def recall(share: Interval, bar: float, *, at_most: bool = False) -> bool | None:
    """A recall: the interval of Clopper and Pearson lies within what is claimed; refuted where wholly outside."""
    return within(share, high=bar) if at_most else within(share, low=bar)


@_rule
def shrinks(steps: Sequence[Interval]) -> bool | None:
    """A change shrinks with size: from each model to the next larger one; refuted where it is shown not to."""
    return all_of([below(step, 1) for step in steps])


def against_published(value: Interval, expected: float, *, texts: float, source_texts: float) -> Interval:
    """A sampled number over a published one that was sampled from other texts of the same kind.

    The half width of the own interval, on the log scale, is proportional to 1 / sqrt(``texts``). What
    ``source_texts`` texts would have, were they as different from each other, adds in quadrature.

    >>> print(against_published(Interval(100.0, 90.0, 111.1), 100.0, texts=8, source_texts=3))
    ±0 % [−18, +22]
    """
    widened = math.sqrt(1 + texts / source_texts)
    ratio = value.value / expected
    low, high = ((end / value.value) ** widened * ratio for end in (value.low, value.high))
    return Interval(ratio, low, high)


def negative_share(heads: Sequence[Interval]) -> Interval:
    """The share of negative numbers: from those that are shown to be negative to those that may be."""
    shares = [sum(chosen) / len(heads) for chosen in (
        [head.value < 0 for head in heads], [head.high < 0 for head in heads], [head.low < 0 for head in heads],
    )]  # fmt: skip
    return Interval(*shares)


def unpaired(ratio: Interval, other: Interval) -> Interval:
    """``other`` over ``ratio`` where they come from different runs, as those of two models do.

    On the log scale the half widths that face each other add in quadrature. That is the 95 % interval where the two
    err independently; where texts are hard for both alike it is too wide, which errs on the side of "open".

    >>> print(unpaired(Interval.exact(1), Interval(1.5, 1.4, 1.6)))
    +50 % [+40, +60]
    """
    difference = math.log(other.value) - math.log(ratio.value)
    below = math.hypot(_log(other.value, other.low), _log(ratio.high, ratio.value))
    above = math.hypot(_log(other.high, other.value), _log(ratio.value, ratio.low))
    return Interval(*(_exp(difference + reach) for reach in (0.0, -below, above)))


def _log(high: float, low: float) -> float:
    return math.inf if low == 0 or math.isinf(high) else math.log(high / low)


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)
