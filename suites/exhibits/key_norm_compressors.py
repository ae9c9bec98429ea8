"""Compressors that keep the wrong keys. Each is right but for one fault."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core import l2_compress
from knorm_core.contract import as_compressor
from knorm_core.norms import key_norms, round_norms
from knorm_core.selection import survivors
from suites.exhibits.exhibit import Exhibit, collector
from suites.exhibits.sound import each_layer, keep, scores

EXHIBITS: list[Exhibit] = []
layer_exhibit = collector(EXHIBITS, wrap=as_compressor, sound=l2_compress, frame=each_layer)


@layer_exhibit("low_precision_keys_are_scored_in_float32", "kvpress issue 276")
def bfloat16_norms(keys: Any, values: Any, kept: int) -> Any:
    """Norms in the keys' own dtype: in bfloat16 most keys of a head tie, and position decides."""
    return keep(keys, values, survivors(-round_norms(keys.norm(dim=-1)), kept))


@layer_exhibit("rounding_noise_decides_nothing", "tables that moved by 3e-3 when the rotary tables moved by one ulp")
def noise_decides(keys: Any, values: Any, kept: int) -> Any:
    """Norms unrounded: the last bit of float32 rotary tables decides which occurrence of a token survives."""
    return keep(keys, values, survivors(-key_norms(keys), kept))


@layer_exhibit("equal_norms_keep_the_earlier", "argsort() and topk() of torch promise nothing about equal elements")
def unstable_ties(keys: Any, values: Any, kept: int) -> Any:
    """topk decides among equal norms: by algorithm, length and device."""
    return keep(keys, values, scores(keys).topk(kept).indices.sort(dim=-1).values)


@layer_exhibit("lowest_norms_survive", "intuition says that large keys matter; the paper found the opposite")
def highest_norm(keys: Any, values: Any, kept: int) -> Any:
    """The sign is wrong: the keys of highest norm survive."""
    return keep(keys, values, survivors(-scores(keys), kept))


@layer_exhibit("lowest_norms_survive", "one index for all heads makes the gather simpler")
def mean_over_heads(keys: Any, values: Any, kept: int) -> Any:
    """All heads keep the tokens whose norm, averaged over heads, is lowest."""
    mean = key_norms(keys).mean(dim=1, keepdim=True).expand(keys.shape[:3])
    return keep(keys, values, survivors(-mean, kept))


@layer_exhibit("heads_choose_for_themselves", "index[:, :1] broadcast over heads")
def one_heads_choice(keys: Any, values: Any, kept: int) -> Any:
    """Head 0 chooses for all heads."""
    index = survivors(scores(keys), kept)[:, :1].expand(-1, keys.shape[1], -1)
    return keep(keys, values, index)


@layer_exhibit("scale_changes_nothing", "float16 ends at 65,504, the square of 256")
def float16_squares(keys: Any, values: Any, kept: int) -> Any:
    """Squares are taken in the keys' dtype: in float16, keys beyond a norm of 256 are all infinite."""
    return keep(keys, values, survivors(-round_norms((keys * keys).float().sum(dim=-1).sqrt()), kept))


@layer_exhibit("rotation_changes_nothing", "norm(p=1), or a mean of absolute values: 'the' norm")
def l1_norm(keys: Any, values: Any, kept: int) -> Any:
    """The L1 norm, which depends on the angle that RoPE has turned a key by."""
    return keep(keys, values, survivors(-keys.double().abs().sum(dim=-1), kept))


@layer_exhibit("rotation_changes_nothing", "Pythia rotates a quarter of each head, and code slices accordingly")
def half_the_head(keys: Any, values: Any, kept: int) -> Any:
    """The norm of the first half of the head only."""
    return keep(keys, values, survivors(scores(keys[..., : keys.shape[-1] // 2]), kept))


@layer_exhibit("position_decides_nothing", "StreamingLLM's sinks, added because it helps, and not mentioned")
def protects_sinks(keys: Any, values: Any, kept: int) -> Any:
    """The first token always survives: another method under the same name."""
    protected = scores(keys)
    protected[..., 0] = 1
    return keep(keys, values, survivors(protected, kept))


@layer_exhibit("values_decide_nothing", "CriticalKV and others weigh by the norm of values")
def value_norms(keys: Any, values: Any, kept: int) -> Any:
    """Norms of values in place of keys."""
    return keep(keys, values, survivors(scores(values), kept))


@layer_exhibit(
    "smaller_ratio_keeps_a_subset", "chunked selection, as for long prompts, its chunks depending on the ratio"
)
def strided(keys: Any, values: Any, kept: int) -> Any:
    """Survivors are taken at even steps through the sorted keys: another set at every ratio."""
    order = scores(keys).argsort(dim=-1, descending=True, stable=True)
    steps = torch.linspace(0, keys.shape[2] - 1, kept).long()
    return keep(keys, values, order[..., steps].sort(dim=-1).values)


@layer_exhibit("nan_is_refused", "sort() puts NaN last, so an overflowing model still gets a table")
def sorts_nan(keys: Any, values: Any, kept: int) -> Any:
    """NaN keys are sorted to the end and evicted."""
    return keep(keys, values, survivors(scores(keys.nan_to_num(1e4, 1e4, -1e4)), kept))
