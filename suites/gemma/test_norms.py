"""Where the sink is, and what its key's norm says of it: before QK-norm, and after, which is what low norm sees."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean

import pytest
import torch

from knorm_core.experiments.norm_attention import observe
from suites.families import random_ids, tiny_model
from suites.gemma.norms import FirstTokens, first_tokens

TEXTS = 8


@pytest.mark.fast
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_norms_after_are_those_of_the_cache(family):
    from transformers import DynamicCache

    model, ids = tiny_model(family), random_ids(60)
    cache = DynamicCache()
    with torch.inference_mode():
        model(ids[None], past_key_values=cache)
    for layer in first_tokens(model, ids):
        norms = cache.layers[layer.layer].keys[0].double().norm(dim=-1)
        expected = (norms[:, 0] / norms[:, 4:].median(dim=1).values).min()
        assert layer.after == pytest.approx(float(expected), rel=1e-6)
        assert layer.rank_after == pytest.approx(float((norms < norms[:, :1]).double().mean(dim=1).min()))
        assert 0 < layer.attention < 1


@pytest.fixture(scope="session")
def layers(gemma, texts_and_notes):
    """Every layer, each number averaged over the first texts."""
    _, texts, _ = texts_and_notes
    by_text = [first_tokens(gemma.model, text.input_ids) for text in texts[:TEXTS]]
    return [
        FirstTokens(same[0].layer, *(fmean(values) for values in list(zip(*map(_numbers, same), strict=True))[1:]))
        for same in zip(*by_text, strict=True)
    ]


def _numbers(layer):
    return asdict(layer).values()


@pytest.mark.gemma
@pytest.mark.xdist_group("gemma")
def test_norms_of_the_first_tokens_match_the_baseline(layers, texts_and_notes, check_rows, show_table):
    name, texts, notes = texts_and_notes
    show_table(
        f"Gemma 3 270M: BOS's key norm over the median of later ones, {name}, {len(texts[:TEXTS])} of its texts",
        [
            {
                "layer": layer.layer,
                "before QK-norm": f"{layer.before:.2f}",
                "after": f"{layer.after:.2f}",
                "lower than it, before": f"{layer.rank_before:.0%}",
                "after QK-norm": f"{layer.rank_after:.0%}",
                "tokens 1-3, before": f"{layer.next_before:.2f}",
                "and after": f"{layer.next_after:.2f}",
                "spread of later ones, before": f"{layer.spread_before:.2f}",
                "its spread after": f"{layer.spread_after:.2f}",
                "attention to it": f"{layer.attention:.0%}",
            }
            for layer in layers
        ],
        *notes,
    )
    check_rows(f"{name}/first-tokens", list(map(asdict, layers)), ["layer"], texts[:TEXTS], tokens=512)


@pytest.mark.gemma
@pytest.mark.xdist_group("gemma")
def test_norm_against_later_attention_matches_the_baseline(gemma, texts_and_notes, check_rows, show_table):
    name, texts, notes = texts_and_notes
    heads = observe(gemma.model, texts[0].input_ids)
    by_layer = {layer: [head for head in heads if head.layer == layer] for layer in {head.layer for head in heads}}
    show_table(
        f"Gemma 3 270M: key norm against later attention, {name}, one text of 512 tokens",
        [
            {
                "layer": layer,
                "mean Spearman": f"{fmean(head.spearman for head in same):+.3f}",
                "heads where it holds": f"{sum(head.holds for head in same)} of {len(same)}",
                "ALr": f"{fmean(head.alr for head in same):.2f}",
                "of a random order": f"{fmean(head.alr_random for head in same):.2f}",
            }
            for layer, same in by_layer.items()
        ],
        *notes,
    )
    check_rows(f"{name}/norm-attention", list(map(asdict, heads)), ["layer", "head"], texts[:1], tokens=512)
