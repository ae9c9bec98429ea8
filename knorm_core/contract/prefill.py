"""A prefill of a small model in which every layer's keys and values are the given ones: where presses run."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from knorm_core.methods.forward import cache_argument


def prefill_with(press: Any, cache: Any) -> None:
    """Run a press in a prefill of as many tokens as the cache has keys, and put what it leaves into the cache.

    Args:
        press: from kvpress; a context manager over a model.
        cache: a `DynamicCache` whose layers have keys and values of one shape.
    """
    from transformers import DynamicCache

    given = [(layer.keys, layer.values) for layer in cache.layers]
    keys = given[0][0]
    batch, heads, length, width = keys.shape
    model = _small_llama(len(given), heads, width, keys.dtype).to(keys.device)
    filled = DynamicCache()

    def plant(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = filled.layers[module.layer_idx]
        layer.keys, layer.values = given[module.layer_idx]

    layers = [layer.self_attn for layer in model.model.layers]
    hooks = [layer.register_forward_hook(plant, with_kwargs=True) for layer in layers]
    tokens = torch.arange(length, device=keys.device).remainder(model.config.vocab_size).expand(batch, -1)
    arguments: dict[str, Any] = cache_argument(model, filled) | {"use_cache": True}
    if "cache_position" in inspect.signature(model.forward).parameters:
        arguments["cache_position"] = torch.arange(length, device=keys.device)
    try:
        with torch.no_grad(), press(model):
            model(tokens, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, compressed in zip(cache.layers, filled.layers, strict=True):
        layer.keys, layer.values = compressed.keys, compressed.values


@functools.lru_cache(maxsize=32)
def _small_llama(layers: int, heads: int, head_dim: int, dtype: torch.dtype) -> Any:
    """A small Llama whose cache has this shape. Eager, for presses that read attention weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=heads * head_dim,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()
