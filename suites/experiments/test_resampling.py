"""The studentised bootstrap over texts: its limits by another road, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from knorm_core.experiments.resampling import detectable, mean_over_texts

pytestmark = pytest.mark.fast


def texts_of(rng, texts):
    """Texts of unequal length, whose mean losses differ from each other more than their tokens do."""
    counts = rng.integers(100, 300, texts).astype(float)
    return (0.1 + 0.05 * rng.standard_normal(texts)) * counts, counts


def test_the_ratio_and_its_error_are_those_of_a_weighted_regression_through_nothing():
    sums, counts = texts_of(np.random.default_rng(1), 12)
    mean = mean_over_texts(sums, counts)
    assert mean.value == pytest.approx(np.average(sums / counts, weights=counts))
    left_out = [np.delete(sums, i).sum() / np.delete(counts, i).sum() for i in range(12)]
    jackknife = np.sqrt(11 / 12 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert mean.standard_error == pytest.approx(jackknife, rel=0.05)


def test_with_equal_counts_and_many_texts_the_limits_are_students():
    sums = np.random.default_rng(2).standard_normal(200)
    mean = mean_over_texts(sums, np.ones(200))
    expected = stats.t.interval(0.95, 199, sums.mean(), stats.sem(sums))
    assert (mean.low, mean.high) == pytest.approx(expected, abs=0.1 * mean.standard_error)


@pytest.mark.parametrize("texts", [8, 32])
def test_limits_hold_the_truth_as_often_as_they_say(texts):
    rng = np.random.default_rng(3)
    draws = [mean_over_texts(*texts_of(rng, texts), resamples=999, seed=draw) for draw in range(2_000)]
    held = sum(mean.low <= 0.1 <= mean.high for mean in draws) / len(draws)
    assert held == pytest.approx(0.95, abs=0.02)


def test_texts_that_do_not_differ_leave_no_doubt():
    assert mean_over_texts(np.full(9, 2.0), np.ones(9)) == (2.0, 0.0, 2.0, 2.0)


def test_a_difference_as_large_as_the_detectable_one_is_seen_four_times_of_five():
    rng, texts = np.random.default_rng(4), 16
    effect = detectable(1 / np.sqrt(texts), texts)
    samples = rng.standard_normal((20_000, texts)) + effect
    seen = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("sums", "counts"), [((1.0,), (1.0,)), ((1.0, 2.0), (1.0,)), ([[1.0, 2.0]], [[1.0, 1.0]])])
def test_too_few_texts_are_refused(sums, counts):
    with pytest.raises(ValueError, match="at least two texts"):
        mean_over_texts(np.array(sums), np.array(counts))
