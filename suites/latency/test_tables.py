"""The structure of what is printed and exported."""

from __future__ import annotations

import dataclasses
import json

import pytest

from knorm_core.latency import Contexts, Latency, measure_contexts, measure_latency
from knorm_core.latency.quantity import ratio_of
from knorm_core.latency.records import contexts_record, latency_record
from knorm_core.latency.rounds import Failure
from knorm_core.latency.tables import contexts_table, latency_table
from suites.families import random_ids

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def latency(tiny) -> Latency:
    return measure_latency(tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=2, repeats=2, warmup=0)


@pytest.fixture(scope="module")
def contexts(tiny) -> Contexts:
    return measure_contexts(
        tiny, random_ids(82), contexts=[44, 64, 84], keep_ratios=[0.5], new_tokens=2, repeats=2, warmup=0
    )


def with_throughput(contexts: Contexts, *ratios: list[float]) -> Contexts:
    """The same, but with these paired ratios of tokens/s at keep 0.5."""

    def changed(latency: Latency, samples: list[float]) -> Latency:
        baseline, row = latency.rows
        throughput = dataclasses.replace(row.tokens_per_second, ratio=ratio_of(samples))
        return dataclasses.replace(latency, rows=(baseline, dataclasses.replace(row, tokens_per_second=throughput)))

    latencies = tuple(changed(latency, samples) for latency, samples in zip(contexts.latencies, ratios, strict=True))
    return dataclasses.replace(contexts, latencies=latencies)


def test_a_latency_prints_as_a_short_table_and_repeats_itself_in_a_line(latency, contexts):
    lines = str(latency).splitlines()
    assert lines[0].startswith("Latency: prompt 40, 2 tokens decoded")
    assert lines[1].split()[:3] == ["keep", "TTFT", "s"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "0.5"]
    assert len({len(line) for line in lines[1:4]}) == 1  # aligned
    assert len(lines) <= 7
    assert repr(latency) == "<Latency of keep 1, 0.5: prompt 40, 2 tokens decoded>"
    assert "from" in str(contexts) or "never decodes faster" in str(contexts)


def test_the_latency_table_has_these_columns(latency):
    table = latency_table(latency)
    assert [row["keep"] for row in table.rows] == ["1", "0.5"]
    assert all(
        list(row)
        == [
            "keep",
            "TTFT s",
            "of keep 1",
            "tokens/s",
            "× keep 1",
            "compress ms",
            "mean MiB",
            "× mean",
            "peak MiB",
        ]
        for row in table.rows
    )


def test_failures_and_a_busy_machine_are_said_below_the_table(latency):
    environment = dataclasses.replace(latency.environment, others_busy_cores=1.5)
    failure = Failure(1, False, 0.5, "MemoryError: out of it")
    notes = latency_table(dataclasses.replace(latency, environment=environment, failures=(failure,))).notes
    assert any(note.startswith("BUSY MACHINE: other processes took 1.5 of") for note in notes)
    assert "FAILED and not counted: 1 rounds; at 0.5: MemoryError: out of it" in notes


def test_the_contexts_table_has_these_columns(contexts):
    table = contexts_table(contexts)
    assert [(row["context"], row["keep"]) for row in table.rows] == [
        ("44", "1"),
        ("44", "0.5"),
        ("64", "1"),
        ("64", "0.5"),
        ("84", "1"),
        ("84", "0.5"),
    ]
    assert list(table.rows[0]) == [
        "context",
        "keep",
        "cache MiB",
        "× keep 1",
        "long run",
        "prompt s",
        "compressing",
        "tokens/s",
        "tokens/s × keep 1",
        "faster",
    ]


@pytest.mark.parametrize(
    ("ratios", "gains", "sentence"),
    [
        (([0.9, 0.9], [1.1, 1.2], [1.5, 1.6]), 64, "Keep 0.5 decodes faster than keep 1 from 64 tokens on."),
        (([1.1, 1.1], [1.1, 1.2], [1.5, 1.6]), 44, "Keep 0.5 decodes faster than keep 1 from 44 tokens on."),
        (([1.1, 1.1], [0.9, 1.2], [1.5, 1.6]), 84, "Keep 0.5 decodes faster than keep 1 from 84 tokens on."),
        (([1.1, 1.1], [1.1, 1.2], [0.9, 1.6]), None, "Keep 0.5 never decodes faster than keep 1, up to 84 tokens."),
    ],
)
def test_the_context_from_which_decoding_gains_is_found_and_never_is_said(contexts, ratios, gains, sentence):
    measured = with_throughput(contexts, *ratios)
    assert measured.gains_from(0.5) == gains
    assert sentence in contexts_table(measured).notes[0]
    assert contexts_record(measured).made_from["gains_from"] == {"0.5": gains}


def test_a_record_holds_every_quantity_with_its_interval_and_where_it_was_measured(latency):
    record = latency_record(latency)
    baseline, row = record.rows
    measured = latency.row(0.5).ttft_seconds
    assert row["ttft_seconds"] == measured.median
    assert (row["ttft_seconds_ratio_low"], row["ttft_seconds_ratio_high"]) == (measured.ratio.low, measured.ratio.high)
    assert (baseline["ttft_seconds_ratio"], baseline["keep_ratio"]) == (1, 1)
    assert "compress_seconds_ratio" not in row
    assert "peak_device_bytes" not in row  # no CUDA device
    assert record.made_from["environment"] == dataclasses.asdict(latency.environment)
    assert record.made_from["settings"]["prompt_tokens"] == 40
    json.dumps(record, allow_nan=False)


def test_the_record_of_contexts_has_a_row_per_length_and_ratio(contexts):
    record = contexts_record(contexts)
    assert [(row["context"], row["keep_ratio"]) for row in record.rows] == [
        (context, ratio) for context in (44, 64, 84) for ratio in (1.0, 0.5)
    ]
    assert record.made_from["gains_from"] == {"0.5": contexts.gains_from(0.5)}
    assert "prompt_tokens" not in record.made_from["settings"]
