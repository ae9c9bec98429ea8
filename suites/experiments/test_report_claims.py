"""What else the report's documents claim: a U curve, truncation that does better, and times that were never taken.

Main job, CPU-seconds: eight samples of some 190 tokens, seven rows each in float64, 57; eight texts of 512, seven rows
each in float32, 30.
"""

from __future__ import annotations

import pytest
import torch

from knorm_core import evaluate_rows
from knorm_core.experiments.codecs import RECORDS
from knorm_core.experiments.controls import shown_change
from knorm_core.experiments.truncation import (
    LOW_NORM,
    TEXTS,
    TRUNCATED,
    truncation,
    truncation_arguments,
    truncation_pairs,
    truncation_rows,
)
from knorm_core.experiments.u_curve import RATIOS, RECENT, curve_arguments, curve_pairs, curve_rows
from knorm_core.latency.reported import published_rows, published_throughput
from knorm_core.plugin.breadth import across_kinds
from knorm_core.protocols import REPORT
from knorm_core.results.families import NO_MODEL
from knorm_core.results.interval import Interval
from knorm_core.results.records import pair
from knorm_core.sweeps.codec import each
from suites.families import random_ids, tiny_model

TOLERANCE = 1e-3  # float32, as for the breadth tables
PROTECTED = {"u-curve": 0, "u-curve-recent": RECENT}
of_curves = pytest.mark.parametrize("name", PROTECTED)


def on_the_model(test):
    """Run a test in the main job, beside those that share what they compute."""
    return pytest.mark.repro(pytest.mark.xdist_group("report claims")(test))


# --- The U curve


@pytest.mark.fast
def test_the_latest_keys_are_protected_in_the_second_curve_alone():
    model, ids = tiny_model("gpt_neox"), random_ids(50)
    curve, protected = (
        {ratio: [evaluation] for ratio, evaluation in evaluate_rows(model, ids, curve_arguments(recent)).items()}
        for recent in PROTECTED.values()
    )
    for ratio in RATIOS:
        assert curve[ratio][0].evictions_per_layer == protected[ratio][0].evictions_per_layer
        assert curve[ratio][0].ppl != protected[ratio][0].ppl
    # Before each of the last 17 of 49 tokens there are 32 keys, and keep 0.95 evicts one of them.
    assert curve[0.95][0].evictions_per_layer[1:] == (17,) * (len(curve[0.95][0].evictions_per_layer) - 1)
    assert curve[0.95][0].evictions_per_layer[0] == 0
    assert [row["texts"] for row in curve_rows(curve)] == [1] * 4
    assert [row["pair"] for row in curve_pairs(curve)] == ["0.6 over 0.95", "0.3 over 0.95", "0.3 over 0.6"]


@pytest.fixture(scope="module")
def samples(language_model, texts_of):
    return texts_of(language_model, "embedded-short", 256)


@pytest.fixture(scope="module")
def curves(samples, rows_of):
    """{table: {keep ratio: one evaluation per text}}."""
    rows = {(name, ratio): row for name, recent in PROTECTED.items() for ratio, row in curve_arguments(recent).items()}
    tables = [rows_of(f"embedded-short: {text.title}", text.input_ids, rows) for text in samples]
    return {
        name: {ratio: [table[name, ratio] for table in tables] for ratio in curve_arguments()} for name in PROTECTED
    }


@of_curves
@on_the_model
def test_the_u_curve_matches_the_baseline(name, curves, samples, check_rows, show_table):
    rows = curve_rows(curves[name])
    show_table(
        f"the report's {name.replace('-', ' ')}",
        [
            {
                "keep ratio": str(row["keep_ratio"]),
                "PPL": row["ppl"],
                **shown_change(Interval.of(row, "ratio")),
                "evictions per layer": row["evictions_per_layer"],
            }
            for row in rows
        ],
        f"Threshold 32, scored from the start, layer 0 left alone, {len(samples)} texts; the latest {PROTECTED[name]} "
        f"keys protected.",
    )
    check_rows(f"report/{name}", rows, ["keep_ratio"], samples, tokens=256)


@of_curves
@on_the_model
def test_paired_ratios_of_the_u_curve_match_the_baseline(name, curves, samples, check_rows):
    check_rows(f"report/{name}-pairs", curve_pairs(curves[name]), ["pair"], samples, tokens=256)


@on_the_model
def test_gentle_compression_is_the_worst_only_where_recent_keys_go(curves, claims):
    def fall(name):
        ratios = {row["pair"]: Interval.of(row, "ratio") for row in curve_pairs(curves[name])}
        return ratios[pair(str(RATIOS[1]), str(RATIOS[0]))]

    falls = [fall(name) for name in PROTECTED]
    assert falls[0].high < 0.7
    assert falls[1].low < 1 < falls[1].high


# --- Truncation


@pytest.mark.fast
def test_low_norm_is_held_against_truncation_at_its_own_keep_ratio_on_the_same_tokens():
    evaluations = truncation(tiny_model("gpt_neox"), [random_ids(90), random_ids(100)])
    assert {tuple(len(each.nll) for each in texts) for texts in evaluations.values()} == {(44, 49)}
    assert len({texts[0].ppl for texts in evaluations.values()}) == len(evaluations) == 7
    assert [row["pair"] for row in truncation_pairs(evaluations)] == [
        f"low_norm_exact {ratio} 0 over newest {ratio} {sinks}" for ratio in (0.9, 0.6) for sinks in (0, 4)
    ]
    for row in (*LOW_NORM, *TRUNCATED):
        whole, evicted, *_ = evaluations[row][0].evictions
        assert whole == ()  # the report's scripts leave layer 0 alone
        assert evicted[0].before == evaluations[row][0].effective_prune_after + 1  # and feed, then compress
    rows = truncation_rows(evaluations)
    assert [row["texts"] for row in rows] == [2] * 7
    assert rows[0]["ratio"] == 1


@pytest.fixture(scope="module")
def long_texts(language_model, texts_of):
    return across_kinds(texts_of(language_model, "embedded-breadth"))[:TEXTS]


@pytest.fixture(scope="module")
def truncated(language_model, single_precision, long_texts, remembered):
    """Rows of the table, and of its paired ratios, in float32."""

    def computed():
        evaluations = truncation(single_precision, [text.input_ids for text in long_texts])
        return truncation_rows(evaluations), truncation_pairs(evaluations)

    every = torch.cat([text.input_ids for text in long_texts])
    settings = [dict(row) for row in truncation_arguments().values()] + [str(single_precision.dtype)]
    return remembered("truncation", "embedded-breadth", every, settings, lambda: list(computed()), each(RECORDS))


@on_the_model
def test_truncation_beside_low_norm_matches_the_baseline(truncated, long_texts, check_rows, show_table):
    rows, _ = truncated
    show_table(
        "low norm beside truncation, as the report compares them",
        [
            {
                "policy": row["policy"].replace("_", " "),
                "first tokens protected": row["sinks"],
                "keep ratio": str(row["keep_ratio"]),
                "PPL": row["ppl"],
                **shown_change(Interval.of(row, "ratio")),
            }
            for row in rows
        ],
        f"prune_after 256, layer 0 left alone, fed before it is compressed; {len(long_texts)} texts of 512 tokens in "
        f"float32.",
    )
    key = ["policy", "keep_ratio", "sinks"]
    check_rows("report/truncation", rows, key, long_texts, rtol=TOLERANCE, tokens=512, dtype="float32")


@on_the_model
def test_paired_ratios_of_truncation_match_the_baseline(truncated, long_texts, check_rows):
    _, pairs = truncated
    check_rows("report/truncation-pairs", pairs, ["pair"], long_texts, rtol=TOLERANCE, tokens=512, dtype="float32")


# --- Times that the report published


@on_the_model
@pytest.mark.parametrize(
    ("name", "rows", "label"),
    [("times", published_rows(), "document"), ("throughput", published_throughput(), "step")],
    ids=["times", "throughput"],
)
def test_what_the_reports_own_tables_say_of_its_times_matches_the_baseline(golden, name, rows, label):
    # Arithmetic, which asks no model.
    golden.check(f"{NO_MODEL}/report/published-{name}", rows, key=[label], made_from={"source": REPORT})
