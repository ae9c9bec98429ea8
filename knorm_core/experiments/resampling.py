"""How far a ratio of sums over texts may be believed: a studentised bootstrap over texts.

A text is drawn whole or not at all. What varies between texts (subject, writer, where evictions fall) is then in
the interval; blocks of tokens within one text cannot show it. The ratio of sums is the mean loss over all scored
tokens, or the difference of two rows' means: texts of more tokens weigh more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9_999
POWER = 0.8


class Mean(NamedTuple):
    """A mean over tokens, its standard error over texts, and the limits between which it may be believed."""

    value: float
    standard_error: float
    low: float
    high: float


def mean_over_texts(
    sums: np.ndarray, counts: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Mean:
    """``sums.sum() / counts.sum()`` with a studentised bootstrap interval over texts.

    Texts are drawn with replacement; of each draw the distance of its mean from the whole's is measured in the
    draw's own standard errors (Efron & Tibshirani 1993, section 12.5). The standard error is that of a ratio
    of sums, by linearisation (Cochran 1977, section 2.11). A draw of one text alone has no spread and is left out.

    Args:
        sums: summed losses, or differences of losses, of every text, float64 (texts,).
        counts: scored tokens of every text, float64 (texts,), each above 0.
        confidence: of the interval, between 0 and 1.
        resamples: how often to draw.
        seed: of the draws; the same seed gives the same limits.

    Raises:
        ValueError: there are fewer than two texts, or the arrays do not belong together.
    """
    if sums.shape != counts.shape or sums.ndim != 1 or len(sums) < 2:
        raise ValueError(f"sums {sums.shape} and counts {counts.shape}: give one of each for at least two texts")
    texts = len(sums)
    value, error = (float(number) for number in _ratio_of_sums(sums[None], counts[None])[:, 0])
    if error == 0:
        return Mean(value, 0.0, value, value)
    drawn = np.random.default_rng(seed).integers(texts, size=(resamples, texts))
    values, errors = _ratio_of_sums(sums[drawn], counts[drawn])
    apart = errors > 0
    distances = (values[apart] - value) / errors[apart]
    outer = (1 - confidence) / 2
    far, near = np.quantile(distances, (1 - outer, outer))
    return Mean(value, error, value - float(far) * error, value - float(near) * error)


def detectable(standard_error: float, texts: int, *, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference that such a table would tell from none with probability ``power``.

    ``(t(1 - (1 - confidence) / 2) + t(power))`` standard errors, by Student's t with ``texts - 1`` degrees
    of freedom (Bloom 1995).

    >>> round(detectable(0.01, 32), 4)
    0.0289
    """
    if texts < 2:
        return math.inf
    quantile = stats.t(texts - 1).ppf
    return float(quantile((1 + confidence) / 2) + quantile(power)) * standard_error


def _ratio_of_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ratio and standard error of every row: (rows, texts) each to (2, rows)."""
    texts = sums.shape[1]
    totals = counts.sum(1)
    ratios = sums.sum(1) / totals
    residuals = sums - ratios[:, None] * counts
    errors = np.sqrt(texts / (texts - 1) * (residuals**2).sum(1)) / totals
    return np.stack([ratios, errors])
