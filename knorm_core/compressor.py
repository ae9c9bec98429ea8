"""The compressor: keep, per head, the keys of smallest L2 norm, in temporal order, with their values.

`l2_compress` is the method as its authors publish it (Devoto et al., EMNLP 2024, arXiv 2406.11430),
as one pure function over a cache. Every rule of it is a promise that `knorm_core.contract` checks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from knorm_core.cache import AnyCache, Pair, check_skip_layers, read_layers, take, with_layers
from knorm_core.counts import check_int, check_keep_ratio, kept_count
from knorm_core.policies.low_norm import LowNorm
from knorm_core.policy import key_scores
from knorm_core.selection import survivors


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
    scores = key_scores(LowNorm(), keys, torch.arange(length, device=keys.device))
    index = survivors(scores, kept_count(length, keep_ratio))
    return take(keys, index), take(values, index)
