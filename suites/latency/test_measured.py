"""Real time on this machine: what compression costs and buys.

No number here is a baseline. Held are relations that hold on any machine: bytes exactly, times with
generous bounds.
"""

from __future__ import annotations

import pytest

from knorm_core.counts import kept_count
from knorm_core.latency import ColdStart, Contexts, Latency, measure_cold_start, measure_contexts, measure_latency
from knorm_core.latency.records import cold_start_records, contexts_record, latency_record
from knorm_core.latency.tables import cold_start_tables, contexts_table, latency_table
from knorm_core.methods.language_model import text_config
from suites.latency.conftest import timed_dtype

pytestmark = pytest.mark.latency

RATIOS = (1.0, 0.9, 0.5, 0.1)
CONTEXTS = (512, 1024, 2048, 4096, 8192)
PRUNE_AFTER = 256


@pytest.fixture(scope="module")
def latency(timed_model, random_prompt) -> Latency:
    return measure_latency(
        timed_model,
        random_prompt(PRUNE_AFTER),
        keep_ratios=RATIOS,
        prune_after=PRUNE_AFTER,
        new_tokens=8,
        repeats=11,
        warmup=1,
    )


@pytest.fixture(scope="module")
def contexts(timed_model, random_prompt) -> Contexts:
    limit = getattr(text_config(timed_model), "max_position_embeddings", None) or CONTEXTS[-1]
    lengths = [context for context in CONTEXTS if context <= limit]
    return measure_contexts(
        timed_model, random_prompt(lengths[-1]), contexts=lengths, keep_ratios=RATIOS, new_tokens=8, repeats=5
    )


@pytest.fixture(scope="module")
def cold(timed_model, request) -> ColdStart:
    option = request.config.getoption
    return measure_cold_start(
        option("knorm_model"),
        keep_ratios=RATIOS,
        prompt_tokens=PRUNE_AFTER,
        prune_after=PRUNE_AFTER,
        new_tokens=4,
        processes=4,
        repeats=2,
        dtype=str(timed_dtype(request.config)).removeprefix("torch."),
        device=option("knorm_device"),
    )


def test_compression_does_not_shorten_the_time_to_first_token(latency, show_table, record_latency):
    table = latency_table(latency)
    show_table(table.title, table.rows, *table.notes)
    record_latency(latency_record(latency))
    assert not latency.failures
    # On a busy machine single rounds part by tens of per cent; there, the interval has to reach the bound.
    bound = "high" if latency.environment.busy else "value"
    ratios = {row.keep_ratio: getattr(row.ttft_seconds.ratio, bound) for row in latency}
    assert all(ratio >= 0.95 for ratio in ratios.values()), (
        f"honest timers show a shorter time to first token than keep 1 has ({bound} of the paired ratio): {ratios}"
    )


def test_compressing_takes_a_small_part_of_the_time(latency):
    for row in latency:
        generation = row.ttft_seconds.median + latency.new_tokens / row.tokens_per_second.median
        assert row.compress_seconds.median < 0.5 * generation
    assert latency.row(1.0).compress_seconds.median == 0


def test_throughput_changes_by_less_than_half_at_a_short_context(latency):
    for row in latency:
        assert 0.5 < row.tokens_per_second.ratio.value < 2


def test_the_peak_is_the_prompt_and_the_mean_lies_between(latency):
    rows = [latency.row(ratio) for ratio in RATIOS]
    peaks = {row.cache_bytes_peak.median for row in rows[1:]}
    assert len(peaks) == 1, "every compressed row holds the whole prompt once"
    per_token = peaks.pop() // PRUNE_AFTER
    for row in rows[1:]:
        assert row.cache_bytes_after_prefill.median == kept_count(PRUNE_AFTER, row.keep_ratio) * per_token
        assert row.cache_bytes_after_prefill.median < row.cache_bytes_mean.median <= row.cache_bytes_peak.median


def test_a_compressed_cache_is_smaller_at_every_context(contexts, show_table, record_latency):
    table = contexts_table(contexts)
    show_table(table.title, table.rows, *table.notes)
    record_latency(contexts_record(contexts))
    for latency in contexts.latencies:
        assert not latency.failures
        per_token = latency.row(1.0).cache_bytes_after_prefill.median // latency.prompt_tokens
        for row in latency:
            kept = kept_count(latency.prompt_tokens, row.keep_ratio)
            assert row.cache_bytes_after_prefill.samples == (kept * per_token,) * len(latency.orders)


def test_throughput_gains_grow_with_the_context(contexts):
    """Not where they set in, which is the machine's affair: only that a tenth of a long cache is not slower to read."""
    longest = contexts.latencies[-1].row(0.1).tokens_per_second.ratio.value
    shortest = contexts.latencies[0].row(0.1).tokens_per_second.ratio.value
    assert longest > 0.8 * shortest


def test_first_calls_of_fresh_processes_are_recorded_for_the_ledger(cold, show_table, record_latency):
    for table in cold_start_tables(cold):
        show_table(table.title, table.rows, *table.notes)
    for record in cold_start_records(cold):
        record_latency(record)
    assert not cold.failures
    assert all(row.warm_ttft.ratio.low > 0 for row in cold.rows)


def test_a_first_call_takes_at_least_as_long_as_a_warm_one(cold):
    assert cold.first_call.ratio.value > 0.8
    assert cold.first_call_with_start.median > cold.first_call.median
