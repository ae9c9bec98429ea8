"""The compressor: keep, per head, the keys of smallest L2 norm, in temporal order, with their values.

`l2_compress` is the method as its authors publish it (Devoto et al., EMNLP 2024, arXiv 2406.11430),
as one pure function over a cache. Every rule of it is a promise that `knorm_core.contract` checks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from knorm_core.counts import check_int, check_keep_ratio, kept_count
from knorm_core.policies import key_scores, survivors

if TYPE_CHECKING:
    from transformers import DynamicCache

Pair = tuple[torch.Tensor, torch.Tensor]
AnyCache = TypeVar("AnyCache", "DynamicCache", "Sequence[Pair]")


def l2_compress(
    past_key_values: AnyCache,
    keep_ratio: float = 1.0,
    prune_after: int = 2048,
    skip_layers: Iterable[int] = (),
) -> AnyCache:
    """Keep the ``kept_count(L, keep_ratio)`` keys of smallest norm in every layer of length L ≥ ``prune_after``.

    Per batch row and KV head. Norms are taken in at least float32 and rounded to 16 significant bits;
    equal ones keep the earlier position. Survivors stay in temporal order and every value stays with
    its key. Layers in ``skip_layers`` and shorter than ``prune_after`` come back as they are, and at
    ``keep_ratio == 1`` all of them do.

    >>> keys = torch.tensor([[3.0], [1.0], [2.0], [1.0]]).view(1, 1, 4, 1)
    >>> [(kept, _)] = l2_compress([(keys, keys)], keep_ratio=0.5, prune_after=4)
    >>> kept.flatten().tolist()
    [1.0, 1.0]

    Args:
        past_key_values: a `transformers.DynamicCache`, or a sequence of (key, value) pairs, one per
            layer, each shaped (batch, kv_heads, length, head_dim), of any floating dtype. It is not
            modified.
        keep_ratio: share of keys to keep, in (0, 1].
        prune_after: cache length from which a layer is compressed, at least 1.
        skip_layers: indices of layers to leave alone.

    Returns:
        A new cache of the same kind: a `DynamicCache`, or a list or tuple of pairs. Layers that were
        not compressed share their tensors with the input.

    Raises:
        TypeError: the cache is of a kind that cannot be pruned (static, quantised, sliding-window,
            not a cache at all).
        ValueError: a ratio, length or layer is out of range, or a key is NaN or infinite.
    """
    check_keep_ratio(keep_ratio)
    check_int("prune_after", prune_after, 1)
    pairs = read_layers(past_key_values)
    skipped = check_skip_layers(skip_layers, len(pairs))
    compressed = [
        pair if layer in skipped else _compress_layer(*pair, keep_ratio, prune_after)
        for layer, pair in enumerate(pairs)
    ]
    return with_layers(past_key_values, compressed)


def _compress_layer(keys: torch.Tensor, values: torch.Tensor, keep_ratio: float, prune_after: int) -> Pair:
    length = keys.shape[-2]
    if keep_ratio == 1 or length < prune_after:
        return keys, values
    scores = key_scores("low_norm", keys, torch.arange(length, device=keys.device))
    index = survivors(scores, kept_count(length, keep_ratio))
    return take(keys, index), take(values, index)


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` (batch, kv_heads, kept) of ``tensor`` (batch, kv_heads, length, dim)."""
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


def check_skip_layers(skip_layers: Iterable[int], layers: int) -> frozenset[int]:
    """``skip_layers`` as a set of indices in 0 … layers-1, or an error that names the one that is not."""
    if isinstance(skip_layers, str) or not isinstance(skip_layers, Iterable):
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
