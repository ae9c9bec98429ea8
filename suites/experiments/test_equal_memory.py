"""The keep ratios again, at equal memory: at equal peak, and at equal mean cache length.

3 texts × (4 prefixes + 8 rows): 80 CPU-seconds in float64, beside the tables of test_controls.
"""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core import evaluate, eviction_schedule, perplexity
from knorm_core.counts import cache_lengths
from knorm_core.experiments.controls import NEWEST_WITH_SINKS, UNCOMPRESSED, Control, policy_arguments, shown_change
from knorm_core.experiments.equal_memory import (
    cycle_mean,
    mean_cache_over_last,
    mean_over_last,
    prune_after_for_mean,
    scored_last,
)
from knorm_core.experiments.intervals import perplexity_ratio, precision
from suites.experiments.conftest import on_both_texts
from suites.families import random_ids, tiny_model

ratios = st.integers(1, 99).map(lambda percent: percent / 100)


@pytest.mark.fast
@settings(max_examples=30)
@given(ratio=ratios, prune_after=st.integers(2, 100))
def test_the_closed_form_is_the_mean_of_every_full_cycle(ratio, prune_after):
    schedule = eviction_schedule(5 * prune_after, prune_after, ratio)
    lengths = cache_lengths(5 * prune_after, prune_after, schedule)
    ends = [i for i, length in enumerate(lengths) if length == prune_after]
    if len(schedule) < 2 or schedule[0].step != prune_after or not ends:
        return  # kept_count(P) == P: the cache grows first
    cycle = lengths[ends[0] + 1 : ends[1] + 1] if len(ends) > 1 else lengths[: ends[0] + 1]
    assert sum(cycle) / len(cycle) == pytest.approx(cycle_mean(ratio, prune_after))


@pytest.mark.fast
@settings(max_examples=5)
@given(ratio=ratios, mean=st.floats(10, 90))
def test_no_other_prune_after_comes_nearer(ratio, mean):
    best = prune_after_for_mean(120, ratio, mean, 39)
    apart = abs(mean_over_last(120, best, ratio, 39) - mean)
    assert all(apart <= abs(mean_over_last(120, p, ratio, 39) - mean) for p in range(1, 81))


@pytest.mark.fast
def test_the_arithmetic_is_what_an_evaluation_measures():
    model, ids = tiny_model("gpt_neox"), random_ids(200)
    for ratio, prune_after in [(0.9, 41), (0.5, 60), (0.1, 80)]:
        measured = evaluate(model, ids, keep_ratio=ratio, prune_after=prune_after)
        assert mean_cache_over_last(measured, 100) == pytest.approx(mean_over_last(200, prune_after, ratio, 100))
        assert scored_last(measured, 100).nll.tolist() == measured.nll[-100:].tolist()
    budget = evaluate(model, ids, when="fixed_budget", budget=50)
    assert (mean_cache_over_last(budget, 100), budget.peak_cache) == (50, 50)


@pytest.mark.fast
def test_a_mean_that_no_prune_after_gives_and_tokens_that_were_not_scored_are_refused():
    with pytest.raises(ValueError, match="phase 1 would be empty"):
        prune_after_for_mean(100, 0.5, 10, 99)
    with pytest.raises(ValueError, match="tokens=70 is more than the"):
        scored_last(evaluate(tiny_model("llama"), random_ids(80), keep_ratio=0.5), 70)


TOKENS, SCORED = 512, 255
MEAN = 131.45  # what keep 0.1 holds on average at prune_after 256
BUDGET = 131
PEAK = 256
EQUAL_MEAN = {0.9: 137, 0.5: 176}  # prune_after by keep ratio
NEW_ROWS = {
    **{("low_norm", f"keep {r}, prune_after {p}"): {"keep_ratio": r, "prune_after": p} for r, p in EQUAL_MEAN.items()},
    ("low_norm", f"budget {BUDGET}"): {"when": "fixed_budget", "budget": BUDGET},
    ("low_norm", f"budget {BUDGET}, recent 32"): {"when": "fixed_budget", "budget": BUDGET, "recent": 32},
    ("low_norm", f"budget {PEAK}"): {"when": "fixed_budget", "budget": PEAK},
    **{
        (NEWEST_WITH_SINKS, f"keep {r}, prune_after {p}"): {"keep_ratio": r, "prune_after": p}
        for r, p in EQUAL_MEAN.items()
    },
    (NEWEST_WITH_SINKS, f"budget {BUDGET}"): {"when": "fixed_budget", "budget": BUDGET},
}


@pytest.mark.fast
def test_the_rows_to_compare_are_those_of_equal_mean():
    assert mean_over_last(TOKENS, PEAK, 0.1, SCORED) == pytest.approx(MEAN, abs=0.01)
    assert round(MEAN) == BUDGET
    for ratio, prune_after in EQUAL_MEAN.items():
        assert prune_after_for_mean(TOKENS, ratio, MEAN, SCORED) == prune_after


both_texts = on_both_texts("controls", pytest.mark.slow)


@pytest.fixture(scope="session")
def memory_tables(rows_of, short_texts, control_tables):
    """``memory_tables(text_set)``: {(policy, how): one evaluation per text} over the last 255 tokens."""

    @functools.cache
    def tables(text_set):
        rows = {key: row | policy_arguments(key[0]) for key, row in NEW_ROWS.items()}
        new = [rows_of(f"{text_set}: {text.title}", text.input_ids, rows) for text in short_texts(text_set)]
        evaluations_of = {key: [table[key] for table in new] for key in rows}
        for policy in ("low_norm", NEWEST_WITH_SINKS):
            for ratio in (0.9, 0.5, 0.1):
                evaluations_of[policy, f"keep {ratio}, prune_after {PEAK}"] = [
                    table[Control(policy, ratio)].evaluation for table in control_tables(text_set)
                ]
        return {
            key: [scored_last(evaluation, SCORED) for evaluation in evaluations]
            for key, evaluations in evaluations_of.items()
        }

    return tables


@both_texts
def test_rows_at_equal_memory_match_the_baseline(
    text_set, memory_tables, control_tables, short_texts, check_rows, show_table
):
    plain = [table[UNCOMPRESSED].evaluation for table in control_tables(text_set)]
    rows = []
    for (policy, how), evaluations in memory_tables(text_set).items():
        interval = perplexity_ratio(evaluations, plain)
        rows.append(
            {
                "policy": policy,
                "cache": how,
                "ppl": perplexity(evaluations),
                "ratio_low": interval.low,
                "ratio_high": interval.high,
                "mean_cache": mean_cache_over_last(evaluations[0], SCORED),
                "peak_cache": evaluations[0].peak_cache,
            }
        )
    for title, chosen in [
        (f"at equal mean cache ({MEAN:.0f} keys)", [row for row in rows if abs(row["mean_cache"] - MEAN) < 2]),
        (f"at equal peak cache ({PEAK} keys)", [row for row in rows if row["peak_cache"] == PEAK]),
    ]:
        show_table(
            f"{title}, {text_set}, 512 tokens",
            [
                {
                    "policy": row["policy"],
                    "cache": row["cache"],
                    "PPL": row["ppl"],
                    **shown_change(perplexity_ratio(memory_tables(text_set)[row["policy"], row["cache"]], plain)),
                    "mean cache": f"{row['mean_cache']:.1f}",
                    "peak cache": row["peak_cache"],
                }
                for row in chosen
            ],
            precision({"low norm": memory_tables(text_set)["low_norm", f"budget {BUDGET}"]}, plain),
        )
    check_rows(
        f"{text_set}/equal-memory", rows, ["policy", "cache"], short_texts(text_set), tokens=TOKENS, scored=SCORED
    )


@both_texts
def test_means_and_peaks_are_equal_where_they_are_said_to_be(text_set, memory_tables):
    tables = memory_tables(text_set)
    for policy in ("low_norm", NEWEST_WITH_SINKS):
        means = {
            how: mean_cache_over_last(evaluations[0], SCORED)
            for (name, how), evaluations in tables.items()
            if name == policy
        }
        for ratio, prune_after in EQUAL_MEAN.items():
            assert means[f"keep {ratio}, prune_after {prune_after}"] == pytest.approx(MEAN, rel=0.01)
        assert means[f"budget {BUDGET}"] == pytest.approx(MEAN, rel=0.01)
        peaks = {
            evaluations[0].peak_cache
            for (name, how), evaluations in tables.items()
            if name == policy and how.endswith("256")
        }
        assert peaks == {PEAK}


@both_texts
def test_at_equal_mean_the_gentle_ratio_loses(text_set, memory_tables, claims):
    # Keep 0.9 evicts often from a small cache, and every time the newest keys of high norm are candidates.
    tables = memory_tables(text_set)
    often, seldom = tables["low_norm", "keep 0.9, prune_after 137"], tables["low_norm", "keep 0.5, prune_after 176"]
    assert perplexity_ratio(often, seldom).low > 1


@both_texts
def test_at_equal_memory_a_budget_by_norm_alone_is_worst(text_set, memory_tables, claims):
    tables = memory_tables(text_set)
    budget, often = tables["low_norm", f"budget {BUDGET}"], tables["low_norm", "keep 0.9, prune_after 137"]
    assert perplexity_ratio(budget, often).low > 1
    # More memory at every moment, and worse: a cache that is always full evicts at every token.
    full, breathing = tables["low_norm", f"budget {PEAK}"], tables["low_norm", f"keep 0.5, prune_after {PEAK}"]
    assert perplexity_ratio(full, breathing).low > 1


@both_texts
def test_a_window_of_recent_tokens_mends_the_budget(text_set, memory_tables, claims):
    tables = memory_tables(text_set)
    protected, often = (
        tables["low_norm", f"budget {BUDGET}, recent 32"],
        tables["low_norm", "keep 0.9, prune_after 137"],
    )
    assert perplexity_ratio(protected, often).high < 1
