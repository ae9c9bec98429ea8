"""Compressors that cannot be given what every compressor is given. Each is right within its limit."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core import kept_count, l2_compress
from knorm_core.contract import as_compressor
from suites.exhibits.exhibit import Exhibit, collector

EXHIBITS: list[Exhibit] = []
exhibit = collector(EXHIBITS, wrap=as_compressor, sound=l2_compress)


@exhibit("takes_prune_after_and_skip_layers", "a compressor of prefills, such as a kvpress press, has neither")
def no_threshold(past: Any, keep_ratio: float) -> Any:
    """The function has a keep ratio and nothing else."""
    return l2_compress(past, keep_ratio, prune_after=1)


@exhibit("returns_a_cache", "SnapKV and its kin: repeat_kv before the cache, and never back")
def repeated_heads(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """KV heads come back as query heads: compressed to a half, and doubled."""
    compressed = l2_compress(past, keep_ratio, prune_after, skip_layers)
    return [(keys.repeat_interleave(2, dim=1), values.repeat_interleave(2, dim=1)) for keys, values in compressed]


@exhibit("keeps_as_few_as_asked", "SnapKV: assert max_capacity_prompt - window_size > 0")
def needs_a_window(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """A window of four keys is asserted to fit, whatever the ratio asks for."""
    for keys, _ in past:
        if 0 < keep_ratio < 1 and kept_count(keys.shape[2], keep_ratio) <= 4:
            raise AssertionError
    return l2_compress(past, keep_ratio, prune_after, skip_layers)


@exhibit("takes_several_rows", "cold-compress and H2O: view(1, …), squeeze()")
def one_row_only(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """Keys are taken for those of a single row."""
    for keys, _ in past:
        keys.view(1, keys.shape[1], *keys.shape[2:])
    return l2_compress(past, keep_ratio, prune_after, skip_layers)


@exhibit("takes_a_single_head", "squeeze() on scores of (1, heads, length), then len() of the result's heads")
def several_heads_only(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """squeeze() takes the axis of heads with it when there is only one."""
    for keys, _ in past:
        keys.norm(dim=-1).squeeze(1).transpose(1, 2)
    return l2_compress(past, keep_ratio, prune_after, skip_layers)


@exhibit("takes_every_float_dtype", "SnapKV: torch.full(…, torch.finfo(float64).min) makes a float32 mask")
def mask_in_float32(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """A mask of float32 is filled with the lowest number of the keys' dtype."""
    for keys, _ in past:
        torch.full((1,), torch.finfo(keys.dtype).min, dtype=torch.float32)
    return l2_compress(past, keep_ratio, prune_after, skip_layers)


@exhibit("takes_layers_of_any_length", "torch.stack over layers, to do them all at once")
def stacked_layers(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """Layers are stacked, which works as long as none of them is skipped."""
    torch.stack([keys for keys, _ in past])
    return l2_compress(past, keep_ratio, prune_after, skip_layers)
