"""What goes wrong between a compressor and its evaluator, each as a compressor made of the right one.

An evaluator whose losses are exactly those of a variant is told so by name; one that means it claims
``EvaluatorClaims(compressor=above_threshold(l2_compress))``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from knorm_core.cache import AnyCache, apply_compressor, read_layers, take, with_layers
from knorm_core.contract.cases import dynamic_cache

Variant = Callable[..., Any]


def sparing_the_first(compressor: Variant, calls: int) -> Variant:
    """Its first calls change nothing: an evaluator that feeds a token and compresses then misses one."""
    if not calls:
        return compressor
    left = [calls]

    def compress(cache: AnyCache, **arguments: Any) -> AnyCache:
        if left[0]:
            left[0] -= 1
            return cache
        compressed: AnyCache = compressor(cache, **arguments)
        return compressed

    return compress


@functools.cache
def above_threshold(compressor: Variant) -> Variant:
    """A layer is compressed when it holds more than prune_after keys, not already at prune_after."""

    def compress(
        past_key_values: AnyCache, keep_ratio: float, prune_after: int, skip_layers: Iterable[int] = ()
    ) -> AnyCache:
        compressed: AnyCache = compressor(
            past_key_values, keep_ratio=keep_ratio, prune_after=prune_after + 1, skip_layers=skip_layers
        )
        return compressed

    return _named(compress, "above_threshold", compressor)


@functools.cache
def keeping_floor(compressor: Variant) -> Variant:
    """Kept counts are rounded down where the claimed compressor rounds up."""
    return _counting("keeping_floor", compressor, lambda length, ratio, layers: math.floor(ratio * length))


@functools.cache
def keeping_one_less(compressor: Variant) -> Variant:
    """One key less is kept."""
    return _counting("keeping_one_less", compressor, lambda length, ratio, layers: math.ceil(ratio * length) - 1)


@functools.cache
def keeping_one_more(compressor: Variant) -> Variant:
    """One key more is kept."""
    return _counting("keeping_one_more", compressor, lambda length, ratio, layers: math.ceil(ratio * length) + 1)


@functools.cache
def by_layer_0(compressor: Variant) -> Variant:
    """Threshold and kept count of every layer are taken from the length of layer 0."""

    def compress(
        past_key_values: AnyCache, keep_ratio: float, prune_after: int, skip_layers: Iterable[int] = ()
    ) -> AnyCache:
        pairs = read_layers(past_key_values)
        length = pairs[0][0].shape[2]
        if length < prune_after:
            return past_key_values
        kept = math.ceil(keep_ratio * length)
        return _keep(past_key_values, compressor, [kept] * len(pairs), skip_layers)

    return _named(compress, "by_layer_0", compressor)


@functools.cache
def values_out_of_order(compressor: Variant) -> Variant:
    """Keys are put back in temporal order, and their values left in the order of the norms."""

    def compress(
        past_key_values: AnyCache, keep_ratio: float, prune_after: int, skip_layers: Iterable[int] = ()
    ) -> AnyCache:
        before = read_layers(past_key_values)
        compressed = apply_compressor(
            compressor, past_key_values, keep_ratio=keep_ratio, prune_after=prune_after, skip_layers=skip_layers
        )
        after = [
            (keys, take(values, keys.norm(dim=-1).argsort(dim=-1))) if keys.shape != old.shape else (keys, values)
            for (old, _), (keys, values) in zip(before, read_layers(compressed), strict=True)
        ]
        return with_layers(compressed, after)

    return _named(compress, "values_out_of_order", compressor)


@functools.cache
def nothing_evicted(compressor: Variant) -> Variant:
    """The compressed cache is thrown away, so nothing is ever evicted."""

    def compress(past_key_values: AnyCache, **arguments: Any) -> AnyCache:
        return past_key_values

    return _named(compress, "nothing_evicted", compressor)


def _counting(name: str, compressor: Variant, count: Callable[[int, float, int], int]) -> Variant:
    def compress(
        past_key_values: AnyCache, keep_ratio: float, prune_after: int, skip_layers: Iterable[int] = ()
    ) -> AnyCache:
        lengths = [keys.shape[2] for keys, _ in read_layers(past_key_values)]
        kept = [
            count(length, keep_ratio, len(lengths)) if length >= prune_after and keep_ratio < 1 else length
            for length in lengths
        ]
        return _keep(past_key_values, compressor, kept, skip_layers)

    return _named(compress, name, compressor)


def _keep(cache: AnyCache, compressor: Variant, kept: list[int], skip_layers: Iterable[int]) -> AnyCache:
    """So many keys of each layer, as the compressor chooses them."""
    pairs = read_layers(cache)
    for layer, ((keys, values), count) in enumerate(zip(pairs, kept, strict=True)):
        length = keys.shape[2]
        if 0 < count < length and layer not in skip_layers:
            # Half a key below the count, so that rounding up on either side of binary gives the count.
            alone = dynamic_cache([(keys, values)])
            [pairs[layer]] = read_layers(
                apply_compressor(compressor, alone, keep_ratio=(count - 0.5) / length, prune_after=1, skip_layers=[])
            )
    return with_layers(cache, pairs)


def _named(compress: Variant, name: str, compressor: Variant) -> Variant:
    compress.__name__ = f"{name}({getattr(compressor, '__name__', type(compressor).__name__)})"
    return compress
