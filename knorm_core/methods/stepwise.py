"""The two-phase evaluation as it is defined: one token per forward, on a real cache. Slow, obviously right.

This is the oracle that `knorm_core.methods.onepass` is held against, and the method for compressors that are
not one of our policies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from knorm_core.cache import Pair, apply_compressor, take, with_layers
from knorm_core.counts import Eviction
from knorm_core.methods.cached_attention import WATCHED
from knorm_core.methods.entered import noting
from knorm_core.methods.forward import copy_sharing_weights, feed_on_cache, private_copy, token_nll
from knorm_core.methods.replay import entered_parts, rotation_parts
from knorm_core.methods.rotation import Rotation, rotary_frequencies, rotate
from knorm_core.methods.watched import Watched, watching
from knorm_core.policy import Seen, check_no_nan, checked_scores, checked_state
from knorm_core.selection import survivors
from knorm_core.setting import Setting, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import DynamicCache

Evictions = tuple[tuple[Eviction, ...], ...]


@torch.inference_mode()
def run(
    model: nn.Module, input_ids: torch.Tensor, setting: Setting, attention: str | None
) -> tuple[torch.Tensor, Evictions]:
    """Feed the text token by token, compressing as the setting says.

    Args:
        model: a causal language model of transformers.
        input_ids: (n,), int64, on the model's device.
        setting: what to evaluate.
        attention: the attention implementation that `knorm_core.methods.probe.support` names; None for the
            model's own.

    Returns:
        The negative log-likelihood of every scored token, float64 (scored,), and per layer the
        evictions as they were read off the cache.

    Raises:
        UnsupportedModelError: the model's own attention would not be right after an eviction.
    """
    model = private_copy(model, attention) if attention else copy_sharing_weights(model)
    cache = _empty_cache(setting)
    watched: dict[int, Watched] = {}
    policy = None if setting.compressor else _Policy(setting, watched, model)
    looks_within = policy is not None and setting.policy.reads == "hidden_states"
    compress = policy.compress if policy else _with_callable(setting)
    evictions: list[list[Eviction]] = [[] for _ in range(setting.layers)]
    losses = []
    first = setting.start + setting.first_eviction_after
    for step in range(setting.seq_len - 1):
        if step == first if setting.when == "after_prefill" else step >= first:
            before = _lengths(cache)
            cache = compress(cache, step)
            for layer, (old, new) in enumerate(zip(before, _lengths(cache), strict=True)):
                if new != old:
                    evictions[layer].append(Eviction(step, old, new))
            if attention is None:
                check_equal_lengths(model, _lengths(cache))
        position = setting.first_position + (_lengths(cache)[0] if setting.positions != "absolute" and step else step)
        with watching(watched if attention == WATCHED else None), noting(model if looks_within else None):
            logits = feed_on_cache(model, input_ids[None, step : step + 1], position, cache)
        if policy:
            policy.fed(cache, step)
        if step + 1 >= setting.first_scored:
            losses.append(token_nll(logits, input_ids[step + 1 : step + 2]))
    return torch.cat(losses), tuple(map(tuple, evictions))


def check_equal_lengths(model: nn.Module, lengths: Sequence[Hashable]) -> None:
    """Refuse layers of unequal length: a model that makes its own masks uses the length of one layer for all."""
    if len(set(lengths)) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} makes its own masks, the same for all layers, so all of them have to be "
            f"compressed alike: skip_layers, ratios or budgets by layer, sliding windows and compressors that leave a "
            f"layer out do not go with it"
        )


def _empty_cache(setting: Setting) -> DynamicCache:
    """A cache with the windows that were seen in the model, which may not be those of its configuration."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache()
    windows = [setting.sliding.get(layer) for layer in range(setting.layers)]
    cache.layers = [
        DynamicSlidingWindowLayer(sliding_window=window) if window else DynamicLayer() for window in windows
    ]
    return cache


class _Policy:
    """Compression by a policy, which needs to know the true position of every cached key.

    A policy that reads "key" scores a key once, as it was first cached: where survivors are rotated to new
    positions, the last bit of a norm must not change who goes.
    """

    def __init__(self, setting: Setting, watched: Mapping[int, Watched], model: nn.Module) -> None:
        self.setting, self.watched = setting, watched
        self.rotates = setting.positions == "rerotated"
        self.rotation = None
        if self.rotates or setting.policy.unrotates:
            frequencies = rotary_frequencies(model)
            self.rotation = Rotation(frequencies, setting.fed_positions().to(frequencies.device))
        left_alone = setting.skip_layers | setting.sliding.keys()
        self.layers = [layer for layer in range(setting.layers) if layer not in left_alone]
        # layer -> (1, kv_heads, length)
        self.positions: dict[int, torch.Tensor] = {}
        self.scores: dict[int, torch.Tensor] = {}
        self.states: dict[int, torch.Tensor] = {}

    def fed(self, cache: DynamicCache, step: int) -> None:
        """Note token ``step``, just fed: where it stands, what it observed."""
        for layer in self.layers:
            keys = cache.layers[layer].keys
            new = torch.full((*keys.shape[:2], 1), step, device=keys.device)
            self.positions[layer] = _longer(self.positions.get(layer), new)
            if self.setting.policy.observes:
                none = torch.zeros(new.shape, dtype=torch.promote_types(keys.dtype, torch.float32), device=keys.device)
                state = _longer(self.states.get(layer), none)
                seen = self._seen(cache, layer, step + 1)
                self.states[layer] = checked_state(self.setting.policy, state, seen)

    def compress(self, cache: DynamicCache, step: int) -> DynamicCache:
        """The cache as it is when token ``step`` comes."""
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        for layer in self.layers:
            kept = self.setting.kept(layer, pairs[layer][0].shape[2])
            if kept < pairs[layer][0].shape[2]:
                pairs[layer] = self._evict(cache, layer, step, kept)
        return with_layers(cache, pairs)

    def _evict(self, cache: DynamicCache, layer: int, step: int, kept: int) -> Pair:
        keys, values = cache.layers[layer].keys, cache.layers[layer].values
        scores = (
            self._key_scores(layer, keys)
            if self.setting.policy.reads == "key"
            else self._score(cache, layer, step, kept)
        )
        index = survivors(scores, kept, self.setting.protection)
        index = index.expand(*keys.shape[:2], -1)
        for each in (self.positions, self.scores, self.states):
            if layer in each:
                each[layer] = each[layer].gather(-1, index)
        keys, values = take(keys, index), take(values, index)
        if self.rotates and self.rotation is not None:
            # Since the last eviction a key's position has been its index in the cache; now it is again.
            keys = rotate(keys, torch.arange(kept, device=keys.device) - index, self.rotation.frequencies)
        return keys, values

    def _key_scores(self, layer: int, keys: torch.Tensor) -> torch.Tensor:
        scored = self.scores[layer].shape[-1] if layer in self.scores else 0
        new = self.setting.scores(layer, keys[:, :, scored:], self.positions[layer][..., scored:])
        self.scores[layer] = _longer(self.scores.get(layer), new)
        return self.scores[layer]

    def _score(self, cache: DynamicCache, layer: int, step: int, kept: int) -> torch.Tensor:
        keys = cache.layers[layer].keys
        seen = self._seen(cache, layer, step, kept)
        scores = checked_scores(self.setting.policy, seen, tuple(keys.shape[:3]), keys.device)
        check_no_nan(self.setting.policy, scores, layer)
        return scores

    def _seen(self, cache: DynamicCache, layer: int, fed: int, kept: int | None = None) -> Seen:
        """What a policy sees at an eviction; where nothing is ``kept``, what it observes."""
        keys, values = cache.layers[layer].keys, cache.layers[layer].values
        positions, policy = self.positions[layer], self.setting.policy
        parts = {"fed": fed, "keys": keys, "values": values, "positions": positions}
        made: dict[str, Callable[[], Any]] = {name: partial(_same, part) for name, part in parts.items()}
        if layer in self.watched:
            watched, window = self.watched[layer], policy.query_window
            made["queries"] = partial(watched.queries, window)
            made["query_attention"] = partial(watched.query_attention, window, keys, values, positions)
            made["scale"] = lambda: watched.scale
            if self.rotation is not None:
                first = 0 if window is None else max(0, fed - window)
                made |= rotation_parts(self.rotation, fed, made["queries"], first)
            if policy.reads == "hidden_states":
                made |= entered_parts(watched.entered(window))
        if kept is None:
            return Seen(policy, layer, {**made, "received": lambda: watched.latest.unsqueeze(3)})
        state = self.states.get(layer)
        made["kept"] = lambda: kept
        made["state"] = lambda: torch.zeros_like(keys[..., 0]) if state is None else state
        return Seen(policy, layer, {**made, "attention": lambda: watched.latest})


def _same(part: Any) -> Any:
    return part


def _longer(before: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return new if before is None else torch.cat([before, new], dim=-1)


def _with_callable(setting: Setting) -> Callable[[Any, int], Any]:
    [ratio] = set(setting.keep_ratio or ())
    arguments = {"keep_ratio": float(ratio), "prune_after": setting.start, "skip_layers": sorted(setting.skip_layers)}
    return lambda cache, step: apply_compressor(setting.compressor, cache, **arguments)


def _lengths(cache: DynamicCache) -> list[int]:
    return [layer.get_seq_length() for layer in cache.layers]
