"""A measured quantity: all samples, median and quartiles, and its ratio to the baseline of the same round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knorm_core.results.interval import Interval

CONFIDENCE = 0.95
_RESAMPLES = 4999


@dataclass(frozen=True)
class Ratio(Interval):
    """A ratio to the baseline, paired within a round; its limits are 0 and infinity for fewer than two rounds.

    Attributes:
        value: the median of the paired ratios (not the ratio of the medians).
        samples: the paired ratios, one per round.
    """

    samples: tuple[float, ...]


@dataclass(frozen=True)
class Quantity:
    """One quantity over the rounds.

    Attributes:
        median, lower_quartile, upper_quartile: of the samples, interpolated linearly.
        samples: one per round, in the order of the rounds.
        ratio: to the baseline; None where the baseline is zero.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    samples: tuple[float, ...]
    ratio: Ratio | None


def quantity(samples: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Quantity:
    """Summarise samples, paired with those of the baseline; both (rounds,), in the same order.

    >>> measured = quantity([2.0, 4.0, 9.0], baseline=[1.0, 2.0, 3.0])
    >>> measured.median, measured.ratio.value, measured.ratio.samples
    (4.0, 2.0, (2.0, 2.0, 3.0))
    """
    lower, median, upper = (float(value) for value in np.percentile(samples, [25, 50, 75]))
    ratio = None
    if all(value != 0 for value in baseline):
        ratio = ratio_of([value / base for value, base in zip(samples, baseline, strict=True)], seed)
    return Quantity(median, lower, upper, tuple(samples), ratio)


def ratio_of(samples: Sequence[float], seed: int = 0) -> Ratio:
    """Median and interval of ratios that have been paired already."""
    low, high = median_interval(samples, seed)
    return Ratio(float(np.median(samples)), low, high, tuple(samples))


def median_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median, (0, infinity) for fewer than two samples.

    The percentile interval, since the median's bootstrap distribution has only as many values as there
    are samples: bias correction and acceleration (BCa, scipy's default) rest on a jackknife that is
    degenerate there, and give NaN where samples tie. The percentile interval never leaves the range of
    the samples; with five of them it is that range.
    """
    if len(samples) < 2:
        return 0.0, math.inf
    if len(set(samples)) == 1:  # as cache bytes are
        return float(samples[0]), float(samples[0])
    from scipy import stats

    interval = stats.bootstrap(
        (np.asarray(samples),),
        np.median,
        n_resamples=_RESAMPLES,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
