"""`evaluate` and `measure_latency` take a compressor in whichever shape it was written."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from knorm_core import evaluate, kept_count, l2_compress, measure_latency
from knorm_core.cache import apply_compressor
from knorm_core.contract import as_compressor, on_dynamic_cache
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast


def by_norm(keys, values, keep_ratio):
    index = keys.norm(dim=-1).argsort(dim=-1)[..., : kept_count(keys.shape[2], keep_ratio)].sort(dim=-1).values
    index = index.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
    return keys.gather(2, index), values.gather(2, index)


def over_pairs(past, keep_ratio, prune_after, skip_layers=()):
    """As the paper's own script: a list of pairs, each replaced in its place."""
    past = list(past)
    for layer, pair in enumerate(past):
        keys, values = pair
        if pair[0].size(2) >= prune_after and layer not in skip_layers:
            past[layer] = by_norm(keys, values, keep_ratio)
    return past


def in_place(cache, keep_ratio, prune_after, skip_layers=()):
    for index, layer in enumerate(cache.layers):
        if layer.keys.shape[2] >= prune_after and index not in skip_layers:
            layer.keys, layer.values = by_norm(layer.keys, layer.values, keep_ratio)


def in_place_over_pairs(past, keep_ratio, prune_after, skip_layers=()):
    for layer in range(len(past)):
        if past[layer][0].shape[2] >= prune_after and layer not in skip_layers:
            past[layer] = by_norm(*past[layer], keep_ratio)


def of_one_row(past, keep_ratio, prune_after, skip_layers=()):
    """Over the keys of a single text, with no axis for rows."""
    rows = [(keys.squeeze(0), values.squeeze(0)) for keys, values in past]
    short = [
        pair if pair[0].shape[1] < prune_after else by_norm(pair[0][None], pair[1][None], keep_ratio) for pair in rows
    ]
    return [tuple(part.view(1, *part.shape[-3:]) for part in pair) for pair in short]


SHAPES = [
    over_pairs,
    in_place,
    in_place_over_pairs,
    of_one_row,
    as_compressor(over_pairs),
    on_dynamic_cache(in_place),
]
shapes = pytest.mark.parametrize(
    "compressor", SHAPES, ids=lambda compressor: getattr(compressor, "__name__", f"adapted {compressor!r}")
)


@shapes
def test_every_shape_gives_the_numbers_of_low_norm(compressor):
    model, ids = tiny_model("llama"), random_ids(80)
    arguments = {"keep_ratio": 0.5, "prune_after": 40}
    result = evaluate(model, ids, compressor=compressor, **arguments)
    ours = evaluate(model, ids, compressor=l2_compress, **arguments)
    assert result.evictions == ours.evictions
    torch.testing.assert_close(result.nll, ours.nll, rtol=0, atol=1e-10)


@shapes
def test_every_shape_can_be_timed(compressor):
    rows = measure_latency(
        tiny_model("llama"), random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=2, repeats=1,
        compressor=compressor,
    )  # fmt: skip
    assert rows


def test_a_compressor_in_place_changes_a_cache_of_its_own():
    keys = torch.randn(1, 2, 8, 4)
    cache = DynamicCache([(keys, keys)])
    for compressor in (in_place, in_place_over_pairs):
        compressed = apply_compressor(compressor, cache, keep_ratio=0.5, prune_after=1)
        assert type(compressed) is DynamicCache
        assert compressed.layers[0].keys.shape[2] == 4
        assert torch.equal(cache.layers[0].keys, keys)
