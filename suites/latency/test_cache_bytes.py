"""Cache bytes are exactly kept × layers × kv_heads × head_dim × 2 × element size, at any time."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knorm_core import eviction_schedule, l2_compress
from knorm_core.latency import MeasurementError, generation, measure_contexts, measure_latency
from knorm_core.latency.generation import generation_schedule
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

RATIOS = (1.0, 0.9, 0.55, 0.1)


def lengths(tokens: int, new_tokens: int, prune_after: int, ratio: float) -> list[int]:
    """Cache length after the prompt, then after each token, by walking through the generation."""
    cache = tokens
    seen = []
    for _ in range(new_tokens):
        if cache >= prune_after:
            cache = math.ceil(Fraction(str(ratio)) * cache)
        if not seen:
            seen.append(cache)
        cache += 1
        seen.append(cache)
    return seen


@pytest.mark.parametrize(
    ("family", "dtype", "element_size"),
    [("llama", torch.float32, 4), ("qwen3", torch.bfloat16, 2), ("gpt_neox", torch.float64, 8)],
)
@pytest.mark.parametrize(("tokens", "prune_after"), [(40, 40), (60, 36), (36, 44)], ids=["at", "longer", "shorter"])
def test_cache_bytes_are_exact(family, dtype, element_size, tokens, prune_after):
    model = tiny_model(family, dtype)
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = config.hidden_size // config.num_attention_heads
    per_token = config.num_hidden_layers * heads * head_dim * 2 * element_size
    latency = measure_latency(
        model, random_ids(tokens), keep_ratios=RATIOS, prune_after=prune_after, new_tokens=14, repeats=1, warmup=0
    )
    for row in latency:
        expected = lengths(tokens, 14, prune_after, row.keep_ratio)
        assert row.cache_bytes_after_prefill.samples == (expected[0] * per_token,)
        assert row.cache_bytes_end.samples == (expected[-1] * per_token,)
        assert row.cache_bytes_mean.median == pytest.approx(sum(expected[1:]) / 14 * per_token)
        assert row.cache_bytes_peak.samples == (max(tokens, *expected) * per_token,)
        assert row.peak_device_bytes is None
    after_prefill = [row.cache_bytes_after_prefill.ratio.value for row in latency]
    assert after_prefill == sorted(after_prefill, reverse=True)


@given(st.integers(34, 200), st.integers(1, 60), st.sampled_from(RATIOS))
def test_a_prompt_of_prune_after_tokens_is_compressed_as_the_evaluator_does(tokens, new_tokens, ratio):
    as_evaluated = eviction_schedule(tokens + new_tokens + 1, tokens, ratio)
    assert generation_schedule(tokens, new_tokens, tokens, ratio) == as_evaluated


def test_a_compressor_that_keeps_too_much_does_not_pass_for_ours(tiny, monkeypatch):
    def keeps_all(cache, **arguments):
        return cache

    monkeypatch.setattr(generation, "l2_compress", keeps_all)
    with pytest.raises(MeasurementError, match=r"keep_ratio=0.5: 0 tokens after the prompt the schedule has 20 keys"):
        measure_latency(
            tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=2, repeats=1, compressor=keeps_all
        )


def test_a_compressor_that_only_slices_frees_no_memory_and_is_not_credited_with_it(tiny):
    def slices(cache, *, keep_ratio, prune_after):
        kept = l2_compress(cache, keep_ratio=keep_ratio, prune_after=prune_after)
        for layer, source in zip(kept.layers, cache.layers, strict=True):
            length = layer.keys.shape[-2]
            layer.keys, layer.values = source.keys[:, :, :length], source.values[:, :, :length]
        return kept

    latency = measure_latency(
        tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=1, repeats=1, compressor=slices
    )
    assert latency.row(0.5).cache_bytes_after_prefill.ratio.value == 1
    assert latency.row(0.5).cache_bytes_end.ratio.value < 1  # the next token copies what was kept


def test_sliding_layers_keep_their_window_and_the_others_are_compressed(sliding_model):
    latency = measure_latency(
        sliding_model(0, 2), random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=4, repeats=1, warmup=0
    )
    per_token = 2 * 8 * 2 * 4
    saved = latency.row(1.0).cache_bytes_end.median - latency.row(0.5).cache_bytes_end.median
    assert saved == 20 * per_token


def test_the_model_is_left_as_it_was(tiny):
    tiny.train()
    try:
        measure_latency(tiny, random_ids(40), keep_ratios=[0.5], prune_after=40, new_tokens=1, repeats=1, warmup=0)
        assert tiny.training
    finally:
        tiny.eval()


def test_contexts_share_one_prompt_and_grow_in_proportion(tiny):
    contexts = measure_contexts(tiny, random_ids(96), contexts=[100, 52], keep_ratios=[0.5], new_tokens=4, repeats=2)
    assert contexts.contexts == (52, 100)
    per_token = 3 * 2 * 8 * 2 * 4
    for context, latency in zip(contexts.contexts, contexts.latencies, strict=True):
        assert latency.prune_after == latency.prompt_tokens == context - 4
        assert latency.row(1.0).cache_bytes_end.median == context * per_token
        assert latency.row(0.5).cache_bytes_after_prefill.median == (context - 4) // 2 * per_token
        prompts = latency.row(1.0).ttft_seconds.samples
        assert max(prompts) - min(prompts) < 1e-3  # the prompt's time is shared; what is added is no compression
