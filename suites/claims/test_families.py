"""A column per family: "carries over" is said only of families that ran, and of the others that they did not."""

from __future__ import annotations

import pytest

from knorm_core.claims import judge
from knorm_core.results.families import FAMILIES, NO_MODEL, NOT_RUN, OF_NO_MODEL, OWN_ONLY, answer_of, columns, why_of
from knorm_core.results.records import TRANSFERS, VERDICTS, Results
from suites.claims.made_up import tables_for
from suites.claims.readme import VERDICT_HEAD, ledger, table_lines
from suites.claims.recorded import BASELINES

pytestmark = pytest.mark.fast

FIRST, SECOND = FAMILIES


def test_every_family_of_the_ledger_has_baselines():
    assert all((BASELINES / family).is_dir() for family in FAMILIES)


def test_a_family_answers_exactly_where_it_has_tables_that_test_the_claim(claim, recorded):
    [verdict] = judge([claim], recorded)
    for family in FAMILIES:
        tables = {name for name in verdict.rests_on if name.startswith(f"{family}/")}
        answer = answer_of(verdict, family)
        assert (answer in (NOT_RUN, OWN_ONLY, OF_NO_MODEL)) == (not tables)
        assert (answer == OWN_ONLY) == (claim.stand_in is None and not claim.about_any_model)
        assert not tables or answer in (VERDICTS if claim.about_any_model else TRANSFERS)


def test_no_word_of_a_verdict_is_given_to_a_family_without_tables(claim):
    if claim.about_any_model or claim.stand_in is None:
        return
    [verdict] = judge([claim], Results(tables=tables_for(claim, FIRST, True)))
    assert (answer_of(verdict, FIRST), answer_of(verdict, SECOND)) == ("carries over", NOT_RUN)
    assert why_of(verdict, SECOND) == ""
    assert table_lines([verdict])[0].endswith(f" | {NOT_RUN} |")
    assert not {NOT_RUN, OWN_ONLY} & {*VERDICTS, *TRANSFERS}


def test_a_claim_about_any_model_has_each_familys_own_verdict(claim):
    if not claim.about_any_model:
        return
    tables = [*tables_for(claim, FIRST, True), *tables_for(claim, "another", False)]
    [verdict] = judge([claim], Results(tables=tables))
    answers = {model: answer_of(verdict, model) for model in columns([verdict])}
    assert answers == {FIRST: "reproduced", SECOND: NOT_RUN, "another": "refuted"}


def test_no_family_is_named_or_has_a_column_where_no_model_was_asked(claim):
    if not claim.about_any_model:
        return
    [verdict] = judge([claim], Results(tables=tables_for(claim, NO_MODEL, True)))
    assert {answer_of(verdict, family) for family in FAMILIES} == {OF_NO_MODEL}
    assert list(columns([verdict])) == list(FAMILIES)
    assert not verdict.why.startswith("On ")


def test_the_readme_has_a_column_for_each():
    assert VERDICT_HEAD.count("|") == 4 + len(FAMILIES)
    assert {row.replace("\\|", "").count("|") for row in table_lines(ledger())} == {4 + len(FAMILIES)}
