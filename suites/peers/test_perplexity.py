"""Perplexity after a prefill through `KnormPress`, fed by transformers alone, against our evaluator.

Nothing of ours takes part in the peer's number but the text and the weights: kvpress compresses the cache
in its own hook, and the tokens after it are fed with their true positions, which is all that absolute
positions means.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from knorm_core import evaluate
from suites.peers.presses import needs_kvpress, press

pytestmark = [pytest.mark.peers, needs_kvpress, pytest.mark.xdist_group("perplexity")]

TOKENS, PREFILL = 512, 256
KEEP_RATIOS = (0.5, 0.25)


@pytest.mark.parametrize("text", ["embedded-articles", "wikitext"])
def test_a_prefill_through_knorm_press_gives_our_perplexity(text, embedded_model, texts_of, show_table):
    ids = texts_of(embedded_model, text, TOKENS, 1)[0].input_ids
    assert len(ids) == TOKENS
    rows = []
    for keep_ratio in KEEP_RATIOS:
        theirs = perplexity_after_press(embedded_model.model, ids, keep_ratio)
        result = evaluate(
            embedded_model.model,
            ids,
            keep_ratio=keep_ratio,
            prune_after=PREFILL,
            when="after_prefill",
            policy="low_norm_exact",
        )
        assert result.effective_prune_after == PREFILL
        assert set(result.evictions) == {((PREFILL, PREFILL, int(PREFILL * keep_ratio)),)}
        rows.append(
            {
                "keep ratio": str(keep_ratio),
                "kvpress": f"{theirs:.9f}",
                "ours": f"{result.ppl:.9f}",
                "relative": f"{abs(result.ppl / theirs - 1):.1e}",
            }
        )
        assert result.ppl == pytest.approx(theirs, rel=1e-6)
    show_table(f"Perplexity after a prefill of {PREFILL} of {TOKENS} tokens through KnormPress: {text}", rows)


def perplexity_after_press(model, ids: torch.Tensor, keep_ratio: float) -> float:
    """Perplexity of the tokens after the prefill."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        with press("KnormPress")(1 - keep_ratio)(model):
            model(ids[None, :PREFILL], past_key_values=cache, use_cache=True)
        # Layers are equally long, so that transformers' mask for a block of tokens is right for all of them.
        assert {layer.get_seq_length() for layer in cache.layers} == {int(PREFILL * keep_ratio)}
        logits = model(
            ids[None, PREFILL:-1],
            position_ids=torch.arange(PREFILL, TOKENS - 1)[None],
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
    return math.exp(cross_entropy(logits, ids[PREFILL + 1 :]))
