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
from knorm_core.experiments.intervals import (
    detectable_change,
    paired_rows,
    perplexity_interval,
    perplexity_ratio,
    precision,
)
from knorm_core.experiments.resampling import mean_over_texts
from knorm_core.results.interval import FEWEST_TEXTS, Interval, per_cent

pytestmark = pytest.mark.fast


def evaluation(nll):
    nll = torch.as_tensor(nll, dtype=torch.float64)
    return Evaluation(nll, 32, 33 + len(nll), ((),))


def noise(count, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(3.0, scale, count))


def varied(texts, seed, between=0.1, tokens=64):
    """Rows and their baseline: a change of 0.1 nats in the mean that differs from text to text."""
    changes = np.random.default_rng(seed).normal(0.1, between, texts)
    base = [noise(tokens, seed + 100 + i) for i in range(texts)]
    rows = [losses + change for losses, change in zip(base, changes, strict=True)]
    return [evaluation(nll) for nll in rows], [evaluation(nll) for nll in base]


texts = st.lists(st.integers(1, 200), min_size=1, max_size=FEWEST_TEXTS + 1)


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


def test_from_eight_texts_on_the_limits_are_those_of_resampled_texts():
    rows, base = [[evaluation(noise(40 + 9 * i, seed + i)) for i in range(FEWEST_TEXTS)] for seed in (0, 50)]
    interval = perplexity_ratio(rows, base)
    sums = np.array([float((row.nll - other.nll).sum()) for row, other in zip(rows, base, strict=True)])
    mean = mean_over_texts(sums, np.array([float(len(row.nll)) for row in rows]))
    assert astuple(interval) == pytest.approx(
        (math.exp(mean.value), math.exp(mean.low), math.exp(mean.high)), rel=1e-12
    )


def test_where_texts_are_resampled_the_order_of_tokens_within_them_tells_nothing():
    rows, base = [[noise(128, seed + i) for i in range(FEWEST_TEXTS)] for seed in (0, 50)]
    halved = [torch.cat([nll[:64].sort().values, nll[64:]]) for nll in rows]

    def interval(rows, count):
        return perplexity_ratio([evaluation(nll) for nll in rows[:count]], [evaluation(nll) for nll in base[:count]])

    assert astuple(interval(rows, FEWEST_TEXTS)) == pytest.approx(astuple(interval(halved, FEWEST_TEXTS)), rel=1e-12)
    assert interval(rows, FEWEST_TEXTS - 1).low != pytest.approx(interval(halved, FEWEST_TEXTS - 1).low, rel=1e-3)


def test_texts_that_differ_are_covered_as_often_as_the_interval_says_and_their_blocks_are_not():
    truth, tables = math.exp(0.1), 200

    def covered(count):
        intervals = [perplexity_ratio(*varied(count, seed), resamples=499) for seed in range(tables)]
        return sum(interval.low <= truth <= interval.high for interval in intervals)

    low, high = binom.interval(0.999, tables, 0.95)
    assert low <= covered(FEWEST_TEXTS) <= high
    assert covered(FEWEST_TEXTS - 1) < low  # two blocks of each text, which say the same


def test_a_change_as_large_as_the_detectable_one_is_told_from_none_four_times_of_five():
    tables, between = 200, 0.1
    detectable = [math.log(detectable_change(*varied(16, seed, between))) for seed in range(tables)]
    effect = float(np.mean(detectable))
    detected = 0
    for seed in range(tables):
        rows, base = varied(16, seed, between)
        rows = [evaluation(row.nll - 0.1 + effect) for row in rows]
        detected += perplexity_ratio(rows, base, resamples=999).low > 1
    low, high = binom.interval(0.999, tables, 0.8)
    assert low <= detected <= high


def test_too_few_texts_detect_nothing_and_a_table_of_them_says_so():
    rows, base = varied(FEWEST_TEXTS - 1, 0)
    assert detectable_change(rows, base) == math.inf
    sentence = precision({"keep 0.5": rows}, base)
    assert sentence.startswith("7 texts, too few for a verdict")
    assert "speak of these texts alone" in sentence
    assert precision({"keep 0.5": rows[:1]}, base[:1]).startswith("1 text, too few for a verdict")


def test_a_table_says_the_smallest_and_the_largest_of_its_detectable_effects():
    steady, base = varied(9, 0, between=0.01)
    unsteady, _ = varied(9, 0, between=0.2)
    sentence = precision({"steady": steady, "unsteady": unsteady}, base)
    low, high = (per_cent(detectable_change(rows, base)) for rows in (steady, unsteady))
    assert sentence == (
        f"9 texts are resampled. Minimal detectable effect (80 % power): {low} (steady) to {high} (unsteady)."
    )


def test_a_limit_beyond_all_numbers_is_infinite():
    base = [noise(40, seed) for seed in range(FEWEST_TEXTS)]
    rows = [nll + change for nll, change in zip(base, [0.0] * 7 + [10_000.0], strict=True)]
    interval = perplexity_ratio([evaluation(nll) for nll in rows], [evaluation(nll) for nll in base])
    assert (interval.low < 1, interval.high) == (True, math.inf)


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


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_perplexity_has_the_interval_of_its_mean_loss(shift):
    rows = [evaluation(noise(40 + 9 * i, i) + shift) for i in range(FEWEST_TEXTS)]
    interval_of = perplexity_interval(rows)
    losses = torch.cat([row.nll for row in rows])
    assert interval_of.value == pytest.approx(math.exp(losses.mean()))
    assert interval_of.low < interval_of.value < interval_of.high


def test_paired_rows_are_ratios_of_the_first_label_to_the_second():
    rows = {
        label: [evaluation(noise(64, i) + shift) for i in range(2)] for label, shift in (("0.9", 0.0), ("0.5", 0.1))
    }
    [row] = paired_rows(rows, [("0.5", "0.9")])
    assert row["pair"] == "0.5 over 0.9"
    assert [row[name] for name in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([math.exp(0.1)] * 3)
