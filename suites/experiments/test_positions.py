"""Tables of the three position modes side by side.

3 texts × (1 prefix + 6 rows) of 512 tokens: 60 CPU-seconds in float64, beside the tables of test_controls.
"""

from __future__ import annotations

import functools

import pytest

from knorm_core.experiments.controls import UNCOMPRESSED, Control, pooled, shown_change
from knorm_core.experiments.intervals import perplexity_ratio, precision
from knorm_core.results.interval import Interval
from suites.experiments.conftest import on_both_texts

RATIOS = (0.9, 0.5, 0.1)
NEW = [Control(policy, ratio, positions="rerotated") for policy in ("low_norm", "newest_4_sinks") for ratio in RATIOS]
SHOWN = [
    *(Control("low_norm", ratio, positions=mode) for mode in ("absolute", "cache", "rerotated") for ratio in RATIOS),
    *(Control("newest_4_sinks", ratio, positions=mode) for mode in ("absolute", "rerotated") for ratio in RATIOS),
]

both_texts = on_both_texts("controls", pytest.mark.slow)


@pytest.fixture(scope="session")
def position_tables(rows_of, short_texts, control_tables):
    """``position_tables(text_set)``: {row: one evaluation per text}, computed once per process."""

    @functools.cache
    def tables(text_set):
        rows = {row: row.arguments() for row in NEW}
        new = [rows_of(f"{text_set}: {text.title}", text.input_ids, rows) for text in short_texts(text_set)]
        old = [{row: divergence.evaluation for row, divergence in table.items()} for table in control_tables(text_set)]
        return {
            row: [(ours | theirs)[row] for ours, theirs in zip(new, old, strict=True)] for row in [UNCOMPRESSED, *SHOWN]
        }

    return tables


@both_texts
def test_position_modes_match_the_baseline(text_set, position_tables, short_texts, check_rows, show_table):
    tables = position_tables(text_set)
    rows = [row._asdict() | pooled(tables[row], tables[UNCOMPRESSED]) for row in SHOWN]
    show_table(
        f"position modes, {text_set}, 512 tokens",
        [
            {
                "policy": row["policy"],
                "keep ratio": str(row["keep_ratio"]),
                "positions": row["positions"],
                "PPL": row["ppl"],
                **shown_change(Interval.of(row, "ratio")),
            }
            for row in rows
        ],
        precision({"low norm": tables[Control("low_norm", 0.5)]}, tables[UNCOMPRESSED]),
        *(against_absolute(tables, policy, ratio) for policy in ("low_norm", "newest_4_sinks") for ratio in RATIOS),
    )
    check_rows(
        f"{text_set}/position-modes", rows, list(Control._fields), short_texts(text_set), prune_after=256, tokens=512
    )


def against_absolute(tables, policy, ratio):
    change = perplexity_ratio(tables[Control(policy, ratio, "rerotated")], tables[Control(policy, ratio)])
    verdict = "" if change.excludes_no_change else ", which is no difference beyond the interval"
    return (
        f"{policy} at keep {ratio}: rotating survivors to the front instead of keeping true positions changes "
        f"perplexity by {change.change} ({change.limits}){verdict}."
    )


@both_texts
@pytest.mark.parametrize("ratio", [0.9, 0.5])
def test_rerotation_mends_drift(text_set, ratio, position_tables, claims):
    # The same positions are fed in both modes; in one of them the survivors are where these imply.
    tables = position_tables(text_set)
    change = perplexity_ratio(
        tables[Control("low_norm", ratio, "rerotated")], tables[Control("low_norm", ratio, "cache")]
    )
    assert change.high < 1


@both_texts
def test_rerotation_costs_where_evictions_are_frequent_and_gains_where_they_are_rare(text_set, position_tables, claims):
    tables = position_tables(text_set)
    changes = {
        r: perplexity_ratio(tables[Control("low_norm", r, "rerotated")], tables[Control("low_norm", r)]) for r in RATIOS
    }
    assert changes[0.9].low > 1
    assert not changes[0.5].excludes_no_change
    assert changes[0.1].high < 1


@both_texts
@pytest.mark.parametrize("ratio", RATIOS)
def test_without_gaps_but_one_rerotation_makes_no_difference(text_set, ratio, position_tables, claims):
    # Four sinks and a window: closing the one gap between them moves nothing beyond the interval.
    tables = position_tables(text_set)
    rerotated, absolute = (tables[Control("newest_4_sinks", ratio, mode)] for mode in ("rerotated", "absolute"))
    assert not perplexity_ratio(rerotated, absolute).excludes_no_change
