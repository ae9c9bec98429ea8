"""Checks at their edges: every rule from both sides, what is left open, and what is missing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knorm_core.claims import rules
from knorm_core.claims.checks import CHECKS
from knorm_core.claims.tables import Incomplete, Missing, Tables, describe
from knorm_core.results.interval import Interval
from knorm_core.results.records import EXPLAINED, OPEN, REFUTED, REPRODUCED, Results, Table, pair

pytestmark = pytest.mark.fast


def answer(check, rows, **arguments):
    return CHECKS[check](Tables(Results(tables=[Table("m/t/x", (), rows)]), "m"), "t/x", **arguments)


def ratio(value, low=None, high=None):
    return Interval(value, value - 1e-3 if low is None else low, value + 1e-3 if high is None else high)


RISE, FALL, UNSURE, NONE = ratio(1.2), ratio(0.8), ratio(1.1, 0.9, 1.3), Interval.exact(1)
ONE_SIDED = [(1.05, True), (math.nextafter(1.05, 2), None)]


@pytest.mark.parametrize(
    ("rule", "arguments", "holds"),
    [
        # no more than 5 % worse
        ("no_loss", (Interval(1.04, 1.01, 1.05), 5), True),
        ("no_loss", (Interval(1.04, 1.01, 1.07), 5), None),  # worse, but not shown to be by more than 5 %
        ("no_loss", (Interval(1.065, 1.02, 1.11), 5), None),
        ("no_loss", (Interval(1.08, 1.051, 1.11), 5), False),
        ("no_loss", (Interval(0.5, 0.4, 0.6), 5), True),  # a gain is no loss
        ("no_difference", (Interval(1.0, 0.95, 1.05), 5), True),
        ("no_difference", (Interval(1.0, 0.94, 1.05), 5), None),
        ("no_difference", (Interval(1.03, 1.01, 1.06), 5), None),
        ("no_difference", (Interval(1.08, 1.051, 1.1), 5), False),
        ("no_difference", (Interval(0.9, 0.8, 0.949), 5), False),
        # +19 give or take 5 points
        ("change", (Interval(1.2, 0.4, 3.6), [19], 5), None),
        ("change", (Interval(1.19, 1.141, 1.239), [19], 5), True),
        ("change", (Interval(1.19, 1.13, 1.239), [19], 5), None),
        ("change", (Interval(1.3, 1.241, 1.4), [19], 5), False),
        ("change", (Interval(1.1, 1.0, 1.139), [19], 5), False),
        ("change", (Interval(1.3, 1.081, 1.499), [13, 45], 5), True),
        ("change", (Interval(1.3, 1.079, 1.499), [13, 45], 5), None),
        ("count", (511, 511), True),
        ("count", (512, 511), False),
        ("rises", ([RISE, RISE],), True),
        ("rises", ([RISE, UNSURE],), None),
        ("rises", ([RISE, FALL],), False),
        ("rises", ([UNSURE, FALL],), False),
        ("rises", ([RISE, NONE],), False),
        # a figure is printed with two decimals
        ("figure", (76.155, 76.04, 0.15), True),
        ("figure", (76.17, 76.04, 0.15), False),
        ("figure", (75.91, 76.04, 0.15), False),
        ("better", ([RISE, RISE],), True),
        ("better", ([RISE, UNSURE],), None),
        ("better", ([RISE, FALL],), False),
        # a change of +20 %, and the diluted row as a multiple of the whole one
        ("dilutes", (RISE, FALL), True),
        ("dilutes", (RISE, UNSURE), None),
        ("dilutes", (RISE, RISE), False),
        ("dilutes", (FALL, RISE), True),
        ("dilutes", (FALL, FALL), False),
        ("dilutes", (UNSURE, FALL), None),  # no change is shown that could be diluted
        # of four heads, more than half
        ("correlation", ([ratio(-0.5)] * 3 + [ratio(0.5)], 50), True),
        ("correlation", ([ratio(-0.5)] * 2 + [ratio(-0.5, -0.9, 0.1)] * 2, 50), None),
        ("correlation", ([ratio(-0.5)] * 2 + [ratio(0.5)] * 2, 50), False),
        ("stands_out", (ratio(9.0), ratio(8.0)), True),
        ("stands_out", (ratio(9.0), ratio(8.5, 7.0, 9.5)), None),
        ("stands_out", (ratio(7.0), ratio(8.0)), False),
        ("is_low", ([ratio(0.4), ratio(0.3)], 50), True),
        ("is_low", ([ratio(0.4), ratio(0.4, 0.3, 0.6)], 50), None),
        ("is_low", ([ratio(0.4), ratio(0.6)], 50), False),
        ("shrinks", ([FALL, FALL],), True),
        ("shrinks", ([FALL, UNSURE],), None),
        ("shrinks", ([FALL, RISE],), False),
    ],
)
def test_a_rule_confirms_within_refutes_outside_and_is_open_between(rule, arguments, holds):
    assert rules.RULES[rule](*arguments) is holds


@pytest.mark.parametrize(
    ("others", "highest", "holds"),
    [
        ([FALL, FALL], True, True),
        ([FALL, UNSURE], True, None),
        ([FALL, RISE], True, False),
        ([RISE, RISE], False, True),
        ([RISE, UNSURE], False, None),
        ([RISE, FALL], False, False),
    ],
)
def test_the_worst_and_the_best_row_are_shown_against_every_other(others, highest, holds):
    assert rules.extreme(others, highest=highest) is holds


@pytest.mark.parametrize(
    ("share", "at_most", "holds"),
    [
        (Interval(1.0, 0.96, 1.0), False, True),
        (Interval(1.0, 0.69, 1.0), False, None),  # ten of ten
        (Interval(0.5, 0.2, 0.94), False, False),
        (Interval(0.9, 0.5, 0.94), True, True),
        (Interval(0.9, 0.5, 0.96), True, None),
        (Interval(1.0, 0.96, 1.0), True, False),
    ],
)
def test_a_recall_is_decided_by_its_interval(share, at_most, holds):
    assert rules.recall(share, 0.95, at_most=at_most) is holds


def test_a_published_number_is_as_uncertain_as_its_few_texts_make_it():
    # Eight texts with a spread of 20 %: one draw of them against one of three differs by far more than 5 %.
    reach = math.exp(1.96 * 0.2 / math.sqrt(8))
    value = Interval(50.0, 50.0 / reach, 50.0 * reach)
    assert rules.cell_value(value, 55.0, 5, texts=8, source_texts=3) is None
    assert rules.cell_value(value, 90.0, 5, texts=8, source_texts=3) is False
    exact = Interval(50.0, 49.9, 50.1)
    assert rules.cell_value(exact, 51.0, 5, texts=8, source_texts=3) is True
    assert rules.cell_value(exact, 53.0, 5, texts=8, source_texts=3) is False
    half = rules.against_published(value, 50.0, texts=8, source_texts=3)
    assert math.log(half.high) == pytest.approx(1.96 * 0.2 * math.sqrt(1 / 8 + 1 / 3))


def test_true_numbers_of_few_texts_are_not_refuted():
    import numpy

    generator, refuted = numpy.random.default_rng(0), 0
    for _ in range(500):
        ours, theirs = generator.normal(4, 0.3, 8), generator.normal(4, 0.3, 3)
        reach = 2.365 * ours.std(ddof=1) / math.sqrt(8)  # Student's t with seven degrees of freedom
        value = Interval(*(math.exp(ours.mean() + side * reach) for side in (0, -1, 1)))
        holds = rules.cell_value(value, math.exp(theirs.mean()), 5, texts=8, source_texts=3)
        refuted += holds is False
    assert refuted <= 25  # at most 5 %; without their side it is about four times that


finite = st.floats(-10, 10)
ratios = st.floats(0.01, 100)
positive = st.tuples(ratios, ratios, ratios).map(sorted).map(lambda ends: Interval(ends[1], ends[0], ends[2]))
intervals = st.tuples(finite, finite, finite).map(sorted).map(lambda ends: Interval(ends[1], ends[0], ends[2]))


@given(intervals, finite, finite)
def test_no_interval_both_lies_within_and_outside_and_a_wider_one_never_decides_more(interval, low, high):
    low, high = sorted((low, high))
    holds = rules.within(interval, low, high)
    assert (holds is True) == (low <= interval.low and interval.high <= high)
    assert (holds is False) == (interval.high < low or interval.low > high)
    wider = Interval(interval.value, interval.low - 1, interval.high + 1)
    assert rules.within(wider, low, high) in (holds, None)


def test_nothing_known_is_open():
    nothing = Interval(math.nan, math.nan, math.nan)
    assert rules.no_loss(nothing, 5) is rules.change(nothing, [3], 5) is rules.rises([nothing]) is None
    assert rules.no_loss(Interval(1.0, 0.0, math.inf), 5) is None


@pytest.mark.parametrize(
    ("plain", "faults", "everywhere", "word"),
    [
        (True, [True], True, REPRODUCED),
        (None, [True], True, OPEN),
        (False, [True], True, EXPLAINED),
        (False, [None, False], True, REFUTED),
        (False, [True], False, REFUTED),
        (False, [], True, REFUTED),
    ],
)
def test_a_verdict_is_explained_only_where_a_fault_gives_what_nothing_else_does(plain, faults, everywhere, word):
    assert rules.verdict(plain, faults, fails_everywhere=everywhere) == word


@given(positive, positive)
def test_a_ratio_of_unpaired_rows_turns_around_with_them(first, second):
    there, back = rules.unpaired(first, second), rules.unpaired(second, first).inverse
    assert there.low <= there.value <= there.high
    assert (back.value, back.low, back.high) == pytest.approx((there.value, there.low, there.high))


def test_every_rule_is_stated_in_one_line():
    for name, rule in rules.RULES.items():
        assert rule.__doc__.split("\n")[0].endswith("."), name


PLAIN = [{"keep_ratio": keep, "ratio": value, "ratio_low": value, "ratio_high": value} for keep, value in (
    (1.0, 1), (0.9, 1.5), (0.5, 1.2),
)]  # fmt: skip


def tables(*paired):
    rows = [{"pair": pair(b, a), "ratio": r, "ratio_low": low, "ratio_high": high} for a, b, r, low, high in paired]
    made = [Table("m/t/x", ("keep_ratio",), PLAIN), Table("m/t/x-pairs", ("pair",), rows)]
    return Tables(Results(tables=made), "m")


def test_two_rows_are_compared_by_their_paired_ratio_and_not_by_their_own_intervals():
    made = tables(("0.9", "0.5", 0.9, 0.85, 0.95))
    high, low, lowest = PLAIN
    assert made.between("t/x", low, lowest) == Interval(0.9, 0.85, 0.95)
    assert made.between("t/x", lowest, low) == Interval(1 / 0.9, 1 / 0.95, 1 / 0.85)
    assert made.between("t/x", high, low) == Interval.exact(1.5)  # against the uncompressed row it has its own
    assert made.between("t/x", low, high) == Interval.exact(1 / 1.5)
    with pytest.raises(Incomplete, match=r"the paired ratio of 0\.5 to 0\.9 in a table m/t/x-pairs"):
        tables().between("t/x", low, lowest)


@pytest.mark.parametrize(("protected", "holds"), [((0.9, 0.5), True), ((0.9,), False), ((), False)])
def test_rows_are_judged_instead_of_others_where_all_of_them_were_measured(protected, holds):
    key = ("policy", "keep_ratio", "sinks")
    labels = [("low_norm", keep, 0) for keep in (0.9, 0.5)] + [("random", keep, 4) for keep in (0.9, 0.5)]
    labels += [("low_norm", keep, 4) for keep in protected]
    table = Table("m/t/x", key, [dict(zip(key, each, strict=True)) for each in labels])
    # Random is worse than low norm where low norm has the sinks, too, and better where it has not.
    paired = [
        {
            "pair": pair(f"random {keep} 4", f"low_norm {keep} {sinks}"),
            **Interval.exact(1.2 if sinks else 0.8).columns("ratio"),
        }
        for keep in (0.9, 0.5)
        for sinks in (0, 4)
    ]
    given_answer = CHECKS["better"](
        Tables(Results(tables=[table, Table("m/t/x-pairs", ("pair",), paired)]), "m"),
        "t/x",
        row={"policy": "low_norm", "sinks": 0},
        reference={"policy": "random", "sinks": 4},
        keep_ratios=[0.9, 0.5],
        instead={"policy": "low_norm", "sinks": 4},
    )
    assert given_answer.holds is holds
    assert ("against low norm, sinks 4" in given_answer.why) is holds


@pytest.mark.parametrize(("matches", "holds"), [(10, None), (9, None), (5, False), (0, False)])
def test_recall_of_ten_prompts(matches, holds):
    made = [{"keep_ratio": 0.1, "matches": matches, "of": 10}, {"keep_ratio": 1.0, "matches": 10, "of": 10}]
    given_answer = answer(
        "recall_at", made, row={"keep_ratio": 0.1}, expected=100, tolerance=5, uncompressed={"keep_ratio": 1.0}
    )
    assert given_answer.holds is holds
    assert given_answer.why == f"{matches} of 10 answered keep 0.1, uncompressed 10"


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
        answer("count", made, row={"keep_ratio": 0.5}, column="ppl", expected=1.0)


@pytest.mark.parametrize(("uncompressed", "matches", "fewest", "most"), [(100, 50, 50, 50), (60, 50, 10, 50)])
def test_prompts_that_are_answered_by_either_row_alone_widen_the_interval(uncompressed, matches, fewest, most):
    from scipy.stats import beta

    made = [{"keep_ratio": 1.0, "matches": uncompressed, "of": 100}, {"keep_ratio": 0.1, "matches": matches, "of": 100}]
    arguments = {"row": {"keep_ratio": 0.1}, "uncompressed": {"keep_ratio": 1.0}, "expected": 100}
    [share] = answer("recall_at", made, **arguments).numbers
    # Clopper and Pearson's limits, from the beta distribution.
    assert share.low == pytest.approx(beta.ppf(0.025, fewest, uncompressed - fewest + 1))
    assert share.high == pytest.approx(beta.ppf(0.975, most + 1, uncompressed - most))


def test_a_model_that_answers_nothing_uncompressed_is_evidence_of_nothing():
    made = [{"keep_ratio": keep, "matches": 0, "of": 100} for keep in (1.0, 0.1)]
    for uncompressed in (None, {"keep_ratio": 1.0}):
        given_answer = answer("recall_at", made, row={"keep_ratio": 0.1}, expected=100, uncompressed=uncompressed)
        assert given_answer.holds is None
        assert "evidence of nothing" in given_answer.why


def test_labels_read_as_words():
    assert describe({"when": "after_prefill", "keep_ratio": 0.1, "skip_layers": (0,), "seed": "mean"}) == (
        "after prefill, keep 0.1, layer 0 left alone, mean of seeds"
    )
    assert describe({"positions": "cache", "skip_layers": [], "rank": 3}) == "positions cache, rank 3"
