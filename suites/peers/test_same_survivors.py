"""On the same keys, `KnormPress` and our `low_norm_exact` keep the same tokens wherever their counts coincide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from knorm_core import kept_count
from knorm_core.contract import CacheCase, kvpress_count
from knorm_core.contract.tracing import origins
from knorm_core.norms import key_norms
from knorm_core.policies import LowNormExact
from knorm_core.policy import key_scores
from knorm_core.selection import survivors
from suites.peers.presses import needs_kvpress, on_keys, press

pytestmark = [pytest.mark.peers, needs_kvpress, pytest.mark.xdist_group("perplexity")]

knorm_press = on_keys(press("KnormPress"))

# Lengths and ratios whose product is whole, so that the two counts mostly coincide.
caches = st.builds(
    CacheCase,
    lengths=st.tuples(st.integers(1, 5).map(lambda n: 20 * n)),
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 64]),
    dtype=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
    seed=st.integers(0, 999),
)
ratios = st.integers(1, 19).map(lambda twentieths: twentieths / 20)


def ours(keys: torch.Tensor, kept: int) -> torch.Tensor:
    return survivors(key_scores(LowNormExact(), keys, torch.arange(keys.shape[2])), kept)


def theirs(pair: tuple[torch.Tensor, torch.Tensor], keep_ratio: float) -> torch.Tensor:
    [compressed] = knorm_press([pair], keep_ratio)
    return origins(pair, compressed).sort(dim=-1).values


@given(caches, ratios)
@example(CacheCase(lengths=(100,)), 0.5)
@example(CacheCase(lengths=(100,), dtype="bfloat16"), 0.25)
def test_the_same_sets_of_synthetic_keys(case, keep_ratio):
    kept = kept_count(case.lengths[0], keep_ratio)
    assume(kept == kvpress_count(case.lengths[0], keep_ratio))
    [(keys, values)] = case.pairs()
    norms = key_norms(keys).sort(dim=-1).values
    if kept < case.lengths[0]:  # of equal norms at the edge, topk may keep either
        assume(bool((norms[..., kept - 1] < norms[..., kept]).all()))
    assert torch.equal(theirs((keys, values), keep_ratio), ours(keys, kept))


@pytest.mark.parametrize("keep_ratio", [0.5, 0.25, 0.75])
def test_the_same_sets_of_a_real_models_keys(keep_ratio, prefilled):
    for keys, values in prefilled:
        length = keys.shape[2]
        assert kept_count(length, keep_ratio) == kvpress_count(length, keep_ratio)
        # The values of a model do not name their token; these do.
        named = torch.arange(length, dtype=keys.dtype).view(1, 1, -1, 1).expand_as(values)
        assert torch.equal(theirs((keys, named), keep_ratio), ours(keys, kept_count(length, keep_ratio)))


def test_counts_part_where_rounding_does():
    # ceil on the decimal number against int on the binary one: theirs is never larger
    apart = [n for n in range(1, 200) if kept_count(n, 0.55) != kvpress_count(n, 0.55)]
    assert apart[:3] == [2, 3, 4]
    assert all(kept_count(n, 0.55) - kvpress_count(n, 0.55) == 1 for n in apart)
    assert 100 not in apart


@pytest.fixture(scope="module")
def prefilled(embedded_model, texts_of):
    """(key, value) of every layer after 256 tokens of an embedded text."""
    from transformers import DynamicCache

    [text] = texts_of(embedded_model, "embedded-articles", 512, 1)
    cache = DynamicCache()
    with torch.inference_mode():
        embedded_model.model(text.input_ids[None, :256], past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]
