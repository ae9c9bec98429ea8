"""For each public implementation, the few lines that make it a compressor or evaluator.

What scores with queries is given the keys as queries, and attention weights are those of keys on keys: what a
check compares is then decided by the cache alone, row by row and head by head.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache

from knorm_core.contract import EvaluatorClaims, as_compressor, as_evaluator, each_layer, for_budget, kvpress_count
from knorm_core.contract.adapters import UNGATED
from knorm_core.contract.cases import layers_of

BY_NORM = replace(UNGATED, key_norm=True, refuses_ratio=True, refuses_nan=True)


def cluster(make: Callable[[int], Any]) -> Any:
    """``update_kv(keys, queries, values, mask, groups)`` of an object made for a budget, layer by layer."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        return make(kept).update_kv(keys, keys, values, None, 1)

    return each_layer(compress)


def attention(keys: torch.Tensor) -> torch.Tensor:
    """Causal attention weights of keys on keys: (batch, heads, length, length)."""
    scores = keys @ keys.transpose(2, 3) / keys.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(dim=-1)


def streaming(module: ModuleType) -> Any:
    """The cache of streaming-llm with half of the budget for the start."""

    def make(kept: int) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return module.StartRecentKVCache(start_size=kept // 2, recent_size=kept - kept // 2)

    return for_budget(make)


def heavy_hitters(module: ModuleType) -> Any:
    """H2O's cache of a layer, half of the budget for heavy hitters."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            cache = module.H2OKVCache_LayerWise(hh_size=kept // 2, recent_size=kept - kept // 2)
        return cache((keys, values), attention(keys))

    return each_layer(compress)


def tova(module: ModuleType) -> Any:
    """TOVA's cache, whose reduce() is called after the last token has been fed."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        cache = module.TOVACache(kept)
        cache.key_cache, cache.value_cache = [keys], [values]
        cache.reduce(0, attention(keys))
        return cache.key_cache[0], cache.value_cache[0]

    return each_layer(compress)


def key_norm_cache(module: ModuleType) -> Any:
    """The key-norm cache of Q-Filters without a window: update() compresses what it is given."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        cache = object.__new__(module.KNormCache)  # its base wants other arguments since transformers 5
        cache.key_cache, cache.value_cache = [keys[:, :, :-1]], [values[:, :, :-1]]
        cache.max_length, cache.window_length = kept, 0
        return cache.update(keys[:, :, -1:], values[:, :, -1:], 0)

    return each_layer(compress, claims=BY_NORM)


def sinks_and_window(module: ModuleType) -> Any:
    """The cache of attention_sinks with half of the budget for the sinks."""
    return for_budget(lambda kept: module.AttentionSinkKVCache(kept // 2, kept - kept // 2))


def key_norm_by_lag(module: ModuleType) -> Any:
    """LagKV's key-norm cache: two sinks, windows of four, of which a share stays once the next one is full."""

    def compress(past_key_values: Any, keep_ratio: float) -> Any:
        made = object.__new__(module.L2KV)  # its base wants other arguments since transformers 5
        made.key_cache, made.value_cache, made._compressed_len, made._seen_tokens = [], [], [], 0
        made.ratio, made.sink_size, made.lag_size, made.skip_layer_idx = keep_ratio, 2, 4, []
        made.score_v_ratio, made.use_low_norm, made.use_then_compress = 0.0, True, True
        for layer, (keys, values) in enumerate(past_key_values):
            made.update(keys, values, layer)
        return list(zip(made.key_cache, made.value_cache, strict=True))

    return as_compressor(compress, replace(UNGATED, count=None))


def redundancy(module: ModuleType) -> Any:
    """R-KV's scores of attention and redundancy, with a window of two."""
    return each_layer(lambda keys, values, kept: module.R1KV(budget=kept, window_size=2).update_kv(keys, keys, values))


def cake_decoding(module: ModuleType) -> Any:
    """CAKE's eviction while tokens are fed, with a window of two."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        cache = SimpleNamespace(key_cache=[keys], value_cache=[values])
        module.CakeDecodingKVCache_LayerWise(hh_size=kept - 2, window_size=2)(cache, attention(keys), 0)
        return cache.key_cache[0], cache.value_cache[0]

    return each_layer(compress)


def grouped_snapkv(module: ModuleType) -> Any:
    """AdaKV's SnapKV for two query heads to a KV head, which are cached as query heads."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        made = module.SnapKVCluster(window_size=2, max_capacity_prompt=kept, num_key_value_groups=2)
        return made.update_kv(keys, keys.repeat_interleave(2, dim=1), values)

    return each_layer(compress)


def fed_token_by_token(name: str) -> Callable[[ModuleType], Any]:
    """A cache of keys_values, filled at once and then fed token by token."""

    def adapt(module: ModuleType) -> Any:
        def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
            batch, heads, length, width = keys.shape
            sizes = {"n_layer": 1, "n_head": heads, "n_query_groups": heads, "head_size": width}
            config = module.Config(**sizes, n_embd=heads * width, block_size=length, padded_vocab_size=64)
            cache = getattr(module, name).from_config(config, batch, kept, 0, dtype=keys.dtype)
            tokens = torch.zeros(batch, length, dtype=torch.long)
            for start, end in [(0, kept), *((token, token + 1) for token in range(kept, length))]:
                new = keys[:, :, start:end]
                cache(new, new, values[:, :, start:end], tokens[:, start:end])
            stored = cache.get_keys_values()
            return stored.keys(), stored.values()

        return each_layer(compress)

    return adapt


def cold_compress(module: ModuleType) -> Any:
    """cold-compress's cache of a layer: filled with the first tokens, then fed the others one by one."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        batch, heads, length, width = keys.shape
        cache = module.KVCacheL2(
            batch, heads, width, keys.dtype,
            max_cache_length=kept, max_seq_length=length, cache_bits=None, global_tokens=0, recent_window=0,
        )  # fmt: skip
        first = torch.arange(kept)
        cache.update_kv(first, keys[:, :, :kept], values[:, :, :kept], is_prefill=True)
        cache.update_state(first, keys[:, :, :kept], values[:, :, :kept], is_prefill=True, attn=None)
        for token in range(kept, length):
            position = torch.tensor([token])
            cache.update_kv(position, keys[:, :, token : token + 1], values[:, :, token : token + 1], is_prefill=False)
        return cache.k_cache, cache.v_cache

    return each_layer(compress, claims=BY_NORM)


def prompt_compressor_of_a_layer(module: ModuleType) -> Callable[..., Any]:
    """cold-compress's compressor of the prompt, without its protected tokens, as a function of one layer."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        made = module.PromptCompressorL2(True, max_cache_length=kept, global_tokens=0, recent_window=0)
        _, keys, values, _ = made(torch.arange(keys.shape[2]), keys, values)
        return keys, values

    return compress


def prompt_compressor(module: ModuleType) -> Any:
    """The same, held to what key norms promise."""
    return each_layer(prompt_compressor_of_a_layer(module), claims=BY_NORM)


def press(module: ModuleType) -> Any:
    """``compress`` of kvpress's KnormPress, which needs no model."""

    def compress(past_key_values: Any, keep_ratio: float) -> Any:
        made = module.KnormPress(compression_ratio=1 - keep_ratio)
        return [
            made.compress(SimpleNamespace(head_dim=keys.shape[-1]), None, keys, values, None, {})
            for keys, values in past_key_values
        ]

    claims = replace(BY_NORM, count=kvpress_count)
    return as_compressor(compress, claims)


def two_phases(module: ModuleType) -> Any:
    """The report's loop, its losses caught where it computes them; transformers 5 has no to_legacy_cache."""

    def losses(model: Any, input_ids: torch.Tensor, keep_ratio: float, prune_after: int) -> list[torch.Tensor]:
        caught = []

        def cross_entropy(logits: torch.Tensor, target: torch.Tensor, reduction: str) -> torch.Tensor:
            caught.append(torch.nn.functional.cross_entropy(logits, target, reduction=reduction))
            return caught[-1]

        functional = SimpleNamespace(functional=SimpleNamespace(cross_entropy=cross_entropy))
        module.torch = SimpleNamespace(**vars(torch) | {"nn": functional})
        tokenizer = SimpleNamespace(encode=lambda text, return_tensors: input_ids[None])
        DynamicCache.to_legacy_cache = lambda cache: tuple(layers_of(cache))
        try:
            module.calculate_ppl_with_method(
                model, tokenizer, "", keep_ratio, "knorm", prune_after, device=input_ids.device
            )
        finally:
            del DynamicCache.to_legacy_cache
            module.torch = torch
        return caught

    return as_evaluator(losses, EvaluatorClaims(skip_layers=(0,)))
