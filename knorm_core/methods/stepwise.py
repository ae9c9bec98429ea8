"""The two-phase evaluation as it is defined: one token per forward, on a real cache. Slow, obviously right.

This is the oracle that `knorm_core.methods.onepass` is held against, and the method for compressors that are
not one of our policies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from knorm_core.cache import cache_argument, read_layers, take, with_layers
from knorm_core.counts import Eviction, kept_count
from knorm_core.methods.forward import copy_sharing_weights, private_copy, token_nll
from knorm_core.methods.probe import check_equal_lengths
from knorm_core.methods.rotation import rotary_frequencies, rotate
from knorm_core.selection import Protection, survivors
from knorm_core.setting import Setting

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
    from transformers import DynamicCache

    model = private_copy(model, attention) if attention else copy_sharing_weights(model)
    cache = DynamicCache(config=model.config) if setting.sliding else DynamicCache()
    frequencies = rotary_frequencies(model) if setting.positions == "rerotated" else None
    compress = _with_callable(setting.compressor, setting) if setting.compressor else _Policy(setting, frequencies)
    evictions: list[list[Eviction]] = [[] for _ in range(setting.layers)]
    losses = []
    for step in range(setting.seq_len - 1):
        due = step == setting.start if setting.when == "after_prefill" else step >= setting.start
        if due:
            before = _lengths(cache)
            cache = compress(cache, step)
            for layer, (old, new) in enumerate(zip(before, _lengths(cache), strict=True)):
                if new != old:
                    evictions[layer].append(Eviction(step, old, new))
            if attention is None:
                check_equal_lengths(model, _lengths(cache))
        position = _lengths(cache)[0] if setting.positions != "absolute" and step else step
        logits = model(
            input_ids=input_ids[None, step : step + 1],
            position_ids=torch.tensor([[position]], device=input_ids.device),
            use_cache=True,
            **cache_argument(model, cache),
        ).logits[0]
        if step + 1 >= setting.first_scored:
            losses.append(token_nll(logits, input_ids[step + 1 : step + 2]))
    return torch.cat(losses), tuple(map(tuple, evictions))


class _Policy:
    """Compression by one of our policies, which need to know the true position of every cached key.

    A key is scored once, as it was first cached: a policy's score never changes, and where survivors are
    rotated to new positions (``frequencies``), the last bit of their norm must not either.
    """

    def __init__(self, setting: Setting, frequencies: torch.Tensor | None = None) -> None:
        self.setting = setting
        self.frequencies = frequencies
        # layer -> (batch, kv_heads, length)
        self.positions: dict[int, torch.Tensor] = {}
        self.scores: dict[int, torch.Tensor] = {}
        self.fed_until = 0

    def __call__(self, cache: DynamicCache, step: int) -> DynamicCache:
        setting = self.setting
        left_alone = setting.skip_layers | setting.sliding.keys()
        full = {layer for layer in range(setting.layers) if layer not in left_alone}
        for layer in full:
            keys = cache.layers[layer].keys
            new = torch.arange(self.fed_until, step, device=keys.device).expand(*keys.shape[:2], -1)
            scores = setting.scores(layer, keys[:, :, keys.shape[2] - new.shape[-1] :], new)
            self.positions[layer] = torch.cat([self.positions.get(layer, new[..., :0]), new], dim=-1)
            self.scores[layer] = torch.cat([self.scores.get(layer, scores[..., :0]), scores], dim=-1)
        self.fed_until = step
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        compressed = [
            self._compress_layer(index, *pair, step) if index in full else pair for index, pair in enumerate(pairs)
        ]
        return with_layers(cache, compressed)

    def _compress_layer(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        setting, positions = self.setting, self.positions[layer]
        length = keys.shape[2]
        if length < setting.start:
            return keys, values
        kept = length - 1 if setting.keep_ratio is None else kept_count(length, setting.keep_ratio)
        if kept == length:
            return keys, values
        scores = self.scores[layer]
        index = survivors(scores, kept, Protection(recent=setting.window))
        self.positions[layer] = positions.gather(-1, index)
        self.scores[layer] = self.scores[layer].gather(-1, index)
        keys, values = take(keys, index), take(values, index)
        if self.frequencies is not None:
            # Since the last eviction a key's position has been its index in the cache; now it is again.
            keys = rotate(keys, torch.arange(kept, device=keys.device) - index, self.frequencies)
        return keys, values


def _with_callable(compressor: Callable[..., Any], setting: Setting) -> Callable[[Any, int], Any]:
    ratio = None if setting.keep_ratio is None else float(setting.keep_ratio)

    def compress(cache: Any, step: int) -> Any:
        compressed = compressor(
            cache, keep_ratio=ratio, prune_after=setting.start, skip_layers=sorted(setting.skip_layers)
        )
        read_layers(compressed)  # a clear error where it did not return a cache
        return compressed

    return compress


def _lengths(cache: DynamicCache) -> list[int]:
    return [layer.get_seq_length() for layer in cache.layers]
