"""Caches, and sequences of (key, value) pairs: reading their layers, picking from them, putting them back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from knorm_core.counts import check_int

if TYPE_CHECKING:
    from transformers import DynamicCache

#: Keys and values of one layer, each (batch, kv_heads, length, head_dim).
Pair = tuple[torch.Tensor, torch.Tensor]
AnyCache = TypeVar("AnyCache", "DynamicCache", "Sequence[Pair]")


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` (batch, kv_heads, kept) of ``tensor`` (batch, kv_heads, length, dim)."""
    if tensor.is_contiguous():  # copying whole rows is several times faster than gathering element by element
        heads, length = tensor.shape[:2].numel(), tensor.shape[2]
        start = torch.arange(0, heads * length, length, device=index.device).view(*tensor.shape[:2], 1)
        return tensor.view(heads * length, -1).index_select(0, (index + start).flatten()).view(*index.shape, -1)
    return tensor.gather(-2, index.unsqueeze(-1).expand(*index.shape, tensor.shape[-1]))


def read_layers(past_key_values: Any) -> list[Pair]:
    """The (key, value) pair of every layer, or a TypeError that says why there are none to prune."""
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer

    if isinstance(past_key_values, Cache):
        pairs = []
        for index, layer in enumerate(past_key_values.layers):
            if type(layer) is not DynamicLayer:
                raise TypeError(
                    f"past_key_values is a {type(past_key_values).__name__} whose layer {index} is a "
                    f"{type(layer).__name__}; only the growing layers of a DynamicCache can be pruned "
                    f"(not static, quantised or sliding-window ones)"
                )
            if layer.keys is None or layer.keys.numel() == 0:
                raise ValueError(f"past_key_values holds no keys in layer {index}: feed the model first")
            pairs.append((layer.keys, layer.values))
        return pairs
    if not isinstance(past_key_values, Sequence) or isinstance(past_key_values, str):
        raise TypeError(
            f"past_key_values is a {type(past_key_values).__name__}; give a transformers DynamicCache "
            f"or a sequence of (key, value) pairs"
        )
    return [_check_pair(index, pair) for index, pair in enumerate(past_key_values)]


def with_layers(past_key_values: AnyCache, pairs: list[Pair]) -> AnyCache:
    """A cache of the same kind as ``past_key_values`` that holds ``pairs``."""
    from transformers import Cache

    if not isinstance(past_key_values, Cache):
        return tuple(pairs) if isinstance(past_key_values, tuple) else pairs
    cache = copy.copy(past_key_values)
    cache.layers = [copy.copy(layer) for layer in past_key_values.layers]
    for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
        layer.keys, layer.values = keys, values
    return cache


def apply_compressor(compressor: Any, cache: DynamicCache, **arguments: Any) -> DynamicCache:
    """Run a compressor of any shape on ``cache``, and return the compressed cache.

    Args:
        compressor: takes a `DynamicCache` or a list of (key, value) pairs, and returns one, or None where it
            changes the one that it is given. What it is given is both: a cache that goes through as pairs.
        cache: of one text; what it holds is left as it is unless the compressor changes tensors themselves.
        arguments: of the compressor.

    Raises:
        TypeError: it returned neither.
    """
    given = copy.copy(cache)
    given.layers = [copy.copy(layer) for layer in cache.layers]
    kind: Any = type(cache)
    given.__class__ = _paired_cache(kind)
    returned = compressor(given, **arguments)
    return with_layers(cache, list(read_layers(given if returned is None else returned)))


@functools.cache
def _paired_cache(kind: Hashable) -> Any:
    """A subclass that can also be read and written as a list of (key, value) pairs, as in older transformers."""

    class PairedCache(kind):  # type: ignore[misc,valid-type]
        def __iter__(self) -> Iterator[Pair]:
            return iter([(layer.keys, layer.values) for layer in self.layers])

        def __len__(self) -> int:
            return len(self.layers)

        def __getitem__(self, layer: int) -> Pair:
            return self.layers[layer].keys, self.layers[layer].values

        def __setitem__(self, layer: int, pair: Pair) -> None:
            self.layers[layer].keys, self.layers[layer].values = pair

    return PairedCache


def check_skip_layers(skip_layers: Iterable[int], layers: int) -> frozenset[int]:
    """``skip_layers`` as a set of indices in 0 … layers-1, or an error that names the one that is not."""
    if isinstance(skip_layers, str) or not isinstance(skip_layers, Iterable) or getattr(skip_layers, "ndim", 1) == 0:
        raise TypeError(f"skip_layers={skip_layers!r} is not a collection of layer indices")
    skipped = frozenset(check_int("skip_layers", layer, 0) for layer in skip_layers)
    if skipped and max(skipped) >= layers:
        raise ValueError(f"skip_layers={sorted(skipped)!r} names layer {max(skipped)}, but there are {layers} layers")
    return skipped


def _check_pair(index: int, pair: Any) -> Pair:
    try:
        keys, values = pair
    except (TypeError, ValueError):
        raise TypeError(f"past_key_values[{index}] is not a (key, value) pair") from None
    if not (isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor)):
        raise TypeError(f"past_key_values[{index}] is not a pair of tensors")
    if not keys.is_floating_point():
        raise TypeError(f"past_key_values[{index}] holds keys of {keys.dtype}; give a floating dtype")
    if keys.ndim != 4 or keys.shape[:3] != values.shape[:3]:
        raise ValueError(
            f"past_key_values[{index}] has keys {tuple(keys.shape)} and values {tuple(values.shape)}; "
            f"both have to be (batch, kv_heads, length, head_dim)"
        )
    return keys, values
