"""Every verdict follows from the data: for every claim of the ledger, other data, other verdict."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knorm_core.claims import ANY_MODEL, judge, load_claims
from knorm_core.claims.checks import CHECKS
from knorm_core.claims.tables import Interval, between, slugs
from knorm_core.results.records import Results
from suites.claims.made_up import CAN_BE_OPEN, MAKERS, tables_for
from suites.claims.recorded import BASELINES

pytestmark = pytest.mark.fast

OTHER = "another-model"


def own_model(claim):
    return OTHER if claim.about == ANY_MODEL else slugs(claim.about)[0]


def verdict_on(claim, *tables):
    [verdict] = judge([claim], Results(tables=[table for part in tables for table in part]))
    return verdict


def test_it_is_reproduced_where_it_holds_and_refuted_where_it_does_not(claim):
    model = own_model(claim)
    for holds, name in ((True, "reproduced"), (False, "refuted")):
        verdict = verdict_on(claim, tables_for(claim, model, holds))
        assert verdict.verdict == name
        assert verdict.why.startswith(f"On {model}, ")
        assert verdict.why.endswith(".")
        assert verdict.numbers
        assert verdict.tables
        assert (verdict.needs, verdict.stand_in) == ("", None)


def test_it_is_explained_under_a_named_fault_and_only_where_it_does_not_hold_without(claim):
    model = own_model(claim)
    plain_and_fault = verdict_on(claim, tables_for(claim, model, True, under_faults=claim.check != "ttft"))
    assert plain_and_fault.verdict == "reproduced"
    only_fault = verdict_on(claim, tables_for(claim, model, False, under_faults=True))
    assert only_fault.verdict == ("explained" if claim.faults else "refuted")
    for fault in claim.faults:
        assert f"but it comes out under {fault}" in only_fault.why
        if claim.check != "ttft":  # with honest timers it is reproduced, whatever a cold start does
            assert f"under {fault} as well" in plain_and_fault.why


def test_it_is_not_testable_without_tables_and_says_what_it_takes(claim):
    for tables in ([], tables_for(claim, f"not-{own_model(claim)}", True) if claim.about != ANY_MODEL else []):
        if claim.check == "shrinks_with_size":
            tables = tables[:1]
        verdict = verdict_on(claim, tables)
        assert verdict.verdict == "not testable here"
        assert verdict.needs == claim.needs
        assert not verdict.tables
        assert not verdict.numbers


def test_it_is_left_open_by_intervals_that_hold_both(claim):
    if claim.check not in CAN_BE_OPEN:
        verdicts = {verdict_on(claim, tables_for(claim, own_model(claim), holds)).verdict for holds in (True, False)}
        assert verdicts == {"reproduced", "refuted"}  # nothing in between
        return
    verdict = verdict_on(claim, tables_for(claim, own_model(claim), None, under_faults=None))
    assert verdict.verdict == "not testable here"
    assert verdict.needs.startswith("more ")
    assert verdict.numbers
    assert verdict.stand_in is None


def test_another_model_stands_in_beside_the_claim_and_decides_nothing(claim):
    outcomes = set()
    for holds in (True, False):
        verdict = verdict_on(claim, tables_for(claim, f"not-{own_model(claim)}", holds))
        if claim.about == ANY_MODEL or claim.check == "shrinks_with_size":
            assert verdict.stand_in is None
            continue
        assert verdict.verdict == "not testable here"
        if claim.stand_in is None:
            assert verdict.stand_in is None
            continue
        assert verdict.stand_in.model == f"not-{own_model(claim)}"
        assert verdict.stand_in.tables
        outcomes.add(verdict.stand_in.verdict)
    if claim.stand_in is not None and claim.about != ANY_MODEL:
        assert outcomes == {"reproduced", "refuted"}


def test_other_texts_stand_in_where_the_claims_own_are_absent(claim):
    for text_set in claim.stand_in or ():
        verdict = verdict_on(claim, tables_for(claim, OTHER, False, text_sets=[text_set]))
        assert verdict.verdict == "not testable here"
        assert {name.split("/")[1] for name in verdict.stand_in.tables} == {text_set}
        on_its_own = verdict_on(
            claim, tables_for(claim, OTHER, True), tables_for(claim, OTHER, False, text_sets=[text_set])
        )
        assert on_its_own.stand_in.verdict == "reproduced"


def test_a_claim_about_any_model_falls_with_one_that_refutes_it(claim):
    if claim.about != ANY_MODEL:
        return
    verdict = verdict_on(claim, tables_for(claim, "one", True), tables_for(claim, "two", False))
    assert verdict.verdict == "refuted"
    assert verdict.why.startswith("On two, ")
    assert verdict.why.endswith("; one: reproduced.")
    both = verdict_on(claim, tables_for(claim, "one", True), tables_for(claim, "two", True))
    assert both.verdict == "reproduced"


def test_only_the_tables_that_a_verdict_names_decide_it(claim, recorded):
    [verdict] = judge([claim], recorded)
    named = {*verdict.tables, *(verdict.stand_in.tables if verdict.stand_in else ())}
    # First calls are read beside the cold starts.
    fewer = [table for table in recorded.tables if table.name in named or "latency" in table.name]
    again = verdict_on(claim, fewer)
    assert (again.verdict, again.numbers) == (verdict.verdict, verdict.numbers)
    if verdict.stand_in is not None:
        assert again.stand_in == verdict.stand_in


def test_a_table_of_other_settings_counts_where_they_are_the_claims_own():
    [claim] = [one for one in load_claims(BASELINES / "claims") if one.id == "report-wikitext-ppl-1.0"]
    [table] = tables_for(claim, own_model(claim), True)
    for settings, name in [
        ({"prune_after": 256, "max_eval_tokens": 1024}, "reproduced"),
        ({"prune_after": 256, "max_eval_tokens": 512}, "not testable here"),
    ]:
        suffixed = dataclasses.replace(table, name=f"{table.name}-0123abcd", made_from={"settings": settings})
        assert verdict_on(claim, [suffixed]).verdict == name


def test_every_check_is_used_and_has_data_that_flips_it(claim):
    used = {one.check for one in load_claims(BASELINES / "claims")}
    assert used == set(CHECKS) == set(MAKERS)
    assert claim.check in CHECKS


def test_real_tables_with_their_rows_exchanged_give_the_opposite_verdict(recorded):
    claims = {one.id: one for one in load_claims(BASELINES / "claims")}

    def judged(name, change):
        tables = [
            dataclasses.replace(table, rows=[change(dict(row)) for row in table.rows]) for table in recorded.tables
        ]
        return verdict_on(claims[name], tables).verdict

    def exchange(column, one, other):
        return lambda row: row | {column: {one: other, other: one}.get(row.get(column), row.get(column))}

    def keep(row):
        return row

    assert judged("paper-low-beats-random", keep) == "reproduced"
    assert judged("paper-low-beats-random", exchange_policies) == "refuted"
    assert judged("paper-correlation", keep) == "reproduced"
    assert judged("paper-correlation", lambda row: row | {"spearman": -row.get("spearman", 0)}) == "refuted"
    assert judged("paper-passkey-90", keep) == "refuted"
    assert judged("paper-passkey-90", exchange("keep_ratio", 0.1, 1.0)) == "not testable here"
    assert judged("paper-passkey-90", lambda row: row | {"matches": row.get("of")}) == "reproduced"
    assert judged("report-512-never-fires", keep) == "reproduced"
    assert judged("report-512-never-fires", lambda row: row | {"evictions_per_layer": 1}) == "refuted"


def exchange_policies(row):
    names = {("low_norm", 0): ("random", "mean"), ("random", "mean"): ("low_norm", 0)}
    policy, seed = names.get((row.get("policy"), row.get("seed")), (row.get("policy"), row.get("seed")))
    return row | {"policy": policy, "seed": seed}


intervals = st.tuples(*[st.floats(0.01, 100)] * 3).map(sorted).map(lambda ends: Interval(ends[1], ends[0], ends[2]))


@given(intervals, intervals)
def test_the_interval_between_two_rows_turns_around_with_them(one, other):
    there, back = between(one, other), between(other, one)
    assert there.low <= there.value <= there.high
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(there)


@given(intervals, intervals)
def test_rows_are_told_apart_only_where_no_interval_holds_the_others_estimate(one, other):
    found = between(one, other)
    if one.low <= other.value <= one.high or other.low <= one.value <= other.high:
        assert found.low <= 1 + 1e-9
        assert found.high >= 1 - 1e-9
    if one.high < other.low:  # and always where the intervals do not touch
        assert found.low > 1
