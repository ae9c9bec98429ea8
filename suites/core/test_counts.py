"""Counts, adjuster and schedule against their formulas and a naive simulation."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from knorm_core import effective_prune_after, eviction_schedule, kept_count
from knorm_core.counts import budget_schedule, cache_lengths

pytestmark = pytest.mark.fast

# Ratios as people write them: a few decimals.
ratios = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@pytest.mark.parametrize(
    ("length", "ratio", "expected"),
    [(100, 0.55, 55), (100, 0.07, 7), (256, 0.9, 231), (256, 0.1, 26), (1, 0.001, 1), (0, 0.5, 0), (7, 1.0, 7)],
)
def test_kept_count_is_taken_on_the_decimal_number(length, ratio, expected):
    assert kept_count(length, ratio) == expected


@given(st.integers(0, 10_000), ratios)
def test_kept_count_is_the_least_integer_not_below_ratio_times_length(length, ratio):
    exact = Decimal(str(ratio)) * length
    kept = kept_count(length, ratio)
    assert kept - 1 < exact <= kept
    assert kept == 0 if length == 0 else 1 <= kept <= length


@given(st.integers(1, 2000), ratios, ratios)
def test_kept_count_grows_with_ratio_and_length(length, first, second):
    low, high = sorted((first, second))
    assert kept_count(length, low) <= kept_count(length, high)
    assert kept_count(length, low) <= kept_count(length + 1, low) <= kept_count(length, low) + 1


@given(st.integers(34, 5000), st.integers(1, 5000))
def test_adjuster_follows_its_formula_and_leaves_a_token_to_score(seq_len, prune_after):
    adjusted = effective_prune_after(seq_len, prune_after)
    assert adjusted == max(min(prune_after, max(seq_len - 50, seq_len // 2)), 32)
    assert 32 <= adjusted <= seq_len - 2
    assert adjusted <= max(prune_after, 32)


@pytest.mark.parametrize("seq_len", [0, 1, 33])
def test_adjuster_refuses_a_text_too_short_to_score(seq_len):
    with pytest.raises(ValueError, match=f"seq_len={seq_len} is too short .* at least 34"):
        effective_prune_after(seq_len, 256)


def simulate(seq_len, threshold, ratio, once):
    """Cache lengths fed token by token, the slow way and with no schedule in sight."""
    cache, evicted, lengths = 0, [], []
    for token in range(seq_len - 1):
        if token >= threshold and cache >= threshold and not (once and token > threshold):
            kept = -(-Fraction(str(ratio)) * cache // 1)
            if kept < cache:
                evicted.append((token, cache, kept))
                cache = kept
        cache += 1
        if token >= threshold:
            lengths.append(cache)
    return evicted, lengths


@given(st.integers(2, 400), st.integers(1, 200), ratios, st.sampled_from(["every_step", "after_prefill"]))
def test_schedule_equals_a_naive_simulation_of_cache_lengths(seq_len, threshold, ratio, when):
    assume(threshold < seq_len)
    schedule = eviction_schedule(seq_len, threshold, ratio, when=when)
    evicted, lengths = simulate(seq_len, threshold, ratio, when == "after_prefill")
    assert list(schedule) == evicted
    assert cache_lengths(seq_len, threshold, schedule) == lengths


@given(st.integers(40, 400), st.integers(32, 200))
def test_schedule_is_empty_where_nothing_would_go(seq_len, threshold):
    assert eviction_schedule(seq_len, threshold, 1.0) == ()
    assert eviction_schedule(threshold + 1, threshold, 0.5) == ()


def test_schedule_waits_until_an_eviction_would_remove_something():
    # ceil(0.99 * L) == L for every L up to 100: the cache of 40 grows to 100 before the first eviction
    assert eviction_schedule(103, 40, 0.99)[0] == (100, 100, 99)


@given(st.integers(10, 300), st.integers(1, 200))
def test_budget_is_never_exceeded(seq_len, budget):
    assume(budget < seq_len - 1)
    schedule = budget_schedule(seq_len, budget)
    assert set(cache_lengths(seq_len, budget, schedule)) == {budget}
    assert len(schedule) == seq_len - 1 - budget
