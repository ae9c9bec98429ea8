"""Every verdict follows from the data: for every claim of the ledger, other data, other verdict."""

from __future__ import annotations

import dataclasses

import pytest

from knorm_core.claims import judge, load_claims
from knorm_core.claims.checks import CHECKS
from knorm_core.claims.tables import slugs
from knorm_core.results.records import Results, Table
from suites.claims.made_up import MAKERS, NEVER_OPEN, tables_for
from suites.claims.recorded import BASELINES

pytestmark = pytest.mark.fast

OTHER = "another-model"


def own_model(claim):
    return OTHER if claim.about_any_model else slugs(claim.about[0])[0]


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
        assert (verdict.needs, verdict.transfers) == ("", [])


def test_it_is_explained_under_a_named_fault_and_only_where_it_does_not_hold_without(claim):
    model = own_model(claim)
    plain_and_fault = verdict_on(claim, tables_for(claim, model, True, under_faults=True))
    assert plain_and_fault.verdict == "reproduced"
    only_fault = verdict_on(claim, tables_for(claim, model, False, under_faults=True))
    assert only_fault.verdict == ("explained" if claim.faults else "refuted")
    for fault in claim.faults:
        assert f"but it comes out under {fault}" in only_fault.why
        assert f"under {fault} as well" in plain_and_fault.why


def test_it_is_not_testable_without_tables_and_says_what_it_takes(claim):
    for tables in ([], tables_for(claim, f"not-{own_model(claim)}", True) if not claim.about_any_model else []):
        if claim.check == "shrinks_with_size":
            tables = tables[:1]
        verdict = verdict_on(claim, tables)
        assert verdict.verdict == "not testable here"
        assert verdict.needs == claim.needs
        assert not verdict.tables
        assert not verdict.numbers


def test_it_is_open_where_the_interval_decides_neither(claim):
    if claim.check in NEVER_OPEN:
        return
    verdict = verdict_on(claim, tables_for(claim, own_model(claim), None, under_faults=None))
    assert verdict.verdict == "open"
    assert verdict.needs.startswith("more ")
    assert verdict.numbers
    assert verdict.tables


def test_other_models_have_a_row_of_their_own_and_decide_nothing(claim):
    if claim.about_any_model or claim.check == "shrinks_with_size":
        return
    for holds, answer in ((True, "carries over"), (False, "does not carry over"), (None, "open")):
        if holds is None and claim.check in NEVER_OPEN:
            continue
        others = [*tables_for(claim, "one-model", holds), *tables_for(claim, "two-model", True)]
        for own, name in (([], "not testable here"), (tables_for(claim, own_model(claim), True), "reproduced")):
            verdict = verdict_on(claim, own, others)
            assert verdict.verdict == name
            if claim.stand_in is None:
                assert verdict.transfers == []
                continue
            first, second = verdict.transfers
            assert (first.model, first.answer) == ("one-model", answer)
            assert (second.model, second.answer) == ("two-model", "carries over")
            assert {table.split("/")[0] for table in first.tables} == {"one-model"}


def test_other_texts_stand_in_where_the_claims_own_are_absent(claim):
    for text_set in claim.stand_in or ():
        verdict = verdict_on(claim, tables_for(claim, OTHER, False, text_sets=[text_set]))
        assert verdict.verdict == "not testable here"
        [transfer] = verdict.transfers
        assert {name.split("/")[1] for name in transfer.tables} == {text_set}
        on_its_own = verdict_on(
            claim, tables_for(claim, OTHER, True), tables_for(claim, OTHER, False, text_sets=[text_set])
        )
        assert [each.answer for each in on_its_own.transfers] == ["carries over"]


def test_a_model_that_has_learned_nothing_is_evidence_of_nothing(claim):
    model = own_model(claim)
    for ppl, name in ((51_000.0, "open"), (40.0, "refuted")):
        row = {"keep_ratio": 1.0, "ppl": ppl}
        plain = Table(f"{model}/some-text/ppl-absolute", ["keep_ratio"], [row], {"vocabulary": 50_304})
        verdict = verdict_on(claim, tables_for(claim, model, False), [plain])
        if claim.check in NEVER_OPEN or claim.text_sets == ("latency",):  # random weights are as good as any
            assert verdict.verdict == "refuted"
        else:
            assert verdict.verdict == name
            assert ("evidence of nothing" in verdict.why) == (name == "open")


def test_a_claim_about_any_model_falls_with_one_that_refutes_it(claim):
    if not claim.about_any_model:
        return
    verdict = verdict_on(claim, tables_for(claim, "one", True), tables_for(claim, "two", False))
    assert verdict.verdict == "refuted"
    assert verdict.why.startswith("On two, ")
    assert verdict.why.endswith("; one: reproduced.")
    both = verdict_on(claim, tables_for(claim, "one", True), tables_for(claim, "two", True))
    assert both.verdict == "reproduced"


def test_only_the_tables_that_a_verdict_names_decide_it(claim, recorded):
    [verdict] = judge([claim], recorded)
    # First calls are read beside the cold starts, paired ratios beside the table of their rows.
    fewer = [
        table
        for table in recorded.tables
        if table.name.removesuffix("-pairs") in verdict.rests_on or "latency" in table.name
    ]
    again = verdict_on(claim, fewer)
    assert (again.verdict, again.numbers, again.transfers) == (verdict.verdict, verdict.numbers, verdict.transfers)


def test_a_table_of_other_settings_counts_where_they_are_the_claims_own():
    [claim] = [each for each in load_claims(BASELINES / "claims") if each.id == "report-wikitext-ppl-1.0"]
    [table] = tables_for(claim, own_model(claim), True)
    for settings, name in [
        ({"prune_after": 256, "max_eval_tokens": 1024}, "reproduced"),
        ({"prune_after": 256, "max_eval_tokens": 512}, "not testable here"),
    ]:
        suffixed = dataclasses.replace(table, name=f"{table.name}-0123abcd", made_from={"settings": settings})
        assert verdict_on(claim, [suffixed]).verdict == name


def test_every_check_is_used_and_has_data_that_flips_it(claim):
    used = {each.check for each in load_claims(BASELINES / "claims")}
    assert used == set(CHECKS) == set(MAKERS)
    assert claim.check in CHECKS


def test_real_tables_with_their_numbers_exchanged_give_the_opposite_answer(recorded):
    claims = {each.id: each for each in load_claims(BASELINES / "claims")}

    def judged(name, change):
        tables = [
            dataclasses.replace(table, rows=[change(dict(row)) for row in table.rows]) for table in recorded.tables
        ]
        verdict = verdict_on(claims[name], tables)
        return verdict.transfers[0].answer if verdict.transfers else verdict.verdict

    def keep(row):
        return row

    def no_change(row):
        return row | {name: 1.0 for name in ("ratio", "ratio_low", "ratio_high") if name in row}

    def all_of_a_hundred(row):
        return row | {"matches": 100, "of": 100}

    def none_uncompressed(row):
        return row | {"matches": 0} if row.get("keep_ratio") == 1 else row

    assert judged("paper-lm-50", keep) == "does not carry over"
    assert judged("paper-lm-50", no_change) == "carries over"
    # Four texts and one: whatever their numbers are, they speak of these texts alone.
    assert judged("report-paper-sees-nothing-within-30", keep) == "open"
    assert judged("report-paper-sees-nothing-within-30", no_change) == "open"
    assert judged("paper-passkey-90", keep) == "does not carry over"
    assert judged("paper-passkey-90", none_uncompressed) == "open"
    assert judged(
        "paper-passkey-90", lambda row: row | {"matches": 10 * row.get("of", 0), "of": 10 * row.get("of", 0)}
    ) == ("carries over")
    assert judged("report-512-never-fires", keep) == "reproduced"
    assert judged("report-512-never-fires", lambda row: row | {"evictions_per_layer": 1}) == "refuted"


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        (
            "paper-low-beats-random",
            "the paired ratio of random 0.98 0 0 (0, 1) to low_norm 0.98 0 0 (0, 1) in a table ",
        ),
        ("paper-correlation", "the interval of spearman (columns spearman_low and spearman_high) in "),
        (
            "report-ppl-rises",
            "the paired ratio of 0.5 to 0.9 in a table smollm2-135m/embedded-articles/ppl-absolute-pairs",
        ),
        ("report-token-0-dilutes", "the paired ratio of short samples, scored from the start 0.9 to "),
    ],
)
def test_tables_that_lack_what_a_rule_needs_leave_the_claim_open_and_say_what(name, lacks, recorded):
    [claim] = [each for each in load_claims(BASELINES / "claims") if each.id == name]
    tables = [
        dataclasses.replace(table, rows=[without_limits(row) for row in table.rows])
        for table in recorded.tables
        if not table.name.endswith("-pairs")
    ]
    verdict = verdict_on(claim, tables)
    if claim.about_any_model:
        assert (verdict.verdict, verdict.needs[: len(lacks)]) == ("open", lacks)
    else:
        [why] = [transfer.why for transfer in verdict.transfers if transfer.model == "smollm2-135m"]
        assert {transfer.answer for transfer in verdict.transfers} == {"open"}
        assert lacks in why


def without_limits(row):
    """A row of the norm-attention tables as it would be without intervals."""
    return {name: value for name, value in row.items() if "spearman_" not in name}


@pytest.mark.parametrize(("texts", "verdict"), [(7, "open"), (8, "refuted")])
def test_fewer_than_eight_texts_give_no_verdict_on_others(texts, verdict):
    [claim] = [each for each in load_claims(BASELINES / "claims") if each.id == "report-wikitext-change-0.9"]
    [table] = tables_for(claim, own_model(claim), False)
    made = dataclasses.replace(table, rows=[row | {"texts": texts} for row in table.rows])
    given = verdict_on(claim, [made])
    assert given.verdict == verdict
    assert ("7 texts are too few for a verdict" in given.why) == (texts == 7)
    assert given.needs == ("at least 8 texts" if texts == 7 else "")
