"""Where the sink is, and what its key's norm says of it: before QK-norm, and after, which is what low norm sees.

32 texts of 512 tokens take 90 CPU-seconds in float64.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from statistics import fmean

import pytest
import torch

from knorm_core import effective_prune_after, l2_compress
from knorm_core.experiments.breadth import prune_after_of
from knorm_core.experiments.norm_attention import observe
from suites.families import random_ids, tiny_model
from suites.gemma.norms import FirstTokens, first_tokens, over_texts


@pytest.mark.fast
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_norms_after_are_those_of_the_cache(family):
    from transformers import DynamicCache

    model, ids = tiny_model(family), random_ids(60)
    cache = DynamicCache()
    with torch.inference_mode():
        model(ids[None], past_key_values=cache)
    for layer in first_tokens(model, ids, 40):
        norms = cache.layers[layer.layer].keys[0].double().norm(dim=-1)
        expected = (norms[:, 0] / norms[:, 4:].median(dim=1).values).min()
        assert layer.after == pytest.approx(float(expected), rel=1e-6)
        assert layer.rank_after == pytest.approx(float((norms < norms[:, :1]).double().mean(dim=1).min()))
        assert 0 < layer.attention < 1


@pytest.mark.fast
@pytest.mark.parametrize("prune_after", [40, 55])
def test_the_first_token_stays_as_long_as_it_does_token_by_token(prune_after):
    from transformers import DynamicCache

    model, ids = tiny_model("qwen3"), random_ids(90)
    uncompressed = DynamicCache()
    with torch.inference_mode():
        model(ids[None], past_key_values=uncompressed)
    start, fed = effective_prune_after(90, prune_after), 89
    by_ratio = {0.9: "stays_90", 0.5: "stays_50", 0.1: "stays_10"}
    for layer in first_tokens(model, ids, prune_after):
        keys = uncompressed.layers[layer.layer].keys
        for ratio, name in by_ratio.items():
            alive, stays = keys[:, :, :start], torch.zeros(keys.shape[1])
            for step in range(start, fed):
                [(alive, _)] = l2_compress([(alive, alive)], ratio, start)
                # A key is known by its numbers: no two tokens' keys are alike in a random model.
                stays += (alive[0, :, 0] == keys[0, :, 0]).all(dim=-1)
                alive = torch.cat([alive, keys[:, :, step : step + 1]], dim=2)
            assert getattr(layer, name) == pytest.approx(float(stays.min()) / (fed - start))


@pytest.mark.fast
def test_a_row_of_the_table_is_a_mean_over_texts_and_few_texts_have_no_limits():
    texts = [[FirstTokens(5, *(index + place for place in range(12)))] for index in range(9)]
    [row] = over_texts(texts)
    assert (row["layer"], row["before"], row["attention"]) == (5, 4, 15)
    reach = 1.96 * statistics.stdev(range(9)) / 3
    assert 0.9 * reach < 4 - row["before_low"] < 1.6 * reach  # Student's t with 8 degrees of freedom: 1.18
    [few] = over_texts(texts[:7])
    assert (few["before"], few["before_low"], few["before_high"]) == (3, -math.inf, math.inf)


@pytest.fixture(scope="session")
def layers(gemma, texts_and_notes):
    """Every layer, each number averaged over the texts."""
    _, texts, _ = texts_and_notes
    return over_texts(
        [first_tokens(gemma.model, text.input_ids, prune_after_of(index)) for index, text in enumerate(texts)]
    )


@pytest.mark.gemma
@pytest.mark.xdist_group("gemma")
def test_norms_of_the_first_tokens_match_the_baseline(layers, texts_and_notes, check_rows, show_table):
    name, texts, notes = texts_and_notes
    show_table(
        f"Gemma 3 270M: BOS's key norm over the median of later ones, {name}, {len(texts)} texts",
        [
            {
                "layer": layer["layer"],
                "before QK-norm": f"{layer['before']:.2f}",
                "after": f"{layer['after']:.2f}",
                "lower than it, before": f"{layer['rank_before']:.0%}",
                "after QK-norm": f"{layer['rank_after']:.0%}",
                "tokens 1-3, before": f"{layer['next_before']:.2f}",
                "and after": f"{layer['next_after']:.2f}",
                "spread of later ones, before": f"{layer['spread_before']:.2f}",
                "its spread after": f"{layer['spread_after']:.2f}",
                "stays at keep 0.9, 0.5, 0.1": ", ".join(f"{layer[f'stays_{kept}']:.0%}" for kept in (90, 50, 10)),
                "attention to it": f"{layer['attention']:.0%}",
            }
            for layer in layers
        ],
        *notes,
    )
    check_rows(f"{name}/first-tokens", layers, ["layer"], texts, tokens=512)


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
    rows = list(map(asdict, heads))
    check_rows(f"{name}/norm-attention", rows, ["layer", "head"], texts[:1], of_one_text=True, tokens=512)
