"""Checks at their edges: what three rows show, what they leave open, and what is missing."""

from __future__ import annotations

import pytest

from knorm_core.claims.checks import CHECKS
from knorm_core.claims.tables import Missing, Tables, describe
from knorm_core.results.records import Results, Table

pytestmark = pytest.mark.fast

RATIOS = (0.9, 0.5, 0.1)


def outcome(check, rows, **arguments):
    return CHECKS[check](Tables(Results(tables=[Table("m/t/x", (), rows)]), "m"), "t/x", **arguments)


def rows(*intervals):
    """Ratios with their reach in either direction, at falling keep ratios."""
    return [
        {"keep_ratio": keep, "ratio": value, "ratio_low": value - reach, "ratio_high": value + reach}
        for keep, (value, reach) in zip(RATIOS, intervals, strict=True)
    ]


@pytest.mark.parametrize(
    ("intervals", "worst", "mildest", "rises"),
    [
        ([(1.5, 0.01), (1.3, 0.01), (1.1, 0.01)], True, False, False),
        ([(1.1, 0.01), (1.3, 0.01), (1.5, 0.01)], False, True, True),
        ([(1.5, 0.01), (1.3, 0.01), (1.45, 0.2)], None, False, False),  # beside one row it is not shown
        ([(1.3, 0.01), (1.1, 0.01), (1.5, 0.01)], False, False, False),
        ([(1.1, 0.01), (1.15, 0.2), (1.5, 0.01)], False, None, True),  # rises, step by step and in all
        ([(1.1, 0.01), (1.05, 0.2), (1.5, 0.01)], False, None, None),  # a step falls, within its interval
        ([(1.1, 0.3), (1.2, 0.3), (1.3, 0.3)], None, None, None),  # rises, within the intervals
    ],
)
def test_an_order_is_what_the_intervals_show_of_it(intervals, worst, mildest, rises):
    made = rows(*intervals)
    for check, expected in (("worst", worst), ("mildest", mildest)):
        assert outcome(check, made, keep_ratio=0.9, keep_ratios=RATIOS).holds is expected
    assert outcome("rises", made, keep_ratios=RATIOS).holds is rises


@pytest.mark.parametrize(
    ("value", "reach", "holds"),
    [
        (1.13, 0.4, True),
        (1.17, 0.01, True),  # within 5 points
        (1.19, 0.001, False),
        (1.19, 0.02, None),  # the interval reaches what is allowed
        (1.07, 0.001, False),
        (1.07, 0.02, None),
    ],
)
def test_a_change_is_as_claimed_or_excluded_by_its_interval_or_open(value, reach, holds):
    made = rows((value, reach), (1.0, 0.0), (1.0, 0.0))
    assert outcome("change", made, row={"keep_ratio": 0.9}, expected=13, tolerance=5).holds is holds


@pytest.mark.parametrize(
    ("value", "reach", "holds"),
    [(1.0, 0.04, True), (1.04, 0.005, True), (1.04, 0.02, False), (1.04, 0.05, None), (0.9, 0.2, None)],
)
def test_no_loss_is_shown_by_an_interval_within_the_tolerance(value, reach, holds):
    made = rows((value, reach), (1.0, 0.0), (1.0, 0.0))
    assert outcome("no_loss", made, row={"keep_ratio": 0.9}, tolerance=5).holds is holds


@pytest.mark.parametrize(("matches", "holds"), [(10, True), (9, None), (5, False), (0, False)])
def test_recall_of_ten_prompts(matches, holds):
    made = [{"keep_ratio": 0.1, "matches": matches, "of": 10}, {"keep_ratio": 1.0, "matches": 10, "of": 10}]
    found = outcome(
        "recall_at", made, row={"keep_ratio": 0.1}, expected=100, tolerance=5, uncompressed={"keep_ratio": 1.0}
    )
    assert found.holds is holds
    assert found.why == f"{matches} of 10 answered keep 0.1, uncompressed 10"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "no rows of m/t/x have keep 0.5"),
        ([{"keep_ratio": 0.5}] * 2, "2 rows of m/t/x have keep 0.5"),
        ([{"keep_ratio": 0.5}], "m/t/x has no number in column 'ppl'"),
        ([{"keep_ratio": 0.5, "ppl": None}], "no number in column"),
        ([{"keep_ratio": 0.5, "ppl": float("nan")}], "no number in column"),
        ([{"keep_ratio": 0.5, "ppl": "12"}], "no number in column"),
    ],
)
def test_what_is_not_there_is_named(made, message):
    with pytest.raises(Missing, match=message):
        outcome("cell_value", made, row={"keep_ratio": 0.5}, column="ppl", expected=1.0)


def test_labels_read_as_words():
    assert describe({"when": "after_prefill", "keep_ratio": 0.1, "skip_layers": (0,), "seed": "mean"}) == (
        "after prefill, keep 0.1, layer 0 left alone, mean of seeds"
    )
    assert describe({"positions": "cache", "skip_layers": [], "rank": 3}) == "positions cache, rank 3"
