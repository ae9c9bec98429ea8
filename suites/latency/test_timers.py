"""The timers are right: tested with a clock whose seconds pass only when the test says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

from knorm_core import l2_compress
from knorm_core.latency import MeasurementError, measure_latency
from knorm_core.latency.generation import generation_schedule
from knorm_core.latency.quantity import median_interval, quantity
from knorm_core.latency.rounds import run_rounds
from knorm_core.methods.anatomy import anatomy
from suites.families import random_ids

pytestmark = pytest.mark.fast

RATIOS = (1.0, 0.9, 0.5)
seconds = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**32)


@given(
    st.data(), st.integers(1, 12), st.integers(0, 3), st.lists(st.sampled_from(RATIOS), unique=True, min_size=1), seeds
)
def test_every_round_measures_every_keep_ratio_once_and_none_is_lost(data, repeats, warmup, ratios, seed):
    failing = data.draw(st.sets(st.integers(0, warmup + repeats - 1), max_size=warmup + repeats - 1))
    calls: list[float] = []

    def measure(ratio: float) -> int:
        if ratio == ratios[-1] and index() in failing:
            starts.append(len(calls) + 1)
            calls.append(ratio)
            raise ZeroDivisionError(f"round {len(starts) - 2}")
        calls.append(ratio)
        current = index()
        if len(calls) - starts[-1] == len(ratios):
            starts.append(len(calls))
        return current

    starts = [0]

    def index() -> int:
        return len(starts) - 1

    if failing.issuperset(range(warmup, warmup + repeats)):
        with pytest.raises(MeasurementError, match="ZeroDivisionError: round"):
            run_rounds(measure, ratios, repeats=repeats, warmup=warmup, seed=seed)
        return
    rounds = run_rounds(measure, ratios, repeats=repeats, warmup=warmup, seed=seed)
    counted = [warmup + index for index in range(repeats) if warmup + index not in failing]
    assert [set(results.values()) for results in rounds.completed] == [{index} for index in counted]
    assert all(sorted(results) == sorted(ratios) for results in rounds.completed)
    lost = [failure.round + (0 if failure.warmup else warmup) for failure in rounds.failures]
    assert sorted(lost) == sorted(failing)
    assert all(failure.warmup == (round_ < warmup) for failure, round_ in zip(rounds.failures, lost, strict=True))
    assert {failure.case for failure in rounds.failures} <= {ratios[-1]}
    assert [failure.error for failure in rounds.failures] == [f"ZeroDivisionError: round {round_}" for round_ in lost]


@given(seeds)
@settings(max_examples=20)
def test_the_order_is_drawn_afresh_for_every_round_and_repeats_with_the_seed(seed):
    def orders(seed: int) -> list[tuple[float, ...]]:
        rounds = run_rounds(lambda ratio: None, RATIOS, repeats=80, warmup=1, seed=seed)
        return [tuple(results) for results in rounds.completed]

    drawn = orders(seed)
    # 80 rounds miss one of the six orders with probability 3e-6
    assert len(set(drawn)) == 6
    assert orders(seed) == drawn
    assert orders(seed + 1) != drawn


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=12), seeds)
@settings(max_examples=25)
@example([(1.0, 1.0), (4.0, 2.0), (100.0, 1.0)], 0)
def test_medians_quartiles_and_ratios_are_those_of_the_samples_paired_by_round(pairs, seed):
    samples, baseline = [sample for sample, _ in pairs], [base for _, base in pairs]
    measured = quantity(samples, baseline, seed)
    assert measured.samples == tuple(samples)
    assert measured.median == pytest.approx(statistics.median(samples))
    if len(samples) > 1:
        quartiles = statistics.quantiles(samples, n=4, method="inclusive")
        assert (measured.lower_quartile, measured.upper_quartile) == pytest.approx((quartiles[0], quartiles[2]))
    assert measured.ratio is not None
    paired = [sample / base for sample, base in pairs]
    assert measured.ratio.samples == pytest.approx(paired)
    assert measured.ratio.value == pytest.approx(statistics.median(paired))
    if len(pairs) == 1:
        assert (measured.ratio.low, measured.ratio.high) == (0, math.inf)
    else:
        ascending = [min(paired), measured.ratio.low, measured.ratio.value, measured.ratio.high, max(paired)]
        assert ascending == pytest.approx(sorted(ascending))
    assert quantity(samples, baseline, seed) == measured


@given(st.lists(seconds, min_size=2, max_size=10), st.floats(0.1, 10))
@settings(max_examples=20)
def test_a_drifting_machine_leaves_paired_ratios_alone(drift, factor):
    ratio = quantity([factor * speed for speed in drift], drift).ratio
    assert ratio is not None
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((factor, factor, factor))


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    trials = 200
    covered = 0
    for trial in range(trials):
        low, high = median_interval(generator.lognormal(0, 0.1, 11).tolist(), trial)
        covered += low <= 1 <= high
    assert 0.9 <= covered / trials <= 0.995


def test_a_baseline_of_zero_has_no_ratio():
    assert quantity([1.0, 2.0], [0.0, 0.0]).ratio is None


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """A clock, and costs in seconds that a model's forward pass and a compressor add to it.

    A prompt costs ``per_prompt_token`` for each token, a decoded token ``per_token`` plus ``per_key`` for
    each key in the cache, a call of the compressor ``per_call``; all times the speed of the round.
    """

    def __init__(self, costs: tuple[float, float, float, float], speeds: list[float], rows: int) -> None:
        self.clock = FakeClock()
        self.per_prompt_token, self.per_token, self.per_key, self.per_call = costs
        self.speeds, self.rows = speeds, rows
        self.prompts = 0

    @property
    def speed(self) -> float:
        return self.speeds[(self.prompts - 1) // self.rows]

    @contextmanager
    def runs(self, model: nn.Module) -> Iterator[None]:
        def forward(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            cache = kwargs["cache"] if "cache" in kwargs else kwargs["past_key_values"]  # renamed in transformers 5.24
            count, keys = kwargs["input_ids"].shape[1], cache.get_seq_length()
            self.prompts += count > 1
            cost = count * self.per_prompt_token if count > 1 else self.per_token + keys * self.per_key
            self.clock.now += cost * self.speed

        anatomy(model, 64)  # looked at once, before anything is timed
        hook = model.register_forward_pre_hook(forward, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def compressor(self, cache: Any, **arguments: Any) -> Any:
        self.clock.now += self.per_call * self.speed
        return l2_compress(cache, **arguments)

    def expected(self, ratio: float, tokens: int, new_tokens: int, prune_after: int) -> tuple[float, float, float]:
        """TTFT, tokens/s and seconds of compressing, at speed 1."""
        calls = new_tokens if ratio < 1 else 0
        schedule = {e.step: e.after for e in generation_schedule(tokens, new_tokens, prune_after, ratio)}
        length, decode = tokens, 0.0
        for step in range(tokens, tokens + new_tokens):
            length = schedule.get(step, length)
            decode += self.per_token + length * self.per_key
            length += 1
        first_call = self.per_call if calls else 0.0
        decode += calls * self.per_call - first_call
        return tokens * self.per_prompt_token + first_call, new_tokens / decode, calls * self.per_call


sixteenths = st.integers(1, 160).map(lambda count: count / 16)  # so that a clock far from zero adds up exactly


@given(
    st.tuples(sixteenths, sixteenths, sixteenths, sixteenths),
    st.integers(34, 40),
    st.integers(2, 6),
    st.integers(30, 40),
    st.lists(sixteenths, min_size=1, max_size=3),
    seeds,
)
@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])  # shrinking would run the model for minutes
def test_latency_is_what_the_clock_says(tiny, costs, tokens, new_tokens, prune_after, speeds, seed):
    machine = Machine(costs, [1000.0, *speeds], len(RATIOS))  # the warm-up round is absurdly slow
    with machine.runs(tiny):
        latency = measure_latency(
            tiny,
            random_ids(tokens),
            keep_ratios=RATIOS,
            prune_after=prune_after,
            new_tokens=new_tokens,
            repeats=len(speeds),
            warmup=1,
            seed=seed,
            compressor=machine.compressor,
            allow_no_eviction=True,
            clock=machine.clock,
        )
    baseline = machine.expected(1.0, tokens, new_tokens, prune_after)
    for row in latency:
        ttft, throughput, compress = machine.expected(row.keep_ratio, tokens, new_tokens, prune_after)
        assert row.ttft_seconds.samples == pytest.approx([ttft * speed for speed in speeds])
        assert row.tokens_per_second.samples == pytest.approx([throughput / speed for speed in speeds])
        assert row.compress_seconds.samples == pytest.approx([compress * speed for speed in speeds])
        assert row.ttft_seconds.ratio.samples == pytest.approx([ttft / baseline[0]] * len(speeds))
        assert row.tokens_per_second.ratio.value == pytest.approx(throughput / baseline[1])
        assert row.compress_seconds.ratio is None


def test_a_failing_round_is_recorded_and_not_counted(tiny):
    machine = Machine((1, 1, 0, 1), [1000.0, 1.0, 50.0, 2.0], 2)
    failing = 2  # of the rounds, warm-up included

    def compressor(cache: Any, **arguments: Any) -> Any:
        if machine.speed == machine.speeds[failing]:
            machine.prompts = (failing + 1) * machine.rows  # the round ends here
            raise MemoryError("out of it")
        return machine.compressor(cache, **arguments)

    with machine.runs(tiny):
        latency = measure_latency(
            tiny,
            random_ids(40),
            keep_ratios=[0.5],
            prune_after=40,
            new_tokens=2,
            repeats=3,
            warmup=1,
            compressor=compressor,
            clock=machine.clock,
        )
    assert latency.row(1.0).ttft_seconds.samples == (40.0, 80.0)
    assert latency.row(0.5).ttft_seconds.samples == (41.0, 82.0)
    assert len(latency.orders) == 2
    [failure] = latency.failures
    assert (failure.round, failure.warmup, failure.case, failure.error) == (1, False, 0.5, "MemoryError: out of it")


def test_when_every_round_fails_the_first_failure_is_raised(tiny):
    def compressor(cache: Any, **arguments: Any) -> Any:
        raise MemoryError("out of it")

    with pytest.raises(MeasurementError, match=r"none of the 3 .* at 0\.5: MemoryError: out of it") as raised:
        measure_latency(tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, repeats=3, compressor=compressor)
    assert isinstance(raised.value.__cause__, MemoryError)


def test_a_clock_that_stands_still_is_an_error(tiny):
    with pytest.raises(MeasurementError, match="clock did not advance"):
        measure_latency(
            tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=1, repeats=1, clock=FakeClock()
        )
