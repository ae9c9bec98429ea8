"""Policies against kvpress: eviction at every step through its `DecodingPress`, and its presses after a prefill.

Nothing of ours takes part in the peer's numbers but the text and the weights: kvpress compresses the cache in its own
hook, and transformers feeds what comes after.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.nn.functional import cross_entropy

from knorm_core import evaluate, fit_q_filters
from knorm_core.methods.forward import cache_argument, private_copy
from knorm_core.policies import H2O, TOVA, ExpectedAttention, KeyDiff, LagKV, SnapKV
from suites.peers.presses import needs_kvpress, press

pytestmark = [pytest.mark.peers, needs_kvpress, pytest.mark.xdist_group("perplexity")]

FULL, KEPT, DECODED = 96, 48, 200  # cache lengths before and after an eviction, and tokens of the text
TOKENS, PREFILL = 512, 256


@pytest.fixture(scope="session")
def embedded_ids(embedded_model, texts_of):
    return texts_of(embedded_model, "embedded-articles", TOKENS, 1)[0].input_ids


@pytest.mark.parametrize("positions", ["absolute", "cache"])
@pytest.mark.parametrize(
    ("interval", "ours"),
    [
        (FULL - KEPT, {"keep_ratio": KEPT / FULL, "prune_after": FULL}),
        (1, {"when": "fixed_budget", "budget": KEPT + 1}),
    ],
    ids=["every step", "fixed budget"],
)
def test_decoding_press_evicts_as_we_define_it(interval, ours, positions, embedded_model, embedded_ids):
    ids = embedded_ids[:DECODED]
    theirs = decoded_losses(embedded_model.model, ids, interval, positions)
    result = evaluate(embedded_model.model, ids, policy="low_norm_exact", positions=positions, **ours)
    assert len(result.evictions[0]) > 1
    theirs = theirs[-len(result.nll) :]
    # SmolLM2's RMSNorm rounds to float32, and where float64 noise straddles such a step a token parts by some 1e-6.
    assert float((result.nll - theirs).abs().max()) < 1e-5
    assert result.ppl == pytest.approx(math.exp(theirs.mean()), rel=1e-6)


@torch.inference_mode()
def decoded_losses(model, ids, interval, positions):
    """Losses of the tokens after a prefill of `KEPT`, each fed alone, float64."""
    import kvpress
    from transformers import DynamicCache

    cache = DynamicCache()
    decoding = kvpress.DecodingPress(kvpress.KnormPress(), compression_interval=interval, target_size=KEPT)
    logits = []
    with decoding(model):
        model(ids[None, :KEPT], use_cache=True, **cache_argument(model, cache))
        for step in range(KEPT, len(ids) - 1):
            place = {"position_ids": torch.tensor([[step]])} if positions == "absolute" else {}
            fed = ids[None, step : step + 1]
            logits.append(model(fed, use_cache=True, **place, **cache_argument(model, cache)).logits[0])
    return cross_entropy(torch.cat(logits), ids[KEPT + 1 :], reduction="none")


class ObservedAttention(H2O):
    """kvpress's `ObservedAttentionPress`: what a key received, divided by the queries that saw it."""

    def score(self, seen):
        return seen.state / (seen.fed - seen.positions)


PEERS = [
    ("TOVAPress", {}, {"policy": TOVA(), "recent": 1}),
    ("SnapKVPress", {"window_size": 16, "kernel_size": 5}, {"policy": SnapKV(window=16, kernel=5)}),
    ("KeyDiffPress", {}, {"policy": KeyDiff()}),
    ("ObservedAttentionPress", {}, {"policy": ObservedAttention()}),
    ("ExpectedAttentionPress", {}, {"policy": ExpectedAttention()}),
]


@pytest.mark.parametrize("keep_ratio", [0.5, 0.25])
@pytest.mark.parametrize(("name", "arguments", "ours"), PEERS, ids=[name for name, _, _ in PEERS])
def test_after_a_prefill_our_perplexity_is_that_of_the_press(
    name, arguments, ours, keep_ratio, embedded_model, embedded_ids
):
    model = embedded_model.model
    theirs = perplexity_after(press(name, **arguments)(1 - keep_ratio), model, embedded_ids, keep_ratio)
    result = evaluate(model, embedded_ids, keep_ratio=keep_ratio, prune_after=PREFILL, when="after_prefill", **ours)
    assert result.ppl == pytest.approx(theirs, rel=1e-6)
    others = evaluate(model, embedded_ids, keep_ratio=keep_ratio, prune_after=PREFILL, when="after_prefill")
    assert abs(others.ppl / theirs - 1) > 1e-3  # low norm's: the press decides something


@pytest.mark.parametrize("of_each", [10, 3])
def test_lagkv_is_that_of_the_press_where_equal_ranks_decide_nothing(of_each, embedded_model, embedded_ids):
    # Four sinks, six partitions of 32 that another follows, and the 60 latest. Of equal ranks topk may take either.
    keep_ratio = (4 + 6 * of_each + 60) / PREFILL
    ours = {"policy": LagKV(), "keep_ratio": keep_ratio, "prune_after": PREFILL, "when": "after_prefill"}
    result = evaluate(embedded_model.model, embedded_ids, **ours)
    lagkv = press("LagKVPress", lag_size=32)(1 - keep_ratio)
    theirs = perplexity_after(lagkv, embedded_model.model, embedded_ids, keep_ratio)
    assert result.ppl == pytest.approx(theirs, rel=1e-6)


def test_q_filters_are_those_of_the_press_with_our_directions(embedded_model, embedded_ids, texts_of):
    model = embedded_model.model
    fitted_on = texts_of(embedded_model, "embedded-articles", 256, 3)[2]
    policy = fit_q_filters(model, [fitted_on])
    q_filter = press("QFilterPress")(0.5)
    # Its own come from the hub, with the opposite sign.
    q_filter.q_filters = -policy.directions.vectors.to(model.dtype)
    q_filter.post_init_from_model = lambda _: None
    theirs = perplexity_after(q_filter, model, embedded_ids, 0.5)
    result = evaluate(model, embedded_ids, keep_ratio=0.5, prune_after=PREFILL, when="after_prefill", policy=policy)
    assert result.ppl == pytest.approx(theirs, rel=1e-6)


def test_pyramidkv_scores_as_the_press_does_with_the_counts_of_the_press(embedded_model, embedded_ids):
    # Its counts are not the paper's: its window is within what is divided, and a short last layer gives the pyramid up.
    model, window = embedded_model.model, 16
    pyramid = press("PyramidKVPress", window_size=window, beta=4)(0.5)
    layers = [layer.self_attn for layer in model.model.layers]
    ratios = [Fraction(pyramid.get_layer_budget(layer, PREFILL), PREFILL) for layer in layers]
    assert len(set(ratios)) > 20
    ours = {"policy": SnapKV(window=window), "keep_ratio": ratios, "prune_after": PREFILL, "when": "after_prefill"}
    theirs = perplexity_after(pyramid, model, embedded_ids, None)
    assert evaluate(model, embedded_ids, **ours).ppl == pytest.approx(theirs, rel=1e-6)


@torch.inference_mode()
def perplexity_after(press, model, ids, keep_ratio):
    """Perplexity of the tokens after a prefill through a press, which sees the attention of eager code.

    With ``keep_ratio`` None layers may differ in length; then tokens are fed one by one, as a mask for more is made for
    one length.
    """
    from transformers import DynamicCache

    cache, eager = DynamicCache(), private_copy(model, "eager")
    with press(eager):
        eager(ids[None, :PREFILL], use_cache=True, **cache_argument(eager, cache))
    lengths = {layer.get_seq_length() for layer in cache.layers}
    assert lengths == {int(PREFILL * keep_ratio)} if keep_ratio else len(lengths) > 1
    logits = []
    for place in torch.arange(PREFILL, TOKENS - 1)[None].split(TOKENS if keep_ratio else 1, dim=1):
        fed = ids[place]
        logits.append(model(fed, position_ids=place, use_cache=True, **cache_argument(model, cache)).logits[0])
    return math.exp(cross_entropy(torch.cat(logits), ids[PREFILL + 1 :]))
