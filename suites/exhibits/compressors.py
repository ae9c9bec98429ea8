"""Compressors that break what every compressor promises. Each is right but for one fault."""

from __future__ import annotations

import math
from typing import Any

import torch

from knorm_core import l2_compress
from knorm_core.cache import take
from knorm_core.contract import as_compressor, on_dynamic_cache
from knorm_core.selection import survivors
from suites.exhibits.exhibit import Exhibit, collector
from suites.exhibits.sound import each_layer, keep, lowest, scores

EXHIBITS: list[Exhibit] = []
exhibit = collector(EXHIBITS, wrap=as_compressor, sound=l2_compress)
layer_exhibit = collector(EXHIBITS, wrap=as_compressor, sound=l2_compress, frame=each_layer)


@exhibit("keeps_the_declared_count", "the paper's own script: ceil(keep_ratio * length) in binary floating point")
def binary_count(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """ceil(0.55 * 100) is 56 in binary floating point, because 0.55 is a little more than 0.55."""
    compress = each_layer(lowest, count=lambda length, ratio: math.ceil(ratio * length))
    return compress(past, keep_ratio, prune_after, skip_layers)


@exhibit("keeps_the_declared_count", "int() in place of ceil(): what kvpress does, there with a floor of 1")
def floor_count(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """int() rounds down: one key too few, and none at all where keep_ratio * length is below 1."""
    compress = each_layer(lowest, count=lambda length, ratio: int(ratio * length))
    return compress(past, keep_ratio, prune_after, skip_layers)


@layer_exhibit(
    "keeps_the_declared_count",
    "keep ratio and compression ratio are each other's complement; tools differ in which they take",
)
def complement(keys: Any, values: Any, kept: int) -> Any:
    """A compression ratio is taken for a keep ratio: 0.9 keeps a tenth."""
    return keep(keys, values, survivors(scores(keys), keys.shape[2] - kept))


@layer_exhibit("takes_short_layers", "the paper's own script: token_norms.squeeze(-1)")
def squeezed(keys: Any, values: Any, kept: int) -> Any:
    """The norms are squeezed once too often: a layer of one token loses its token axis."""
    return keep(keys, values, survivors(scores(keys).squeeze(-1), kept))


@layer_exhibit("keeps_temporal_order", "kvpress issue 173; the paper's own script")
def norm_order(keys: Any, values: Any, kept: int) -> Any:
    """Survivors come back sorted by norm: attention does not mind, whatever reads positions off the cache does."""
    return keep(keys, values, scores(keys).argsort(dim=-1, descending=True, stable=True)[..., :kept])


@layer_exhibit("values_stay_with_their_keys", "two gathers, the second with the index of the first line")
def wrong_value_index(keys: Any, values: Any, kept: int) -> Any:
    """Keys are put back into temporal order, values are still in the order of the sort."""
    index = scores(keys).argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return take(keys, index.sort(dim=-1).values), take(values, index)


@layer_exhibit("values_stay_with_their_keys", "index_select takes one index for all heads; keys were gathered per head")
def values_of_head_0(keys: Any, values: Any, kept: int) -> Any:
    """Keys per head, values for all heads by the choice of head 0."""
    index = survivors(scores(keys), kept)
    return take(keys, index), values.index_select(2, index[0, 0])


@layer_exhibit("values_may_be_wider_or_narrower", "the paper's own script expands one index to the keys' width")
def key_width_for_values(keys: Any, values: Any, kept: int) -> Any:
    """One index, expanded to the keys' width, gathers both: wider values are cut without a word."""
    index = survivors(scores(keys), kept).unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
    return keys.gather(2, index), values.gather(2, index)


@exhibit("fires_from_the_threshold_on", "a length that tops out exactly at prune_after never gets there")
def strictly_above(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """> in place of >=: a layer of exactly prune_after keys is let be."""
    return l2_compress(past, keep_ratio, prune_after + 1, skip_layers)


@exhibit("fires_from_the_threshold_on", "(batch, heads, length, head_dim) read as (batch, length, heads, head_dim)")
def never_fires(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """The threshold is compared with the number of heads, so the compressor never fires."""
    return [
        l2_compress([pair], keep_ratio, prune_after, ())[0]
        if pair[0].shape[1] >= prune_after and layer not in skip_layers
        else pair
        for layer, pair in enumerate(past)
    ]


@exhibit("never_fires_below_the_threshold", "compressing 'at' the threshold, one token before it is reached")
def fires_early(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """The token about to be fed is counted as if it were cached."""
    return l2_compress(past, keep_ratio, max(prune_after - 1, 1), skip_layers)


class FiresOnce:
    """Compresses the prefill and takes its job for done: fires once and then never again."""

    __name__ = "fires_once"

    def __init__(self) -> None:
        self.longest = 0

    def __call__(self, past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        length = max(keys.shape[2] for keys, _ in past)
        if length <= self.longest:
            return past
        self.longest = length
        return l2_compress(past, keep_ratio, prune_after, skip_layers)


exhibit("fires_again", "kvpress compresses prefill only, by design; ports to decoding forget to drop the guard")(
    FiresOnce()
)


@exhibit("skipped_layers_are_untouched", "an argument that is accepted and never read")
def ignores_skip_layers(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """skip_layers is ignored."""
    return l2_compress(past, keep_ratio, prune_after)


@exhibit("skipped_layers_are_untouched", "papers count layers from 1, code from 0")
def counts_layers_from_one(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """skip_layers is counted from 1."""
    return l2_compress(past, keep_ratio, prune_after, [layer - 1 for layer in skip_layers if layer >= 1])


@exhibit("input_is_left_alone", "past_key_values[layer] = …, without the paper's list() before it")
def writes_into_the_list(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """The caller's list is compressed in place: the next ratio compresses what is compressed already."""
    past[:] = l2_compress(past, keep_ratio, prune_after, skip_layers)
    return past


@layer_exhibit("input_is_left_alone", "sorting in place saves memory")
def sorts_in_place(keys: Any, values: Any, kept: int) -> Any:
    """The caller's tensors are reordered in place."""
    index = survivors(scores(keys), kept)
    compressed = keep(keys, values, index)
    keys[:, :, :kept] = compressed[0]
    return compressed


@exhibit(
    "input_is_left_alone",
    "kvpress does so on purpose; a table over ratios on one cache must not",
    wrap=on_dynamic_cache,
)
def writes_into_the_cache(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """The layers of the caller's DynamicCache are overwritten."""
    compressed = l2_compress(past, keep_ratio, prune_after, skip_layers)
    for mine, new in zip(past.layers, compressed.layers, strict=True):
        mine.keys, mine.values = new.keys, new.values
    return past


@exhibit("layers_are_independent", "one get_seq_length() for all layers")
def layer_0_decides(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """Whether to fire is read off layer 0: skip it, and the others never fire, or fire too early."""
    if past[0][0].shape[2] < prune_after:
        return past
    return l2_compress(past, keep_ratio, 1, skip_layers)


@layer_exhibit("evicted_memory_is_freed", "the paper's own script: sort, then slice")
def slice_of_the_sorted(keys: Any, values: Any, kept: int) -> Any:
    """The result is a view of the whole sorted cache: no memory is saved."""
    index = survivors(scores(keys), kept)
    kept_first = scores(keys).scatter(-1, index, torch.iinfo(torch.int64).max)
    gone = kept_first.argsort(dim=-1, descending=True, stable=True)[..., kept:]
    all_keys, all_values = keep(keys, values, torch.cat([index, gone], dim=-1))
    return all_keys[:, :, :kept], all_values[:, :, :kept]


@layer_exhibit("dtype_and_device_are_kept", "keys.float() for the norm, assigned to keys")
def leaks_float32(keys: Any, values: Any, kept: int) -> Any:
    """Keys come back in float32: a compressed cache of twice the size."""
    keys = keys.float()
    return keep(keys, values, survivors(scores(keys), kept))


@layer_exhibit("two_calls_agree", "a random baseline without a seed")
def unseeded(keys: Any, values: Any, kept: int) -> Any:
    """A random choice without a seed."""
    return keep(keys, values, survivors(torch.rand(keys.shape[:3]), kept))


@layer_exhibit("batch_rows_are_independent", "written and tested with a batch of one")
def row_0_decides(keys: Any, values: Any, kept: int) -> Any:
    """The first row of the batch chooses for all rows."""
    index = survivors(scores(keys), kept)[:1].expand(keys.shape[0], -1, -1)
    return keep(keys, values, index)


@layer_exhibit("memory_layout_does_not_matter", "view() in a test with fresh tensors works, on a model's own it raises")
def wants_contiguous(keys: Any, values: Any, kept: int) -> Any:
    """view() merges batch and heads, which only works on contiguous tensors."""
    flat = keys.view(-1, *keys.shape[2:])
    index = survivors(scores(flat.unsqueeze(0))[0], kept).view(*keys.shape[:2], kept)
    return keep(keys, values, index)


@exhibit("senseless_ratio_is_refused", "keep_ratio=50, meant as a percentage")
def clamps_the_ratio(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """A ratio above 1 is clamped to 1: 50 percent, written 50, keeps everything."""
    return l2_compress(past, min(max(keep_ratio, 0.01), 1.0), prune_after, skip_layers)


@exhibit("ratio_one_changes_nothing", "the paper's own script sorts at keep ratio 1 as well")
def sorts_the_baseline(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    """At keep ratio 1 everything is kept, in the order of the norms."""
    if keep_ratio < 1:
        return l2_compress(past, keep_ratio, prune_after, skip_layers)
    return [keep(keys, values, scores(keys).argsort(dim=-1, descending=True)) for keys, values in past]
