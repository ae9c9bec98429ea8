"""Wikitext-2 figures of three implementations that are not ours, on the embedded model in float64, prune_after 256.

Two of them are of the first 512 tokens of the raw test split. The third is the paper's own ``eval_lm_quick.py``
(repository alessiodevoto/l2compress), run with transformers 4.40.
"""

from __future__ import annotations

import pytest
import torch

from knorm_core import PAPER_PROTOCOL, evaluate, evaluate_rows, evaluate_table

pytestmark = [pytest.mark.golden, pytest.mark.xdist_group("reference")]

# An independent evaluator, written from the definition before this one.
REFERENCE = {
    ("absolute", 1.0): 12.84413921337436,
    ("absolute", 0.9): 18.55693111477138,
    ("absolute", 0.5): 18.621664629470928,
    ("absolute", 0.1): 21.428572154304554,
    ("cache", 1.0): 12.84413921337436,
    ("cache", 0.9): 82.82142397323398,
    ("cache", 0.5): 31.224779680691057,
    ("cache", 0.1): 21.19215687510395,
}
# kvpress 0.5.5: a prefill of 256 tokens through KnormPress(0.5), then absolute positions
KVPRESS_AFTER_PREFILL = 14.839715641
# The paper's loop on BOS and the first 699 tokens of the first article; it leaves layers 0 and 1 alone, scores from
# the start, ranks exact norms, and takes its losses from float32 logits: hence 1e-5, where ours has float64.
PAPERS_LOOP = {1.0: 16.181125, 0.9: 22.396481, 0.5: 22.614338, 0.1: 24.194901}


@pytest.fixture(scope="module")
def ids(embedded_model, texts_of):
    [text] = texts_of(embedded_model, "wikitext", 512, 1)
    return text.input_ids


def test_tables_agree_with_an_independent_implementation(ids, embedded_model):
    table = evaluate_table(embedded_model.model, ids, keep_ratios=(1.0, 0.9, 0.5, 0.1), positions=("absolute", "cache"))
    assert {key: row.ppl for key, row in table.items()} == pytest.approx(REFERENCE, rel=1e-6)
    assert {len(row.nll) for row in table.values()} == {255}


def test_compressing_once_after_prefill_agrees_with_kvpress(ids, embedded_model):
    result = evaluate(
        embedded_model.model, ids, keep_ratio=0.5, when="after_prefill", policy="low_norm_exact", prune_after=256
    )
    assert result.ppl == pytest.approx(KVPRESS_AFTER_PREFILL, rel=1e-6)


def test_the_papers_own_loop_agrees(embedded_model, texts_of):
    [article] = texts_of(embedded_model, "wikitext-articles", 699, 1)
    ids = torch.cat([torch.tensor([embedded_model.tokenizer.bos_token_id]), article.input_ids])
    rows = {ratio: {**PAPER_PROTOCOL, "prune_after": 256, "keep_ratio": ratio} for ratio in PAPERS_LOOP}
    results = evaluate_rows(embedded_model.model, ids, rows)
    assert {ratio: result.ppl for ratio, result in results.items()} == pytest.approx(PAPERS_LOOP, rel=1e-5)


def test_drift_inverts_the_curve_and_true_positions_do_not(ids, embedded_model):
    table = evaluate_table(embedded_model.model, ids, keep_ratios=(0.9, 0.5, 0.1), positions=("absolute", "cache"))
    drifted, true = ([table[mode, r].ppl for r in (0.9, 0.5, 0.1)] for mode in ("cache", "absolute"))
    assert drifted == sorted(drifted, reverse=True)
    assert true == sorted(true)
