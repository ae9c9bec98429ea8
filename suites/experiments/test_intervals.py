"""The error bars: exact where there is no error, covering where the truth is known."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from knorm_core import Evaluation, perplexity
from knorm_core.experiments.intervals import perplexity_ratio
from knorm_core.results.interval import Interval

pytestmark = pytest.mark.fast


def evaluation(nll):
    nll = torch.as_tensor(nll, dtype=torch.float64)
    return Evaluation(nll, 32, 33 + len(nll), ((),))


def noise(count, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(3.0, scale, count))


texts = st.lists(st.integers(1, 200), min_size=1, max_size=4)


@settings(max_examples=25)
@given(lengths=texts, seed=st.integers(0, 99))
def test_identical_rows_give_exactly_one(lengths, seed):
    rows = [evaluation(noise(n, seed + i)) for i, n in enumerate(lengths)]
    interval = perplexity_ratio(rows, rows, resamples=99)
    assert interval == Interval.exact(1)
    assert not interval.excludes_no_change


@settings(max_examples=25)
@given(lengths=texts, seed=st.integers(0, 99))
def test_the_ratio_is_that_of_pooled_perplexities(lengths, seed):
    rows = [evaluation(noise(n, seed + i)) for i, n in enumerate(lengths)]
    base = [evaluation(noise(n, seed + 50 + i)) for i, n in enumerate(lengths)]
    interval = perplexity_ratio(rows, base, resamples=99)
    assert interval.value == pytest.approx(perplexity(rows) / perplexity(base), rel=1e-12)
    assert interval.low <= interval.high


@settings(max_examples=10)
@given(factor=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_a_factor_on_every_token_scales_ratio_and_limits(factor, seed):
    base, row = noise(500, seed), noise(500, seed + 1)
    plain = perplexity_ratio([evaluation(row)], [evaluation(base)], resamples=199)
    scaled = perplexity_ratio([evaluation(row + math.log(factor))], [evaluation(base)], resamples=199)
    assert astuple(scaled) == pytest.approx([value * factor for value in astuple(plain)], rel=1e-9)
    swapped = perplexity_ratio([evaluation(base)], [evaluation(row)], resamples=199)
    assert swapped.value == pytest.approx(1 / plain.value)


def test_a_constant_change_has_no_spread():
    base = noise(200, 0)
    interval = perplexity_ratio([evaluation(base + math.log(2))], [evaluation(base)])
    assert astuple(interval) == pytest.approx((2, 2, 2))
    assert interval.excludes_no_change


def test_the_seed_decides_and_order_of_texts_does_not_matter_to_the_ratio():
    rows, base = [[evaluation(noise(300, i + j)) for j in range(3)] for i in (0, 10)]
    assert perplexity_ratio(rows, base) == perplexity_ratio(rows, base, seed=0)
    assert perplexity_ratio(rows, base) != perplexity_ratio(rows, base, seed=1)
    assert perplexity_ratio(rows, base).value == pytest.approx(perplexity_ratio(rows[::-1], base[::-1]).value)


def test_it_agrees_with_the_normal_interval_of_block_means():
    # The textbook's answer for many equal blocks: mean ± 1.96 standard errors of the block means.
    base, row = noise(32 * 400, 1), noise(32 * 400, 2) + 0.1
    interval = perplexity_ratio([evaluation(row)], [evaluation(base)])
    means = (row - base).view(-1, 32).mean(1)
    half = 1.96 * float(means.std()) / math.sqrt(len(means))
    assert math.log(interval.low) == pytest.approx(float(means.mean()) - half, abs=0.1 * half)
    assert math.log(interval.high) == pytest.approx(float(means.mean()) + half, abs=0.1 * half)


def test_it_covers_the_truth_as_often_as_it_says():
    # 40 tables with a known change of 5 %, losses that hang together within 16 tokens. 40 blocks cost a
    # percentile interval one or two points of its 95 %; drawing single tokens would cost far more.
    truth, blocks, tables = 1.05, 40, 40
    rng = np.random.default_rng(0)

    def covered(block_tokens):
        hits = 0
        for _ in range(tables):
            shared = np.repeat(rng.normal(0, 0.3, blocks * 2), 16)
            change = torch.from_numpy(math.log(truth) + shared + rng.normal(0, 0.3, len(shared)))
            base = noise(len(shared), 3)
            interval = perplexity_ratio(
                [evaluation(base + change)], [evaluation(base)], block_tokens=block_tokens, resamples=199
            )
            hits += interval.low <= truth <= interval.high
        return hits

    low, high = binom.interval(0.999, tables, 0.93)
    assert low <= covered(32) <= high
    assert covered(1) < low


def test_pairing_is_what_makes_the_interval_narrow():
    hard = noise(600, 4, scale=2.0)
    paired = perplexity_ratio([evaluation(hard + 0.1 + noise(600, 5, 0.05) - 3)], [evaluation(hard)])
    unpaired = perplexity_ratio([evaluation(hard.flip(0) + 0.1)], [evaluation(hard)])
    assert paired.excludes_no_change
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_one_block_says_nothing_about_spread():
    interval = perplexity_ratio([evaluation(noise(20, 1))], [evaluation(noise(20, 2))])
    assert (interval.low, interval.high) == (0, math.inf)
    assert not interval.excludes_no_change


def test_what_both_scored_is_what_counts():
    nll = noise(100, 6)
    longer, shorter = Evaluation(nll, 20, 121, ((),)), Evaluation(nll[40:] + 1, 60, 121, ((),))
    assert perplexity_ratio([shorter], [longer]).value == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("rows", "base", "arguments", "message"),
    [
        ([], [], {}, "0 evaluations cannot be paired with 0"),
        ([50], [50, 50], {}, "1 evaluations cannot be paired with 2"),
        ([50], [60], {}, "a text of 83 tokens cannot be paired with one of 93"),
        ([50], [50], {"block_tokens": 0}, "block_tokens=0 is below 1"),
        ([50], [50], {"resamples": 0}, "resamples=0 is below 1"),
        ([50], [50], {"confidence": 1.0}, "confidence=1.0 is not between 0 and 1"),
        ([50], [50], {"seed": -1}, "seed=-1 is below 0"),
    ],
)
def test_evaluations_that_make_no_pairs_and_senseless_arguments_are_refused(rows, base, arguments, message):
    with pytest.raises(ValueError, match=message):
        perplexity_ratio([evaluation(noise(n, 0)) for n in rows], [evaluation(noise(n, 1)) for n in base], **arguments)


def test_it_reads_as_a_change():
    assert str(Interval(1.13, 1.085, 1.2)) == "+13 % [+8.5, +20]"
