"""The third position mode: survivors rotated to the front, as StreamingLLM and kvpress's KeyRerotationPress do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core import UnsupportedModelError, evaluate, evaluate_rows, l2_compress
from knorm_core.methods.rotation import check_rotation, rotary_frequencies, rotate
from suites.core.questions import questions
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

FAMILIES = ["gpt_neox", "llama", "qwen3"]
families = pytest.mark.parametrize("family", FAMILIES)
PER_TOKEN = {"gpt_neox": 1e-10, "llama": 1e-5, "qwen3": 1e-5}
FREQUENCIES = 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)


def keys_of(seed, length=12, dtype=torch.float64):
    return torch.randn(1, 2, length, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), by=st.integers(-3000, 3000), more=st.integers(-3000, 3000))
def test_rotating_and_back_is_the_identity_and_twice_is_once(seed, by, more):
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-6)]:
        keys, there, further = keys_of(seed, dtype=dtype), torch.tensor([by]), torch.tensor([more])
        moved = rotate(keys, there, FREQUENCIES)
        torch.testing.assert_close(rotate(moved, -there, FREQUENCIES), keys, atol=4 * tolerance, rtol=0)
        once = rotate(keys, there + further, FREQUENCIES)
        torch.testing.assert_close(rotate(moved, further, FREQUENCIES), once, atol=4 * tolerance, rtol=0)
        torch.testing.assert_close(moved.norm(dim=-1), keys.norm(dim=-1), atol=4 * tolerance, rtol=0)
        assert torch.equal(moved[..., 8:], keys[..., 8:])  # coordinates that do not rotate
        assert moved.dtype == dtype
    assert torch.equal(rotate(keys, torch.tensor([0]), FREQUENCIES), keys)


@families
def test_moved_keys_are_those_that_the_model_itself_makes_there(family):
    from transformers import DynamicCache

    model = tiny_model(family)
    frequencies = rotary_frequencies(model)
    check_rotation(model, frequencies)
    near, far = DynamicCache(), DynamicCache()
    ids, positions = random_ids(20)[None], torch.arange(20)[None]
    with torch.inference_mode():
        model(ids, position_ids=positions, past_key_values=near, use_cache=True)
        model(ids, position_ids=positions + 37, past_key_values=far, use_cache=True)
    for a, b in zip(near.layers, far.layers, strict=True):
        torch.testing.assert_close(rotate(a.keys, torch.tensor([37]), frequencies), b.keys, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "method"), [("gpt_neox", "stepwise"), ("llama", "onepass"), ("qwen3", "onepass")])
def test_at_ratio_one_nothing_changes(family, method):
    model, ids = tiny_model(family), random_ids(50)
    rerotated, absolute = (
        evaluate(model, ids, keep_ratio=1.0, prune_after=40, positions=mode, method=method).nll
        for mode in ("rerotated", "absolute")
    )
    assert torch.equal(rerotated, absolute)


@pytest.mark.parametrize(("family", "method"), [("gpt_neox", "stepwise"), ("llama", "onepass"), ("qwen3", "onepass")])
def test_moving_a_window_as_a_whole_changes_nothing(family, method):
    # Attention sees differences of positions alone. The survivors of "newest" have no gaps, so here, and
    # only here, rotating them to the front is the same as true positions, up to float32 tables.
    model, ids = tiny_model(family), random_ids(70, 1)
    arguments = {"keep_ratio": 0.5, "prune_after": 40, "policy": "newest", "method": method}
    modes = {mode: evaluate(model, ids, positions=mode, **arguments).nll for mode in ("rerotated", "absolute", "cache")}
    torch.testing.assert_close(modes["rerotated"], modes["absolute"], atol=1e-3, rtol=0)
    assert float((modes["cache"] - modes["absolute"]).abs().max()) > 1e-1
    gaps = arguments | {"policy": "low_norm"}
    apart = [evaluate(model, ids, positions=mode, **gaps).nll for mode in ("rerotated", "absolute")]
    assert float((apart[0] - apart[1]).abs().max()) > 1e-1


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@settings(max_examples=5)
@given(question=questions(longest=60, positions=("rerotated",)))
def test_one_pass_equals_stepwise(family, question):
    length, seed, arguments = question
    model, ids = tiny_model(family), random_ids(length, seed)
    onepass, stepwise = (evaluate(model, ids, method=m, **arguments) for m in ("onepass", "stepwise"))
    assert float((onepass.nll - stepwise.nll).abs().max()) <= PER_TOKEN[family]
    assert onepass.evictions == stepwise.evictions


@torch.inference_mode()
def test_stepwise_is_what_kvpress_does_once_after_prefill():
    # As KeyRerotationPress states it: undo each survivor's rotation, then rotate for its place among them;
    # here by the model's own tables of cosines, not by differences.
    from transformers import DynamicCache
    from transformers.models.llama.modeling_llama import rotate_half

    model, ids, start = tiny_model("llama"), random_ids(60, 2), 40
    cache = DynamicCache()
    model(ids[None, :start], past_key_values=cache, use_cache=True)
    truth = [layer.keys for layer in cache.layers]
    cache = l2_compress(cache, 0.5, start)
    for before, layer in zip(truth, cache.layers, strict=True):
        index = (before.unsqueeze(2) == layer.keys.unsqueeze(3)).all(-1).long().argmax(-1)  # (1, heads, kept)
        for head in range(index.shape[1]):
            cos, sin = model.model.rotary_emb(layer.keys, index[:, head])
            bare = layer.keys[:, head] * cos - rotate_half(layer.keys[:, head]) * sin
            cos, sin = model.model.rotary_emb(layer.keys, torch.arange(index.shape[2])[None])
            layer.keys[:, head] = bare * cos + rotate_half(bare) * sin
    positions = torch.arange(20, 20 + len(ids) - 1 - start)[None]
    logits = model(ids[None, start:-1], position_ids=positions, past_key_values=cache, use_cache=True).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, ids[start + 1 :], reduction="none")
    ours = evaluate(
        model, ids, keep_ratio=0.5, prune_after=start, when="after_prefill", positions="rerotated", adjust=False
    )
    torch.testing.assert_close(ours.nll, expected, atol=1e-4, rtol=0)


def test_a_table_holds_all_three_modes():
    model, ids = tiny_model("gpt_neox"), random_ids(90)
    rows = {
        mode: {"keep_ratio": 0.6, "prune_after": 40, "positions": mode} for mode in ("absolute", "cache", "rerotated")
    }
    for mode, row in evaluate_rows(model, ids, rows).items():
        torch.testing.assert_close(row.nll, evaluate(model, ids, **rows[mode]).nll, atol=1e-10, rtol=0)


def interleaved():
    """A model that pairs neighbouring coordinates."""
    import transformers

    config = transformers.CohereConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)


def without_rotation():
    import transformers

    config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return transformers.AutoModelForCausalLM.from_config(config)


def stretched():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def sliding():
    import transformers

    config = transformers.MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (interleaved, "CohereForCausalLM: layer 0 does not rotate them by halves"),
        (without_rotation, "needs rotary positions, and GPT2LMHeadModel has none"),
        (stretched, "of type 'dynamic'"),
        (sliding, r"layers \[0, 1\] have a sliding window"),
    ],
)
def test_models_whose_keys_cannot_be_moved_are_refused(build, message):
    with pytest.raises(UnsupportedModelError, match=message):
        evaluate(build().eval(), random_ids(60), keep_ratio=0.5, positions="rerotated")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip_layers": (0,)}, r"skip_layers=\[0\] does not go with positions='rerotated'"),
        ({"compressor": l2_compress}, "compressor does not go with positions='rerotated'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, positions="rerotated", **arguments)
