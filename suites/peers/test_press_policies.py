"""Scorer presses as policies: kvpress's own perplexity after a prefill, and its `DecodingPress`'s at every eviction.

Nothing of ours takes part in the peer's numbers but the text and the weights. One thing is repaired where a press needs
it: kvpress leaves survivors in order of their score, and a score that depends on the cache's order is then another.
"""

from __future__ import annotations

import math
from fractions import Fraction
from types import MethodType

import pytest
import torch
from torch.nn.functional import cross_entropy

from knorm_core import PolicyError, evaluate, press_policy
from knorm_core.methods.forward import cache_argument, private_copy
from knorm_core.policy_names import policy_identity, policy_label
from suites.families import VOCABULARY, tiny_model
from suites.peers.presses import needs_kvpress, press
from suites.peers.scorers import FAMILIES, IN_ORDER, LEFT_OUT, SCORERS, YES

pytestmark = [pytest.mark.peers, needs_kvpress, pytest.mark.xdist_group("press policies")]

FULL, KEPT = 48, 28  # such that LagKV keeps equally many of every partition
EVERY_STEP = {"keep_ratio": Fraction(KEPT, FULL), "prune_after": FULL, "adjust": False}
FIXED_BUDGET = {"when": "fixed_budget", "budget": KEPT + 1}
# Where attention is given, kvpress's is of eager code, which takes the softmax in float32.
EXACT, EAGER = 1e-10, 1e-5

# Each token but once, as rounding noise would decide between equal keys.
IDS = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))

_PAIRS = [(scorer, family) for family in FAMILIES for scorer in SCORERS if family in scorer.families]
scorers_and_families = pytest.mark.parametrize(
    ("scorer", "family"), _PAIRS, ids=[f"{scorer.label}-{family}" for scorer, family in _PAIRS]
)


def policy_of(scorer, window=None):
    return press_policy(scorer.build(0.0), window=window, attentions=scorer.attentions)


def assert_the_same(scorer, result, theirs):
    assert float((result.nll - theirs).abs().max()) < (EAGER if scorer.attentions else EXACT)
    assert result.ppl == pytest.approx(math.exp(theirs.mean()), rel=1e-6)


@scorers_and_families
def test_after_a_prefill_the_policy_gives_the_presss_own_losses(scorer, family):
    model = tiny_model(family)
    result = evaluate(model, IDS, policy=policy_of(scorer), when="after_prefill", **EVERY_STEP)
    assert_the_same(scorer, result, prefilled_losses(scorer, model))


@pytest.mark.parametrize("when", ["every_step", "fixed_budget"])
@scorers_and_families
def test_at_every_eviction_the_policy_gives_the_losses_of_its_decoding_press(scorer, when, family):
    holds, interval, arguments = {
        "every_step": (scorer.every_step, FULL - KEPT, EVERY_STEP),
        "fixed_budget": (scorer.fixed_budget, 1, FIXED_BUDGET),
    }[when]
    if holds not in (YES, IN_ORDER):
        pytest.skip(holds)
    model = tiny_model(family)
    result = evaluate(model, IDS, policy=policy_of(scorer, window=interval), **arguments)
    assert len(result.evictions[0]) > 1
    theirs = decoded_losses(scorer, model, interval, ordered=holds == IN_ORDER)
    assert_the_same(scorer, result, theirs[-len(result.nll) :])


@pytest.mark.parametrize("window", [None, FULL - KEPT])
@scorers_and_families
def test_one_pass_equals_stepwise(scorer, window, family):
    model, policy = tiny_model(family), policy_of(scorer, window)
    once = window is None  # at later evictions most have more hidden states than keys, which some do not take
    arguments = EVERY_STEP | ({"when": "after_prefill"} if once else {})
    if not once and scorer.every_step not in (YES, IN_ORDER):
        pytest.skip(scorer.every_step)
    result = evaluate(model, IDS, policy=policy, **arguments)
    assert result.method == "onepass"
    stepwise = evaluate(model, IDS, policy=policy, method="stepwise", **arguments)
    assert result.evictions == stepwise.evictions
    assert float((result.nll - stepwise.nll).abs().max()) < EXACT


def test_presses_that_need_temporal_order_are_those_that_kvpress_gives_another():
    for scorer in SCORERS:
        if scorer.every_step == IN_ORDER:
            model = tiny_model("llama")
            ordered, unordered = (decoded_losses(scorer, model, FULL - KEPT, ordered=each) for each in (True, False))
            assert float((ordered - unordered).abs().max()) > 1e-2, scorer.label


@pytest.mark.parametrize("name", ["PyramidKVPress"])
def test_a_press_with_a_compress_of_its_own_is_refused_by_name(name):
    with pytest.raises(PolicyError, match=f"^{name} has a compress of its own"):
        press_policy(press(name)(0.5))


@pytest.mark.parametrize("build", [press("KVzipPress"), press("KeyRerotationPress", "KnormPress"), lambda _: 3])
def test_what_scores_no_keys_is_refused(build):
    with pytest.raises(TypeError, match=r"is not an instance of kvpress.ScorerPress"):
        press_policy(build(0.5))


def test_every_scorer_press_is_in_the_table_or_left_out_for_a_reason():
    import kvpress

    kinds = {getattr(kvpress, name) for name in kvpress.__all__}
    scoring = {kind.__name__ for kind in kinds if isinstance(kind, type) and issubclass(kind, kvpress.ScorerPress)}
    in_the_table = {type(scorer.build(0.0)).__name__ for scorer in SCORERS}
    assert in_the_table | set(LEFT_OUT) == scoring - {"ScorerPress"}
    assert not in_the_table & set(LEFT_OUT)


def test_what_a_press_cannot_score_is_said_in_one_sentence():
    policy = press_policy(press("ObservedAttentionPress")(0.5))
    with pytest.raises(
        PolicyError, match=r"^press ObservedAttentionPress\(\) cannot score 48 keys in layer 0 of Llama"
    ):
        evaluate(tiny_model("llama"), IDS, policy=policy, **EVERY_STEP)


def test_identity_is_the_presss_class_source_and_parameters_and_not_its_ratio():
    def identity(name, ratio=0.0, window=None, **arguments):
        return policy_identity(press_policy(press(name, **arguments)(ratio), window=window))

    assert identity("KnormPress") == identity("KnormPress", ratio=0.5)
    made = [
        identity("KnormPress"),
        identity("KeyDiffPress"),
        identity("KeyDiffPress", window=3),
        identity("LagKVPress", lag_size=4),
        identity("LagKVPress", lag_size=5),
    ]
    assert None not in made
    assert len(set(made)) == len(made)
    label = policy_label(press_policy(press("LagKVPress", lag_size=4)(0.5)))
    assert label.startswith("PressPolicy(press=LagKVPress(cross_scoring=False, lag_size=4, n_sink=4)")


def test_a_batch_is_scored_text_by_text_and_the_press_is_left_alone():
    from knorm_core import evaluate_batch

    given = press("SnapKVPress", window_size=4)(0.3)
    policy, texts = press_policy(given), torch.stack([IDS, IDS.flip(0)])
    together = evaluate_batch(tiny_model("llama"), texts, policy=policy, **EVERY_STEP)
    for text, result in zip(texts, together, strict=True):
        alone = evaluate(tiny_model("llama"), text, policy=policy, **EVERY_STEP)
        assert float((result.nll - alone.nll).abs().max()) < EXACT
    assert given.compression_ratio == 0.3


@torch.inference_mode()
def prefilled_losses(scorer, model):
    """Losses of the tokens after a prefill of `FULL` through a press, float64."""
    from transformers import DynamicCache

    cache, copy = DynamicCache(), private_copy(model, "eager" if scorer.attentions else "sdpa")
    with scorer.build(1 - (KEPT + 0.5) / FULL)(copy):
        copy(IDS[None, :FULL], use_cache=True, **cache_argument(copy, cache))
    assert {layer.get_seq_length() for layer in cache.layers} == {KEPT}
    plain = private_copy(model, "sdpa")
    place = torch.arange(FULL, len(IDS) - 1)[None]
    fed = IDS[None, FULL:-1]
    logits = plain(fed, position_ids=place, use_cache=True, **cache_argument(plain, cache)).logits[0]
    return cross_entropy(logits, IDS[FULL + 1 :], reduction="none")


@torch.inference_mode()
def decoded_losses(scorer, model, interval, ordered):
    """Losses of the tokens after a prefill of `KEPT`, each fed alone, float64."""
    import kvpress
    from transformers import DynamicCache

    given = scorer.build(0.0)
    if ordered:
        given.compress = MethodType(compress_in_order, given)
    decoding = kvpress.DecodingPress(given, compression_interval=interval, target_size=KEPT)
    cache, copy = DynamicCache(), private_copy(model, "eager" if scorer.attentions else "sdpa")
    logits = []
    with decoding(copy):
        copy(IDS[None, :KEPT], use_cache=True, **cache_argument(copy, cache))
        for step in range(KEPT, len(IDS) - 1):
            place, fed = torch.tensor([[step]]), IDS[None, step : step + 1]
            logits.append(copy(fed, position_ids=place, use_cache=True, **cache_argument(copy, cache)).logits[0])
    return cross_entropy(torch.cat(logits), IDS[KEPT + 1 :], reduction="none")


def compress_in_order(press, module, hidden_states, keys, values, attentions, kwargs):
    """`ScorerPress.compress`, with survivors in temporal order."""
    from kvpress.utils import compute_n_kept

    scores = press.score(module, hidden_states, keys, values, attentions, kwargs)
    kept = scores.topk(compute_n_kept(keys.shape[2], press.compression_ratio), dim=-1).indices.sort(dim=-1).values
    index = kept.unsqueeze(-1)
    return tuple(each.gather(2, index.expand(*kept.shape, each.shape[-1])) for each in (keys, values))
