"""A model is looked at, not believed: what it does otherwise than it says is served rightly, or refused and why."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy

from knorm_core import UnsupportedModelError, evaluate, evaluate_batch, evaluate_table, kept_count
from knorm_core.methods.anatomy import anatomy
from suites.families import FULL, SLIDING, VOCABULARY, random_ids, tiny_model

pytestmark = pytest.mark.fast

HALF = {"keep_ratio": 0.5, "prune_after": 40}
_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def made(config, dtype=torch.float64, **arguments):
    """A random model, peaked enough that everything shows in its losses."""
    arguments = {**_TINY, **arguments}
    if config == "XLNetConfig":  # it has no limit, and takes none
        del arguments["max_position_embeddings"]
    config = getattr(transformers, config)(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return model.eval()


def assert_whole_text_is_its_own_forward(model, ids, atol=1e-5):
    ours = evaluate(model, ids, keep_ratio=1.0, score_from="start")
    with torch.inference_mode():
        theirs = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    torch.testing.assert_close(ours.nll, theirs.double(), rtol=0, atol=atol)
    return ours


def assert_methods_agree(model, ids, atol=1e-5):
    onepass, stepwise = evaluate(model, ids, **HALF), evaluate(model, ids, method="stepwise", **HALF)
    assert (onepass.method, stepwise.method) == ("onepass", "stepwise")
    torch.testing.assert_close(onepass.nll, stepwise.nll, rtol=0, atol=atol)
    return onepass


# --- what is served rightly though the model says otherwise


def test_a_window_that_the_model_never_reads_is_none():
    model, ids = tiny_model("llama", seed=11), random_ids(90)
    plain = evaluate(model, ids, **HALF)
    other = tiny_model("llama", seed=12)
    other.load_state_dict(model.state_dict())
    other.config.sliding_window, other.config.layer_types = 20, [SLIDING] * 3
    looked = assert_methods_agree(other, ids)
    assert looked.sliding_layers == ()
    assert torch.equal(looked.nll, plain.nll)


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.57 names the window in the call")
def test_a_window_that_no_call_names_is_seen_in_the_mask():
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    windows = {"use_sliding_window": True, "sliding_window": 20, "layer_types": [FULL, SLIDING, FULL]}
    experts["shared_expert_intermediate_size"] = 16
    # Its experts are float32 at most, and a loss of 5 to 1e-4.
    model = made("Qwen2MoeConfig", torch.float32, num_key_value_heads=2, **experts, **windows)
    ids = random_ids(90)
    assert assert_whole_text_is_its_own_forward(model, ids, 1e-4).sliding_layers == (1,)
    assert assert_methods_agree(model, ids, 1e-4).evictions_per_layer[1] == 0
    [alone, *_] = evaluate_table(model, ids, keep_ratios=[1.0, 0.5], prune_after=40).values()
    torch.testing.assert_close(alone.nll, evaluate(model, ids, keep_ratio=1.0, prune_after=40).nll, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is evaluated token by token")  # transformers 4.57 has attention of its own there
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_positions_that_start_after_the_paddings_are_fed_as_the_model_counts_them(padding):
    model = made("RobertaConfig", is_decoder=True, pad_token_id=padding)
    ids = random_ids(90)[random_ids(90) != padding]
    assert_whole_text_is_its_own_forward(model, ids)
    if transformers.__version__ >= "5":
        assert_methods_agree(model, ids)
    with pytest.raises(ValueError, match=f"input_ids holds the padding token {padding}"):
        evaluate(model, torch.cat([ids, torch.tensor([padding])]), **HALF)
    with pytest.raises(ValueError, match=f"512 positions, the first {padding + 1} of them not for tokens"):
        evaluate(model, torch.full((512,), 7), **HALF)


def test_a_model_without_positions_needs_none():
    model, ids = made("SmolLM3Config", num_key_value_heads=2, no_rope_layers=[0] * 3, pad_token_id=None), random_ids(90)
    absolute = assert_methods_agree(model, ids)
    torch.testing.assert_close(evaluate(model, ids, positions="cache", **HALF).nll, absolute.nll, rtol=0, atol=1e-10)


@pytest.mark.skipif(transformers.__version__ < "5", reason="Doge of transformers 4.57 sees later tokens under SDPA")
def test_attention_that_is_called_with_its_mask_by_name_goes_in_one_pass():
    assert_methods_agree(made("DogeConfig", num_key_value_heads=2), random_ids(90))


@pytest.mark.parametrize("context", ["default dtype", "autocast", "thread"])
def test_the_dtype_that_is_the_default_just_now_changes_nothing(context):
    ids = random_ids(60)
    expected = evaluate(tiny_model("gpt_neox", seed=20), ids, **HALF)
    for seed in range(21, 24):
        model = tiny_model("gpt_neox", seed=seed)
        model.load_state_dict(tiny_model("gpt_neox", seed=20).state_dict())
        if context == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                seen = anatomy(model, len(ids))
            assert (seen.obstacle, seen.refusal) == ("", "")
            continue
        if context == "thread":
            busy = threading.Thread(target=torch.set_default_dtype, args=(torch.bfloat16,))
            busy.start()
            busy.join()
        else:
            torch.set_default_dtype(torch.bfloat16)
        try:
            result = evaluate(model, ids, **HALF)
        finally:
            torch.set_default_dtype(torch.float32)
        assert result.method == "onepass"
        torch.testing.assert_close(result.nll, expected.nll, rtol=0, atol=1e-10)


# --- what is refused, and what differed


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.57 caches the expanded keys")
def test_a_cache_that_holds_a_latent_is_refused():
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    model = made("DeepseekV3Config", num_key_value_heads=4, first_k_dense_replace=3, **latent)
    for method in ("onepass", "stepwise"):
        with pytest.raises(
            UnsupportedModelError, match=r"not hold the keys that attend: in layer 0 it holds \(1, 1, 8"
        ):
            evaluate(model, random_ids(60), method=method, **HALF)


@pytest.mark.filterwarnings("ignore")
def test_quantisation_that_mixes_tokens_is_refused():
    quantised = torch.ao.quantization.quantize_dynamic(tiny_model("llama", torch.float32), {nn.Linear}, torch.qint8)
    for method in ("onepass", "stepwise"):
        with pytest.raises(UnsupportedModelError, match=r"part by \d"):
            evaluate(quantised, random_ids(60), method=method, **HALF)


def test_keys_that_something_puts_before_the_texts_are_refused():
    class Prefixed(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, past_key_values=None, **others):
            if past_key_values is None:
                past_key_values = transformers.DynamicCache()
                for layer in range(3):
                    past_key_values.update(*torch.ones(2, len(input_ids), 2, 5, 8, dtype=torch.float64), layer)
            return super().forward(input_ids=input_ids, past_key_values=past_key_values, **others)

    model = Prefixed(tiny_model("llama").config).double().eval()
    for method in ("onepass", "stepwise"):
        with pytest.raises(UnsupportedModelError, match="caches 13 keys of 8 tokens, more than one of each"):
            evaluate(model, random_ids(60), method=method, **HALF)


def test_what_changes_far_out_is_seen_where_the_text_goes_that_far():
    temperature = {"attn_temperature_tuning": True, "floor_scale": 80, "attn_scale": 0.5, "no_rope_layers": [0] * 3}
    model = made(
        "Llama4TextConfig",
        layer_types=[FULL] * 3,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size_mlp=32,
        num_local_experts=2,
        **temperature,
    )
    assert_methods_agree(model, random_ids(70))
    for method in ("onepass", "stepwise"):
        with pytest.raises(UnsupportedModelError, match=r"says that it holds 149 keys, the logits .* part by \d"):
            evaluate(model, random_ids(150), method=method, **HALF)
    assert_methods_agree(model, random_ids(70, seed=1))  # a short text is still served


# --- what used to end in an error of somebody else's


def test_what_is_no_causal_language_model_is_told_so():
    ids = random_ids(60)
    model = tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match="LlamaModel makes no logits"):
        evaluate(model.model, ids, **HALF)
    with pytest.raises(TypeError, match=r"model is a DataParallel, .* give the model within it \(.module\)"):
        evaluate(nn.DataParallel(model), ids, **HALF)
    with pytest.raises(TypeError, match="model is a Linear, not a causal language model"):
        evaluate(nn.Linear(2, 2), ids, **HALF)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32}),
        ("MambaConfig", {"state_size": 4, "time_step_rank": 4}),
    ],
)
def test_a_model_without_a_cache_of_keys_is_refused(config, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(config, torch.float32, **arguments)
        for method in ("onepass", "stepwise"):
            with pytest.raises(UnsupportedModelError, match=r"keeps no cache of keys|than growing keys"):
                evaluate(model, random_ids(60), method=method, **HALF)


def test_input_ids_say_what_they_are():
    model = tiny_model("llama")
    encoded = transformers.BatchEncoding({"input_ids": random_ids(60), "attention_mask": torch.ones(60)})
    with pytest.raises(TypeError, match="input_ids is a BatchEncoding: give its input_ids alone"):
        evaluate(model, encoded, **HALF)
    with pytest.raises(ValueError, match=r"input_ids holds texts of \[40, 60\] tokens"):
        evaluate_batch(model, [random_ids(60).tolist(), random_ids(40).tolist()], **HALF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_keep_ratio_may_be_a_tensor_of_one_number(dtype):
    assert kept_count(100, torch.tensor(0.55, dtype=dtype)) == 55
    assert kept_count(100, torch.tensor(0.07, dtype=dtype)) == 7
    with pytest.raises(TypeError, match="keep_ratio="):
        kept_count(100, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="outside"):
        kept_count(100, torch.tensor(1.5))


def test_a_model_that_calls_its_attention_otherwise_is_told_how_often():
    model = made("DiffLlamaConfig", num_key_value_heads=2)
    seen = anatomy(model, 60)
    own_code = "its attention does not go through transformers' AttentionInterface"  # transformers 4
    assert seen.obstacle in ("its 3 cached layers do not attend once each: 6 calls come from 3 layers", own_code)


@pytest.mark.skipif(
    transformers.__version__ >= "5", reason="transformers 4.57 makes its rotary table as long as its cache"
)
def test_a_model_that_cannot_place_a_token_after_few_keys_is_refused():
    model = made("PhimoeConfig", torch.float32, num_key_value_heads=2, num_local_experts=2)
    with pytest.raises(UnsupportedModelError, match="cannot place a token at position 59 after 7 keys"):
        evaluate(model, random_ids(60), **HALF)


@pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 4.57 makes this mask a column too long")
def test_a_mask_that_is_longer_than_the_keys_hides_none_of_them():
    model = made("GraniteMoeConfig", num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1)
    assert assert_methods_agree(model, random_ids(60)).sliding_layers == ()


def test_a_model_of_several_token_tables_is_refused():
    parts = {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32, "hidden_size": 32}
    config = transformers.MusicgenDecoderConfig(vocab_size=VOCABULARY, num_codebooks=1, **parts)
    model = transformers.MusicgenForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError, match="MusicgenForCausalLM has a ModuleList for its input embeddings"):
        evaluate(model, random_ids(60), **HALF)


@pytest.mark.parametrize("name", ["sliding_window", "chunk_size_feed_forward"])
def test_a_window_longer_than_any_text_is_not_looked_beyond(name):
    """A mask of a billion columns, to see where such a window ends, would fill the memory."""
    family = "MistralConfig" if name == "sliding_window" else "LlamaConfig"
    ids = random_ids(100)
    with_none = {"num_key_value_heads": 2} | ({"sliding_window": None} if name == "sliding_window" else {})
    expected = evaluate(made(family, **with_none), ids, **HALF)
    evaluation = evaluate(made(family, **{**with_none, name: 10**12}), ids, **HALF)
    assert torch.equal(evaluation.nll, expected.nll)
    assert evaluation.evictions == expected.evictions
