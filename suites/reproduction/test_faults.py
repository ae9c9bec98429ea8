"""The report's own faults, measured: thresholds that are never reached, and what scoring from token 0 hides.

Samples of 150 and of 223 tokens, the ends of the report's range, and a text of 512; the evictions are arithmetic, so
any model shows the same. 20 CPU-seconds in float64.
"""

from __future__ import annotations

import dataclasses

import pytest

from knorm_core import perplexity
from knorm_core.experiments.intervals import perplexity_ratio
from knorm_core.inputs.texts import SHORT_SAMPLE
from knorm_core.plugin.inputs import made_from
from knorm_core.results.interval import Interval
from knorm_core.results.records import pair

pytestmark = [pytest.mark.repro, pytest.mark.xdist_group("faults"), pytest.mark.reads_text("embedded-articles")]

RATIOS = (0.9, 0.5, 0.1)
LENGTHS = (*SHORT_SAMPLE, 512)
AS_GIVEN = {"adjust": False, "score_from": "start", "allow_no_eviction": True}
SHORT = {
    "short samples, prune_after 256 as given": AS_GIVEN | {"prune_after": 256},
    "short samples, prune_after 512 as given": AS_GIVEN | {"prune_after": 512},
}
LONG = {
    "512 tokens, prune_after 512 as given": AS_GIVEN | {"prune_after": 512},
    "512 tokens, prune_after 512 adjusted": {"prune_after": 512},
}


@pytest.fixture(scope="module")
def texts(language_model, texts_of):
    """An article per length, cut to it."""
    return [texts_of(language_model, "embedded-articles", length)[index] for index, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def fault_rows(rows_of, texts):
    """One row per case and keep ratio; its perplexity against that of keep ratio 1, scored alike."""
    *samples, long = texts
    rows = list(cases(rows_of, samples, SHORT))
    rows += cases(rows_of, [long], LONG)
    return rows + list(scored_both_ways(rows_of, samples))


def test_the_faults_of_the_report_match_the_baseline(fault_rows, language_model, texts, golden, show_table):
    show_table(
        f"the report's faults, {language_model.slug}",
        [
            {
                "case": row["case"],
                "keep ratio": str(row["keep_ratio"]),
                "evictions per layer": row["evictions_per_layer"],
                "peak cache": row["peak_cache"],
                "scored tokens": row["scored_tokens"],
                "change": f"{row['ratio'] - 1:+.1%}",
            }
            for row in fault_rows
        ],
        "Evictions and tokens: all texts together.",
    )
    golden.check(
        f"{language_model.slug}/embedded-articles/faults",
        fault_rows,
        key=("case", "keep_ratio"),
        made_from=made_from(language_model, texts, tokens=LENGTHS),
    )


def test_the_diluted_change_against_the_whole_one_matches_the_baseline(fault_rows, language_model, texts, golden):
    """What the claim is tested with: the same summed losses over more tokens, so an exact power of the whole change."""
    row_of = {(row["case"], row["keep_ratio"]): row for row in fault_rows}
    rows = []
    for ratio in RATIOS:
        labels = [f"short samples, scored {how}" for how in ("in phase 2", "from the start")]
        whole, diluted = (row_of[label, ratio] for label in labels)
        power = whole["scored_tokens"] / diluted["scored_tokens"] - 1
        ends = (Interval.of(whole, "ratio").value, whole["ratio_high"], whole["ratio_low"])
        against = Interval(*(end**power for end in ends))
        rows.append({"pair": pair(*(f"{label} {ratio}" for label in reversed(labels))), **against.columns("ratio")})
    golden.check(
        f"{language_model.slug}/embedded-articles/faults-pairs",
        rows,
        key=("pair",),
        made_from=made_from(language_model, texts, tokens=LENGTHS),
    )


@pytest.mark.parametrize("case", [*SHORT, "512 tokens, prune_after 512 as given"])
def test_a_threshold_that_is_not_reached_compares_nothing_with_nothing(case, fault_rows):
    [row] = [row for row in fault_rows if row["case"] == case]
    assert row["evictions_per_layer"] == 0
    assert row["ratio"] == 1
    assert row["peak_cache"] <= 511


def test_scoring_from_the_start_shows_the_share_of_the_change_that_its_tokens_have(fault_rows):
    row_of = {(row["case"], row["keep_ratio"]): row for row in fault_rows}
    for ratio in RATIOS:
        whole, diluted = (row_of[f"short samples, scored {how}", ratio] for how in ("in phase 2", "from the start"))
        share = whole["scored_tokens"] / diluted["scored_tokens"]
        assert diluted["ratio"] == pytest.approx(whole["ratio"] ** share, rel=1e-9)
        assert share < 0.5


def cases(rows_of, texts, arguments):
    """A row per case, at keep ratio 0.5."""
    rows = {(case, ratio): row | {"keep_ratio": ratio} for case, row in arguments.items() for ratio in (1.0, 0.5)}
    tables = [rows_of(f"embedded-articles: {text.title}", text.input_ids, rows) for text in texts]
    for case in arguments:
        yield table_row(case, 0.5, *([table[case, ratio] for table in tables] for ratio in (0.5, 1.0)))


def scored_both_ways(rows_of, texts):
    """Every keep ratio scored from the start and in phase 2 only, which are the last tokens of the same pass."""
    rows = {ratio: {"keep_ratio": ratio, "score_from": "start"} for ratio in (1.0, *RATIOS)}
    tables = [rows_of(f"embedded-articles: {text.title}", text.input_ids, rows) for text in texts]
    for ratio in RATIOS:
        pair = [[table[row] for table in tables] for row in (ratio, 1.0)]
        yield table_row("short samples, scored from the start", ratio, *pair)
        yield table_row("short samples, scored in phase 2", ratio, *(map(phase_2, evaluations) for evaluations in pair))


def phase_2(evaluation):
    count = evaluation.seq_len - 1 - evaluation.effective_prune_after
    return dataclasses.replace(evaluation, nll=evaluation.nll[-count:])


def table_row(case, ratio, evaluations, plain):
    evaluations, plain = list(evaluations), list(plain)
    return {
        "case": case,
        "keep_ratio": ratio,
        "ppl": perplexity(evaluations),
        **perplexity_ratio(evaluations, plain).columns("ratio"),
        "scored_tokens": sum(len(evaluation.nll) for evaluation in evaluations),
        "evictions_per_layer": sum(max(evaluation.evictions_per_layer) for evaluation in evaluations),
        "peak_cache": max(evaluation.peak_cache for evaluation in evaluations),
    }
