"""The two protocols: what they take of texts, what they ask of `evaluate`, and that each choice is cited."""

from __future__ import annotations

import dataclasses

import pytest

from knorm_core import PAPER_PROTOCOL, REPORT_PROTOCOL, evaluate, paper_arguments
from knorm_core.protocols import CITED, PAPER_SKIP_LAYERS
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast


def test_rows_qualify_by_their_length_without_the_white_space_at_their_ends_and_are_taken_in_order():
    rows = ["", " = Title = \n", " " * 30 + "x" * 49 + " " * 30 + "\n", "a" * 50, " " + "b" * 2000, "c" * 60, "d" * 70]
    assert REPORT_PROTOCOL.wikitext(rows) == ["a" * 50, " " + "b" * 1023, "c" * 60]


def test_of_a_book_its_first_characters_are_taken():
    books = ["a" * 3000, "b" * 100, "c" * 3000]
    assert REPORT_PROTOCOL.pg19(books) == ["a" * 2048, "b" * 100]
    longer = dataclasses.replace(REPORT_PROTOCOL, book_characters=4096, books=1)
    assert longer.pg19(books) == ["a" * 3000]


def test_means_of_perplexities_give_the_mean_that_the_report_prints():
    # Three rows and two books: (3 · 75.03 + 2 · 39.49) / 5 = 60.81, where neither 2 and 3 nor 1 and 1 gives it.
    assert REPORT_PROTOCOL.average([75.03] * REPORT_PROTOCOL.rows + [39.49] * REPORT_PROTOCOL.books) == pytest.approx(
        60.81, abs=0.005
    )


def test_the_baseline_is_scored_on_other_tokens_than_the_compressed_rows_unless_asked_otherwise():
    model, ids = tiny_model("gpt_neox"), random_ids(90)
    aligned = dataclasses.replace(REPORT_PROTOCOL, baseline="phase2")
    compressed = REPORT_PROTOCOL.arguments(0.5)
    scored = [
        len(evaluate(model, ids, **arguments).nll)
        for arguments in (REPORT_PROTOCOL.arguments(1.0), aligned.arguments(1.0), compressed)
    ]
    assert scored == [89, 44, 44]


def test_a_whole_text_and_compressed_rows_are_cut_to_different_lengths():
    assert [REPORT_PROTOCOL.tokens(ratio) for ratio in (1.0, 0.5)] == [512, 1024]
    aligned = dataclasses.replace(REPORT_PROTOCOL, baseline="phase2")
    assert aligned.tokens(1.0) == 1024


def test_the_papers_threshold_lies_where_the_share_that_is_evicted_says():
    for evicted, threshold in [(0.1, 900), (0.5, 500), (0.9, 100)]:
        arguments = paper_arguments(1000, evicted=evicted)
        assert arguments == PAPER_PROTOCOL | {"prune_after": threshold}
    assert {script: paper_arguments(10, script=script)["skip_layers"] for script in PAPER_SKIP_LAYERS} == {
        "eval_lm_quick.py": (0, 1),
        "eval_lm.py": (0,),
        "eval_needle.py": (0,),
        "eval_passkey.py": (0,),
    }


def test_two_per_cent_at_a_time_keep_the_cache_at_the_papers_threshold():
    result = evaluate(tiny_model("llama"), random_ids(200), **paper_arguments(200))
    assert len(result.nll) == 199
    assert result.evictions_per_layer[:2] == (0, 0)
    assert {eviction.before for eviction in result.evictions[2]} == {100}
    assert {eviction.after for eviction in result.evictions[2]} == {98}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper_arguments(1000, evicted=1.0), r"evicted=1.0 is outside \(0, 1\)"),
        (lambda: paper_arguments(1000, script="eval.py"), "script='eval.py' is not one of 'eval_lm_quick.py'"),
        (lambda: paper_arguments(1), "seq_len=1 is below 2"),
        (
            lambda: dataclasses.replace(REPORT_PROTOCOL, baseline="all"),
            "baseline='all' is not one of 'whole', 'phase2'",
        ),
        (lambda: dataclasses.replace(REPORT_PROTOCOL, rows=0), "rows=0 is below 1"),
    ],
)
def test_a_senseless_choice_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_choice_is_cited():
    switches = {f"report.{field.name}" for field in dataclasses.fields(REPORT_PROTOCOL)} | {"report.average"}
    paper = {f"paper.{name}" for name in PAPER_PROTOCOL} | {"paper.bos"}
    assert set(CITED) == switches | paper
    assert all(citation.files for citation in CITED.values())
