"""Every family that is promised, by both methods; and what only a real cache can serve, or nothing can."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import cross_entropy

from knorm_core import (
    SlowFallbackWarning,
    UnsupportedModelError,
    evaluate,
    evaluate_rows,
    evaluate_table,
    l2_compress,
)
from knorm_core.experiments.divergence import divergence
from knorm_core.methods.anatomy import anatomy
from suites.core.questions import questions, text_for
from suites.core.test_methods_agree import assert_equal
from suites.families import FAMILIES, FULL, PROMISED, SLIDING, SLOW, VOCABULARY, random_ids, tiny_model

pytestmark = pytest.mark.fast

methods = pytest.mark.parametrize("method", ["onepass", "stepwise"])
HALF = {"keep_ratio": 0.5, "prune_after": 40}


def slow_model(family):
    # GPT-OSS's experts have no float64 in transformers.
    return tiny_model(family, torch.float32 if family == "gpt_oss" else torch.float64)


def plain_losses(model, ids):
    """Losses of the model's own forward, none of our code in it."""
    with torch.inference_mode():
        return cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")


# --- the promised families; GPT-NeoX, Llama and Qwen3 have longer texts and more examples in the files beside this one

others = pytest.mark.parametrize("family", [name for name in PROMISED if name not in ("gpt_neox", "llama", "qwen3")])


@others
@settings(max_examples=3)
@given(question=questions(longest=60))
def test_one_pass_equals_stepwise(family, question):
    length, seed, arguments = question
    model, ids = tiny_model(family), text_for(arguments, length, seed)
    if {0, 1, 2} - set(arguments["skip_layers"]) <= {i for i, k in enumerate(kinds(family)) if k == SLIDING}:
        arguments["skip_layers"] = ()
    evaluation = evaluate(model, ids, **arguments)
    assert evaluation.method == "onepass"
    assert_equal(family, evaluation, evaluate(model, ids, method="stepwise", **arguments))


def kinds(family):
    return FAMILIES[family][1].get("layer_types", [FULL] * 3)


@others
@methods
def test_keep_ratio_one_is_the_familys_own_forward(family, method):
    model, ids = tiny_model(family), random_ids(60)  # longer than Gemma's windows
    ours = evaluate(model, ids, keep_ratio=1.0, score_from="start", method=method).nll
    # Gemma 2's own attention is eager, with a softmax in float32.
    torch.testing.assert_close(ours, plain_losses(model, ids), rtol=0, atol=1e-5)


@others
def test_models_that_show_nothing_would_prove_nothing(family):
    # The promise of `tiny_model`: policy, positions and keep ratio change the loss by far more than 1e-5.
    model, ids = tiny_model(family), random_ids(90, 3)
    base = evaluate(model, ids, **HALF).nll
    changes = [{"policy": "high_norm"}, {"keep_ratio": 0.9}]
    if kinds(family)[0] == FULL:  # else layer 0 keeps its length, and with it the positions
        changes += [{"positions": "cache"}, {"skip_layers": (0,)}]
    for change in changes:
        assert float((evaluate(model, ids, **(HALF | change)).nll - base).abs().max()) > 1e-2, change


def test_gemma_3_with_eyes_is_evaluated_by_its_language_part():
    import transformers

    config = transformers.Gemma3Config(
        text_config=FAMILIES["gemma3"][1],
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    language = tiny_model("gemma3")
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    ids = random_ids(60)
    for method in ("onepass", "stepwise"):
        seeing, blind = (evaluate(each, ids, method=method, **HALF) for each in (model, language))
        assert seeing.method == method
        assert seeing.sliding_layers == (0, 1)
        torch.testing.assert_close(seeing.nll, blind.nll, rtol=0, atol=1e-10)


@methods
def test_soft_capping_is_not_dropped(method):
    model, ids = tiny_model("gemma2"), random_ids(90)
    capped = evaluate(model, ids, method=method, **HALF).nll
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    try:
        assert float((evaluate(model, ids, method=method, **HALF).nll - capped).abs().max()) > 0.1
    finally:
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = model.config.attn_logit_softcapping


# --- windows


@methods
@pytest.mark.parametrize(("window", "positions"), [(20, "cache"), (41, "absolute"), (60, "cache"), (89, "absolute")])
def test_windows_shorter_and_longer_than_phase_1_and_the_text_are_honoured(window, method, positions):
    # 40 tokens of phase 1, 90 of text.
    family = f"qwen3_sliding_{window}"
    model, ids = tiny_model(family), random_ids(90)
    result = evaluate(model, ids, method=method, positions=positions, **HALF)
    assert result.sliding_layers == (1,)
    assert result.evictions_per_layer == (3, 0, 3)
    assert result.peak_cache == 40
    torch.testing.assert_close(result.nll, by_masks(window, positions), rtol=0, atol=1e-5)


@functools.cache
def by_masks(window, positions):
    """Losses with 0.5 of 40 keys kept, by a forward of the model's own under a mask of (head, query, key) per layer."""
    import transformers.masking_utils as masks
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, ids = tiny_model(f"qwen3_sliding_{window}"), random_ids(90)
    n = len(ids) - 1
    fed, born = torch.arange(n).view(-1, 1), torch.arange(n)
    place = born.clone()
    if positions == "cache":
        for step in (40, 60, 80):
            place[step:] -= 20

    def attend(module, query, key, value, mask, scaling, **_):
        seen = (born <= fed).expand(key.shape[1], n, n).clone()
        if module.layer_idx == 1:
            seen &= born > fed - window
        else:
            for head, norms in enumerate(key[0].norm(dim=-1)):
                alive = []
                for step in range(n):
                    if step >= 40 and len(alive) >= 40:
                        order = sorted(alive, key=lambda token: (round(float(norms[token]), 6), token))
                        alive = sorted(order[:20])
                    alive.append(step)
                    seen[head, step] &= torch.isin(born, torch.tensor(alive))
        key, value, seen = (each.repeat_interleave(2, dim=-3) for each in (key, value, seen))
        scores = (query @ key.mT * scaling).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    name = "suites_by_masks"
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *_, **__: None)
    before, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        with torch.inference_mode():
            logits = model(ids[None, :-1], position_ids=place[None], use_cache=False).logits[0]
    finally:
        model.config._attn_implementation = before
    return cross_entropy(logits, ids[1:], reduction="none")[40:]


# --- what only a real cache can serve


@pytest.mark.parametrize("family", SLOW)
def test_what_one_pass_cannot_serve_falls_back_and_says_why(family):
    model, ids = slow_model(family), random_ids(70)
    with pytest.warns(SlowFallbackWarning, match=SLOW[family]) as said:
        result = evaluate(model, ids, **HALF)
    assert [warning.filename for warning in said] == [__file__]
    assert result.method == "stepwise"
    assert result.evictions_per_layer == tuple(0 if kind == SLIDING else 2 for kind in kinds(family))
    asked_for = evaluate(model, ids, method="stepwise", **HALF)  # without a warning
    assert torch.equal(result.nll, asked_for.nll)
    assert result.evictions == asked_for.evictions
    with pytest.raises(UnsupportedModelError, match=f"this needs one pass, which cannot serve .*{SLOW[family]}"):
        divergence(model, ids, {0: HALF})


@pytest.mark.parametrize("family", ["falcon", "gpt_oss"])
def test_the_fallback_is_the_familys_own_attention_and_a_table_says_so_once(family):
    model, ids = slow_model(family), random_ids(60)
    with pytest.warns(SlowFallbackWarning, match=SLOW[family]) as said:
        table = evaluate_table(model, ids, keep_ratios=(1.0, 0.5), score_from="start", prune_after=32)
    assert [warning.filename for warning in said] == [__file__]
    assert {row.method for row in table.values()} == {"stepwise"}
    whole, half = table["absolute", 1.0].nll, table["absolute", 0.5].nll
    # GPT-J attends in float32, GPT-OSS is in float32: losses of 5 to some 1e-5
    torch.testing.assert_close(whole, plain_losses(model, ids).double(), rtol=1e-5, atol=1e-5)
    assert float((whole - half).abs().max()) > 1e-2


def test_attention_of_a_model_that_shows_none_is_refused_and_a_look_at_the_cache_is_not():
    model, ids = tiny_model("falcon"), random_ids(60)
    reason = r"policy TOVA\(\) reads 'attention', which FalconForCausalLM does not show: its attention does not go"
    with pytest.raises(UnsupportedModelError, match=reason):
        evaluate(model, ids, policy="tova", **HALF)
    with pytest.warns(SlowFallbackWarning):
        assert evaluate(model, ids, policy="keydiff", **HALF).evictions_per_layer == (2, 2, 2)


def test_attention_beside_a_models_own_sinks_is_what_its_eager_code_gives():
    model, ids = slow_model("gpt_oss"), random_ids(60)
    with pytest.warns(SlowFallbackWarning, match="attends with s_aux"):
        results = [evaluate(model, ids, policy=policy, **HALF) for policy in ("tova", "h2o", "low_norm")]
    assert {result.method for result in results} == {"stepwise"}
    assert len({result.ppl for result in results}) == 3


def test_a_text_within_the_first_rotary_table_needs_no_fallback():
    model, ids = tiny_model("phi3_longrope"), random_ids(49)
    evaluation = evaluate(model, ids, keep_ratio=0.5)
    assert evaluation.method == "onepass"
    assert_equal("phi3", evaluation, evaluate(model, ids, keep_ratio=0.5, method="stepwise"))
    # Positions from the cache length stay within it on a longer text.
    assert evaluate(model, random_ids(60), keep_ratio=0.5, positions="cache", prune_after=32).method == "onepass"


def test_rewriting_its_rotary_table_leaves_the_callers_model_as_it_was():
    model = tiny_model("phi3_longrope")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evaluate(model, random_ids(90), method="stepwise", **HALF)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_masks_of_a_models_own_allow_no_layers_of_unequal_length():
    model, ids = tiny_model("falcon"), random_ids(60)
    for arguments in ({"skip_layers": (1,)}, {"compressor": lambda cache, **given: l2_compress(cache, 0.5, 40, (1,))}):
        with pytest.raises(UnsupportedModelError, match="compressed alike"):
            evaluate(model, ids, method="stepwise", **HALF, **arguments)


@methods
def test_a_window_over_places_in_the_cache_is_refused_where_it_would_bite(method):
    model = tiny_model("gpt_neo")
    arguments = {"keep_ratio": 0.5, "prune_after": 40, "method": method}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowFallbackWarning)
        with pytest.raises(UnsupportedModelError, match="reads the distance of a key off its place in the cache"):
            evaluate(model, random_ids(90), **arguments)
        assert evaluate(model, random_ids(55), **arguments).method == "stepwise"


# --- what neither can


_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (
            "Llama4TextConfig",
            {"attention_chunk_size": 24, "intermediate_size_mlp": 32, "num_local_experts": 2},
            "hides keys in another way than a sliding window does: of .* it leaves the latest",
        ),
        (
            "Qwen3NextConfig",
            {
                "layer_types": [FULL, "linear_attention", FULL],
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            "keeps (something else than growing keys in layers|no cache of keys)",
        ),
        (
            "Gemma3nTextConfig",
            {
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "layer_types": [FULL, SLIDING, FULL, SLIDING],
                "sliding_window": 16,
                "intermediate_size": 32,
                "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 8,
                "activation_sparsity_pattern": [0.0] * 4,
                "laurel_rank": 8,
            },
            # transformers 4.57 shares keys through the cache alone
            "keeps something else than growing keys in layers|keeps no keys in layers|where it keeps no cache",
        ),
    ],
)
def test_layers_without_keys_to_evict_are_refused(config, arguments, message):
    import transformers

    made = getattr(transformers, config)(**{**_TINY, **arguments})
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    for method in ("onepass", "stepwise"):
        with pytest.raises(UnsupportedModelError, match=message):
            evaluate(model, random_ids(60), keep_ratio=0.5, method=method)


def test_attention_in_both_directions_is_refused():
    model = tiny_model("llama", seed=6)
    model.model.layers[1].self_attn.is_causal = False
    for method in ("onepass", "stepwise"):
        with pytest.raises(
            UnsupportedModelError,
            match=r"not causal: where tokens that are fed later change, .* part by \d+",
        ):
            evaluate(model, random_ids(60), keep_ratio=0.5, method=method)


def test_attention_with_a_scale_of_its_own_is_found_out():
    # As GPT-2's scale_attn_by_inverse_layer_idx, which transformers 4.57 applies in its eager attention alone.
    import transformers

    _, arguments = FAMILIES["gpt2"]
    config = transformers.GPT2Config(**arguments, scale_attn_by_inverse_layer_idx=True)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    obstacle = anatomy(model, 60).obstacle
    assert obstacle == ("" if transformers.__version__ >= "5" else "layer 1 is not plain attention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowFallbackWarning)
        ours = evaluate(model, random_ids(60), keep_ratio=1.0, score_from="start").nll
    torch.testing.assert_close(ours, plain_losses(model, random_ids(60)).double(), rtol=0, atol=1e-4)


def test_rows_are_checked_before_any_of_them_falls_back():
    with pytest.raises(ValueError, match="keep_ratio=2"):
        evaluate_rows(tiny_model("falcon"), random_ids(60), {0: HALF, 1: {"keep_ratio": 2}})
