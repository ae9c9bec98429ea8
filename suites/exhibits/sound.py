"""What the broken compressors are made of: all of it is right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from knorm_core import kept_count
from knorm_core.cache import take
from knorm_core.policies import LowNorm
from knorm_core.policy import key_scores
from knorm_core.selection import survivors


def each_layer(
    compress: Callable[[Any, Any, int], Any], count: Callable[[int, float], int] = kept_count
) -> Callable[..., Any]:
    """The frame that most exhibits share, of which everything is right.

    Args:
        compress: ``compress(keys, values, kept)`` returns the (keys, values) of one layer that survive.
        count: ``count(length, keep_ratio)`` is how many of a layer are kept.
    """

    def compressor(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        kept_count(1, keep_ratio)  # raises for a senseless ratio
        layers = []
        for layer, (keys, values) in enumerate(past):
            length = keys.shape[2]
            if layer in skip_layers or length < prune_after or keep_ratio == 1:
                layers.append((keys, values))
            else:
                layers.append(compress(keys, values, count(length, keep_ratio)))
        return layers

    functools.update_wrapper(compressor, compress)
    del compressor.__wrapped__  # its arguments are its own
    return compressor


def lowest(keys: Any, values: Any, kept: int) -> Any:
    return keep(keys, values, survivors(scores(keys), kept))


def keep(keys: Any, values: Any, index: Any) -> Any:
    return take(keys, index), take(values, index)


def scores(keys: Any) -> Any:
    """Of every key; the highest stay."""
    return key_scores(LowNorm(), keys, torch.arange(keys.shape[2]))
