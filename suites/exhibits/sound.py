"""What the broken compressors are made of: all of it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from knorm_core import kept_count
from knorm_core.cache import take
from knorm_core.policies import key_scores


def each_layer(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any, compress: Callable[..., Any]) -> Any:
    """The frame that most exhibits share: everything is right except, maybe, ``compress(keys, values, kept)``."""
    kept_count(1, keep_ratio)  # raises for a senseless ratio
    layers = []
    for layer, (keys, values) in enumerate(past):
        length = keys.shape[2]
        if layer in skip_layers or length < prune_after or keep_ratio == 1:
            layers.append((keys, values))
        else:
            layers.append(compress(keys, values, kept_count(length, keep_ratio)))
    return layers


def keep(keys: Any, values: Any, index: Any) -> Any:
    return take(keys, index), take(values, index)


def scores(keys: Any) -> Any:
    return key_scores("low_norm", keys, torch.arange(keys.shape[2]))
