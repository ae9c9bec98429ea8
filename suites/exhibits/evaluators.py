"""Broken evaluators. `walk` is the sound evaluation, token by token; each exhibit changes one thing in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from knorm_core import effective_prune_after, evaluate, l2_compress
from knorm_core.contract import EvaluatorClaims, as_evaluator
from knorm_core.contract.evaluators import knorm_onepass
from knorm_core.methods.forward import private_copy
from suites.exhibits.exhibit import Exhibit, collector

EXHIBITS: list[Exhibit] = []
exhibit = collector(EXHIBITS, wrap=as_evaluator, sound=knorm_onepass)
REPORT = "a report on Pythia-70M whose numbers did not add up"
Losses = list[torch.Tensor]


@torch.no_grad()
def walk(
    model: Any,
    ids: torch.Tensor,
    start: int,
    compress: Callable[[DynamicCache, int], DynamicCache],
    *,
    positions: Callable[[int, DynamicCache], int | None] = lambda step, cache: step,
    target: int = 1,
    scored_from: int | None = None,
    cache: DynamicCache | None = None,
) -> Losses:
    """Feed token by token; from token ``start`` on compress before each, and score the one after it."""
    cache = DynamicCache() if cache is None else cache
    first = start if scored_from is None else scored_from
    losses = []
    for step in range(len(ids) - 1):
        if step >= start:
            cache = compress(cache, step)
        position = positions(step, cache)
        logits = model(
            ids[None, step : step + 1],
            past_key_values=cache,
            position_ids=None if position is None else torch.tensor([[position]]),
        ).logits[0, -1]
        if step >= first:
            losses.append(-logits.log_softmax(-1)[ids[step + target]])
    return losses


def low_norm(keep_ratio: float, prune_after: int) -> Callable[[DynamicCache, int], DynamicCache]:
    return lambda cache, step: l2_compress(cache, keep_ratio, prune_after)


@exhibit("evicts_while_scoring", REPORT + ": prune_after=512 with max_eval_tokens=512, whose cache tops out at 511")
def threshold_out_of_reach(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The threshold is cut to the length of the text, but the cache never gets there: the last token is not fed."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, min(prune_after, len(ids))))


@exhibit("evicts_while_scoring", REPORT + ": samples of 150 to 223 tokens, prune_after 256 or 512")
def samples_too_short(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """prune_after is taken as given, and short samples are scored uncompressed."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, max(prune_after, 50)))


@exhibit("evicts_while_scoring", "l2_compress returns a new cache; code that was written for one in place drops it")
def result_dropped(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The compressed cache is computed and thrown away."""
    start = effective_prune_after(len(ids), prune_after)

    def compress(cache: DynamicCache, step: int) -> DynamicCache:
        l2_compress(cache, keep_ratio, start)
        return cache

    return walk(private_copy(model, "sdpa"), ids, start, compress)


@exhibit("scores_exactly_the_promised_tokens", REPORT + ": scored from token 0, so that uncompressed loss is mixed in")
def prefill_scored(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """Phase 1 is scored too, and dilutes whatever phase 2 loses."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start), scored_from=0)


@exhibit("scores_exactly_the_promised_tokens", "range(start, n - 2)")
def last_token_dropped(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The last token is never scored."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start))[:-1]


@exhibit("scores_exactly_the_promised_tokens", "model(labels=…).loss, a mean; means of unequal texts do not average")
def mean_loss(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> torch.Tensor:
    """A mean is returned in place of losses per token."""
    start = effective_prune_after(len(ids), prune_after)
    return torch.stack(walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start))).mean()


@exhibit("ratio_one_is_the_plain_loss", "labels shifted by the caller and by the model")
def scored_off_by_one(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """Each token is scored by the logits of its own position, which have seen it."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start), target=0)


@exhibit("positions_do_not_drift", "transformers' default; kvpress issue 16; 'RoPE offset' fixes in MLX")
def position_drift(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """No positions are passed, so transformers takes the length of layer 0's cache, which has shrunk."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(
        private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start), positions=lambda step, cache: None
    )


@exhibit("positions_do_not_drift", "a fix for drift that counts evicted tokens, and evictions, one too few")
def position_one_off(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """After the first eviction positions run one behind."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(
        private_copy(model, "sdpa"),
        ids,
        start,
        low_norm(keep_ratio, start),
        positions=lambda step, cache: step - (keep_ratio < 1 and step >= start),
    )


@exhibit("goes_on_evicting", "kvpress compresses the prefill only; a loop around it never compresses again")
def evicts_once(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """One eviction, at the threshold, and then never again."""
    start = effective_prune_after(len(ids), prune_after)
    compress = low_norm(keep_ratio, start)
    return walk(
        private_copy(model, "sdpa"),
        ids,
        start,
        lambda cache, step: compress(cache, step) if step == start else cache,
    )


@exhibit("goes_on_evicting", "a length counted in tokens of text, not in keys of the cache")
def evicts_at_every_token(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The threshold is compared with the text's length: once reached, every token halves the cache."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start // 2 + 1))


@exhibit("never_sees_the_future", "prefill the text, compress, then score: survivors chosen with hindsight")
def hindsight(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """A whole text decides which tokens of its beginning survive."""
    start = effective_prune_after(len(ids), prune_after)
    model = private_copy(model, "sdpa")
    whole = DynamicCache()
    with torch.no_grad():
        model(ids[None], past_key_values=whole)

    def compress(cache: DynamicCache, step: int) -> DynamicCache:
        if cache.get_seq_length() < start or keep_ratio == 1:
            return cache
        for layer, mine in zip(whole.layers, cache.layers, strict=True):
            bound = layer.keys.norm(dim=-1, keepdim=True).median()
            mine.values = torch.where(mine.keys.norm(dim=-1, keepdim=True) <= bound, mine.values, 0)
        return l2_compress(cache, keep_ratio, start)

    return walk(model, ids, start, compress)


@exhibit("keeping_everything_is_a_no_op", "max(1, …) evicted keys, so that 'something happens'")
def evicts_at_least_one(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """Whenever it is asked to compress it evicts at least one key."""
    start = effective_prune_after(len(ids), prune_after)

    def compress(cache: DynamicCache, step: int) -> DynamicCache:
        length = cache.get_seq_length()
        compressed = l2_compress(cache, keep_ratio, start)
        if keep_ratio < 1 and length >= start and compressed.get_seq_length() == length:
            for layer in compressed.layers:
                layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        return compressed

    return walk(private_copy(model, "sdpa"), ids, start, compress)


_SHARED: list[DynamicCache] = [DynamicCache()]


@exhibit("two_runs_agree", "a mutable default argument, or a cache kept on the model")
def cache_outlives_the_run(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The cache of one evaluation is where the next one starts."""
    start = effective_prune_after(len(ids), prune_after)

    def compress(cache: DynamicCache, step: int) -> DynamicCache:
        _SHARED[0] = l2_compress(cache, keep_ratio, start)
        return _SHARED[0]

    return walk(private_copy(model, "sdpa"), ids, start, compress, cache=_SHARED[0])


@exhibit("dropout_is_off", "a model fresh from fine-tuning")
def forgets_eval(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """eval() is forgotten: dropout during evaluation."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa").train(model.training), ids, start, low_norm(keep_ratio, start))


@exhibit("model_is_left_as_it_was", "model.eval() at the top of every evaluation script")
def leaves_eval_on(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The caller's model is left in evaluation mode."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(model.eval(), ids, start, low_norm(keep_ratio, start))


@exhibit("model_is_left_as_it_was", "a hook or attention function removed at the end, without try/finally")
def restores_only_on_success(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """Training mode and hooks are restored at the end, which an exception never reaches."""
    start = effective_prune_after(len(ids), prune_after)
    was_training = model.training
    hook = model.register_forward_pre_hook(lambda module, args: None)
    losses = walk(model.eval(), ids, start, low_norm(keep_ratio, start))
    hook.remove()
    model.train(was_training)
    return losses


@exhibit("deaf_models_are_refused", "BLOOM and MPT accept position_ids and ignore them")
def trusts_the_model(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """Absolute positions are passed, and nobody looks whether the model heard them."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start))


SKIP_LAYER_0 = EvaluatorClaims(skip_layers=(0,))


def skips_layer_0(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> torch.Tensor:
    """Sound: layer 0 is left uncompressed."""
    return evaluate(model, ids, keep_ratio=keep_ratio, prune_after=prune_after, skip_layers=(0,)).nll


def _slicing_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **others: Any
) -> tuple[torch.Tensor, None]:
    """Attention as transformers 4 had it: a mask that is too long for this layer is cut to its length."""
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[-2]]
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **others)


@exhibit(
    "layers_may_differ_in_length",
    "transformers makes one mask, for layer 0; 4.x cut it to each layer's length, 5.x raises",
    sound=skips_layer_0,
    wrap=functools.partial(as_evaluator, claims=SKIP_LAYER_0),
)
@torch.no_grad()
def feeds_blocks(model: Any, ids: Any, keep_ratio: float, prune_after: int, block: int = 4) -> Losses:
    """Between evictions tokens are fed in blocks: in the shorter layers each sees the rest of its block."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("faults_slicing", _slicing_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("faults_slicing", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    start = effective_prune_after(len(ids), prune_after)
    model = private_copy(model, "faults_slicing")
    cache, losses = DynamicCache(), []
    feeds = [(0, start), *((i, min(i + block, len(ids) - 1)) for i in range(start, len(ids) - 1, block))]
    for first, last in feeds:
        if first >= start:
            cache = l2_compress(cache, keep_ratio, start, skip_layers=(0,))
        logits = model(
            ids[None, first:last], past_key_values=cache, position_ids=torch.arange(first, last)[None]
        ).logits[0]
        if first >= start:
            losses += [-row.log_softmax(-1)[token] for row, token in zip(logits, ids[first + 1 :], strict=False)]
    return losses
