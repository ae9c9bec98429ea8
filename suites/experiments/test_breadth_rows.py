"""The rows on many texts: what varies between texts, and that no row is compared with another text's."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from knorm_core import evaluate
from knorm_core.experiments.breadth import (
    FURTHER,
    PERIOD,
    PRUNE_AFTER,
    ROWS,
    TEXTS,
    UNCOMPRESSED,
    Row,
    SinksFirst,
    by_row,
    inversion,
    prune_after_of,
    seeds_of,
    table,
)
from knorm_core.plugin.breadth import across_kinds
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast


def test_thresholds_are_spread_evenly_over_one_period_around_the_mean():
    thresholds = sorted(prune_after_of(index) for index in range(TEXTS))
    assert {later - earlier for earlier, later in pairwise(thresholds)} == {PERIOD // TEXTS}
    assert thresholds[-1] - thresholds[0] < PERIOD
    assert sum(thresholds) / TEXTS == pytest.approx(PRUNE_AFTER, abs=PERIOD / TEXTS)


@pytest.mark.parametrize("kind", range(8))
def test_the_four_texts_of_a_kind_lie_in_the_four_quarters_of_the_period(kind):
    quarters = [(prune_after_of(kind + 8 * text) - PRUNE_AFTER + PERIOD // 2) * 4 // PERIOD for text in range(4)]
    assert sorted(quarters) == [0, 1, 2, 3]


def test_no_two_texts_share_a_seed():
    assert len({seed for index in range(TEXTS) for seed in seeds_of(index)}) == 2 * TEXTS


def test_fewer_texts_are_the_first_of_every_kind():
    titles = [f"breadth-{kind}-{number}" for kind in ("dialogue", "essay", "news") for number in (1, 2)]
    ordered = across_kinds([SimpleNamespace(title=title) for title in titles])
    assert [text.title for text in ordered[:3]] == ["breadth-dialogue-1", "breadth-essay-1", "breadth-news-1"]
    assert len(ordered) == 6


def test_texts_without_kinds_keep_their_order():
    titles = ["Robert Boulter", "Du Fu 2", "Kiss"]
    assert [text.title for text in across_kinds([SimpleNamespace(title=t) for t in titles])] == titles


def test_every_row_has_its_uncompressed_and_its_low_norm_row_and_stands_once():
    assert len({*ROWS, *FURTHER}) == len(ROWS) + len(FURTHER)
    assert UNCOMPRESSED in ROWS
    assert {row.low_norm for row in (*ROWS, *FURTHER)} <= set(ROWS)


@pytest.mark.parametrize("row", [row for row in (*ROWS, *FURTHER) if row.keep_ratio != 0.98], ids=str)
def test_every_row_runs_at_both_ends_of_the_thresholds(row):
    model = tiny_model("llama")
    for index in (0, 31):
        for arguments in row.arguments(index):
            evaluation = evaluate(model, random_ids(400), **arguments)
            assert evaluation.effective_prune_after == prune_after_of(index)


def test_sinks_first_evicts_the_first_tokens_before_all_others():
    keys, positions = torch.rand(1, 2, 9, 4, dtype=torch.float64), torch.arange(9).expand(1, 2, 9)
    scores = SinksFirst().score(SimpleNamespace(keys=keys, positions=positions))
    assert scores.argsort(-1)[..., :4].sort().values.tolist() == [[[0, 1, 2, 3]] * 2]
    low_first = keys.norm(dim=-1).argsort(-1)
    later = [[int(i) for i in head if i >= 4] for head in low_first[0]]
    assert [[int(i) for i in head if i >= 4] for head in scores.argsort(-1, descending=True)[0]] == later


def test_rows_are_compared_with_low_norm_at_their_own_keep_ratio_and_both_seeds_count():
    model = tiny_model("llama")
    rows = [UNCOMPRESSED, Row("low_norm", 0.9), Row("low_norm", 0.5), Row("random", 0.5)]
    texts = [
        {row: [evaluate(model, random_ids(340, index), **a) for a in row.arguments(index)] for row in rows}
        for index in range(8)
    ]
    evaluations = by_row(texts)
    columns = {(line["policy"], line["keep_ratio"]): line for line in table(rows, evaluations)}
    low, random = columns["low_norm", 0.5], columns["random", 0.5]
    assert (low["to_low_norm"], low["to_low_norm_low"], low["to_low_norm_detectable"]) == (1, 1, 1)
    assert random["to_low_norm"] == pytest.approx(random["ppl"] / low["ppl"], rel=1e-9)
    assert random["to_low_norm_low"] < random["to_low_norm"] < random["to_low_norm_high"]
    both = [(first.nll + second.nll) / 2 for first, second in (text[Row("random", 0.5)] for text in texts)]
    assert [e.nll.tolist() for e in evaluations[Row("random", 0.5)]] == [nll.tolist() for nll in both]
    [change] = inversion(rows, evaluations)
    assert change["ratio"] == pytest.approx(columns["low_norm", 0.9]["ppl"] / low["ppl"], rel=1e-9)
