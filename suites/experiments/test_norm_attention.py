"""Key norm against later attention: the measures against scipy and by hand, the embedded model head by head.

Two forward passes of 512 tokens with eager attention: 15 CPU-seconds in float64.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from statistics import fmean

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core.experiments.codecs import HEAD
from knorm_core.experiments.norm_attention import alr, alr_random, limits, observe, spearman
from knorm_core.sweeps.codec import each
from suites.experiments.conftest import on_both_texts
from suites.families import random_ids, tiny_model

rows = st.integers(0, 10**6).map(lambda seed: np.random.default_rng(seed))


@pytest.mark.fast
@settings(max_examples=30)
@given(rng=rows, levels=st.integers(2, 50))
def test_spearman_is_scipys(rng, levels):
    with_ties, without = rng.integers(levels, size=(4, 30)) + 0.5, rng.normal(size=(4, 30))
    with_ties[:, 0] = -1  # never constant
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(with_ties, without, strict=True)]
    np.testing.assert_allclose(spearman(with_ties, without), expected, atol=1e-12)


@pytest.mark.fast
def test_attention_lost_is_what_a_sum_by_hand_gives():
    attention = np.array([[0.1, 0.4, 0.2]])
    norms = np.array([[3.0, 2.0, 1.0]])  # dropped in this order: 0.1, 0.5, 0.7; by attention: 0.1, 0.3, 0.7
    np.testing.assert_allclose(alr(norms, attention), [0.2])
    # random: 0.7 (1/3 + 2/3 + 1) = 1.4, by attention 1.1
    np.testing.assert_allclose(alr_random(attention), [0.3])


@pytest.mark.fast
@settings(max_examples=20)
@given(rng=rows)
def test_alr_is_nothing_for_the_ideal_order_and_no_more_than_the_opposite(rng):
    attention = rng.random((3, 40))
    np.testing.assert_allclose(alr(-attention, attention), 0, atol=1e-12)
    worst = alr(attention, attention)
    assert (alr(rng.random((3, 40)), attention) <= worst + 1e-12).all()
    orders = alr(rng.random((3_000, 40)), np.repeat(attention[:1], 3_000, axis=0))
    assert orders.mean() == pytest.approx(alr_random(attention)[0], rel=0.05)
    # the ideal and the opposite order are mirror images about the random one
    np.testing.assert_allclose(worst, 2 * alr_random(attention))


@pytest.mark.fast
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen3"])
def test_it_reads_the_models_own_maps_and_keys(family):
    import torch
    from transformers import DynamicCache

    model, ids = tiny_model(family), random_ids(80)
    observed = observe(model, ids)
    cache = DynamicCache()
    model.config._attn_implementation = "eager"
    try:
        with torch.inference_mode():
            maps = model(ids[None], past_key_values=cache, output_attentions=True).attentions
    finally:
        model.config._attn_implementation = "sdpa"
    heads, kv_heads = maps[0].shape[1], cache.layers[0].keys.shape[1]
    assert [(head.layer, head.head) for head in observed] == [
        (layer, head) for layer in range(3) for head in range(heads)
    ]
    for head in observed:
        assert head.kv_head == head.head // (heads // kv_heads)
        norms = cache.layers[head.layer].keys[0, head.kv_head, :40].norm(dim=-1)
        received = maps[head.layer][0, head.head, 40:, :40].mean(dim=0)
        assert head.spearman == pytest.approx(scipy.stats.spearmanr(norms, received).statistic, abs=0.01)


@pytest.mark.fast
def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="33 tokens; a text needs at least 34"):
        observe(tiny_model("llama"), random_ids(33))


both_texts = on_both_texts("controls", pytest.mark.repro)

# Layers of the embedded model in which low norm does not go with high attention: most heads disagree, or
# dropping keys by norm loses as much attention as dropping them at random.
NOT_HOLDING = {"embedded-articles": {0}, "embedded-narrative": {0}}


@pytest.fixture(scope="session")
def heads_of(language_model, short_texts, remembered):
    """``heads_of(text_set)``: every head on the set's first text, computed once per process."""

    @functools.cache
    def heads(text_set):
        text = short_texts(text_set)[0]
        observed = functools.partial(observe, language_model.model, text.input_ids)
        return remembered("heads", f"{text_set}: {text.title}", text.input_ids, None, observed, each(HEAD))

    return heads


@both_texts
def test_heads_match_the_baseline(text_set, heads_of, short_texts, check_rows, show_table):
    observed = heads_of(text_set)
    worse = [head for head in observed if head.alr >= head.alr_random]
    relative = fmean(head.alr / head.alr_random for head in observed)
    without = fmean(head.alr_without_first / head.alr_without_first_random for head in observed)
    show_table(
        f"key norm against later attention, {text_set}, 512 tokens",
        [
            {
                "layer": layer,
                "mean Spearman": f"{fmean(head.spearman for head in heads):+.3f}",
                "heads where it holds": f"{sum(head.holds for head in heads)} of {len(heads)}",
                "ALr": f"{fmean(head.alr for head in heads):.2f}",
                "of a random order": f"{fmean(head.alr_random for head in heads):.2f}",
                "ALr without token 0": f"{fmean(head.alr_without_first for head in heads):.2f}",
                "of a random one": f"{fmean(head.alr_without_first_random for head in heads):.2f}",
            }
            for layer, heads in by_layer(observed).items()
        ],
        f"Spearman over all heads: mean {fmean(head.spearman for head in observed):+.3f}, negative in "
        f"{fmean(head.holds for head in observed):.0%} of {len(observed)} heads (the paper: low norm, "
        "high attention).",
        f"It does not hold in layers {sorted(not_holding(observed))}; dropping by norm loses more attention than "
        f"dropping at random in {len(worse)} heads, in layers {sorted({head.layer for head in worse})}.",
        f"Much of it is the first token: ALr is {relative:.0%} of a random order's (mean over heads), and "
        f"{without:.0%} once that token is left out.",
    )
    # Eager attention computes its softmax in float32, so near ties of attention may change ranks.
    rows = [asdict(head) for head in observed]
    check_rows(
        f"{text_set}/norm-attention",
        rows,
        ["layer", "head"],
        short_texts(text_set)[:1],
        rtol=1e-4,
        atol=1e-4,
        tokens=512,
    )


@both_texts
def test_the_layers_where_it_does_not_hold_are_these(text_set, heads_of, claims):
    assert not_holding(heads_of(text_set)) == NOT_HOLDING[text_set]


@both_texts
def test_correlation_is_negative_in_nine_of_ten_heads(text_set, heads_of, claims):
    observed = heads_of(text_set)
    assert fmean(head.holds for head in observed) > 0.9
    assert -0.4 < fmean(head.spearman for head in observed) < -0.3


def by_layer(observed):
    return {
        layer: [head for head in observed if head.layer == layer] for layer in sorted({head.layer for head in observed})
    }


def not_holding(observed):
    return {
        layer
        for layer, heads in by_layer(observed).items()
        if sum(head.holds for head in heads) < len(heads) / 2
        or fmean(head.alr for head in heads) >= fmean(head.alr_random for head in heads)
    }


@pytest.mark.fast
@settings(max_examples=10)
@given(rng=rows)
def test_limits_hold_the_number_and_are_the_same_again(rng):
    norms, attention = rng.random((2, 256)), rng.random((2, 256))
    ends = limits(norms, attention)
    for measured, low, high in zip(
        (spearman(norms, attention), alr(norms, attention)), ends[:4:2], ends[1:4:2], strict=True
    ):
        assert (low < measured).all()
        assert (measured < high).all()
    assert all((first == second).all() for first, second in zip(ends, limits(norms, attention), strict=True))
