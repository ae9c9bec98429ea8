"""Divergence from the uncompressed model, held against full logits of the stepwise oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div

from knorm_core import UnsupportedModelError, effective_prune_after, evaluate, evaluate_rows, l2_compress
from knorm_core.experiments.divergence import Divergence, compare, divergence, summary
from knorm_core.methods.forward import private_copy
from knorm_core.methods.head import Head, last_states
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

FAMILIES = ["gpt_neox", "llama", "qwen3"]


@torch.inference_mode()
def stepwise_logits(model, ids, start, keep_ratio):
    """The definition once more, with full logits: token by token, `l2_compress` before each of phase 2."""
    from transformers import DynamicCache

    cache, rows = DynamicCache(), []
    for step in range(len(ids) - 1):
        if step >= start:
            cache = l2_compress(cache, keep_ratio, start)
        fed = {"input_ids": ids[None, step : step + 1], "position_ids": torch.tensor([[step]])}
        rows.append(model(**fed, past_key_values=cache, use_cache=True).logits[0, 0])
    return torch.stack(rows[start:])


@pytest.mark.parametrize(("family", "ratio"), [("gpt_neox", 0.9), ("llama", 0.3)])
def test_it_is_the_divergence_of_stepwise_logits(family, ratio):
    model, ids, start = tiny_model(family), random_ids(66, 1), 32
    [measured] = divergence(model, ids, {ratio: {"keep_ratio": ratio, "prune_after": start}}).values()
    p, q = (stepwise_logits(model, ids, start, r).log_softmax(-1) for r in (1.0, ratio))
    torch.testing.assert_close(measured.kl, kl_div(q, p, reduction="none", log_target=True).sum(-1), atol=1e-5, rtol=0)
    assert torch.equal(measured.same_top, p.argmax(-1) == q.argmax(-1))
    plain = evaluate(model, ids, keep_ratio=ratio, prune_after=start)
    torch.testing.assert_close(measured.evaluation.nll, plain.nll, atol=1e-5, rtol=0)
    assert measured.evaluation.evictions == plain.evictions


@pytest.mark.parametrize("family", FAMILIES)
def test_an_uncompressed_row_does_not_diverge(family):
    [same] = divergence(tiny_model(family), random_ids(100), {1: {"keep_ratio": 1.0}}).values()
    assert float(same.kl.abs().max()) < 1e-12
    assert bool(same.same_top.all())


@settings(max_examples=8)
@given(seed=st.integers(0, 999), scale=st.floats(0, 3))
def test_divergence_is_never_negative_and_grows_from_zero(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(70, 32, dtype=torch.float64, generator=generator)
    moved = states + scale * torch.randn(70, 32, dtype=torch.float64, generator=generator)
    targets = torch.zeros(70, dtype=torch.int64)
    _, kl, same = compare(Head(tiny_model("llama")), states, {"moved": moved}, targets)["moved"]
    assert float(kl.min()) > -1e-12
    if scale == 0:
        assert float(kl.max()) < 1e-12
        assert bool(same.all())


def test_the_last_states_and_the_head_are_the_model_whatever_comes_after_its_layers():
    # Soft-capping, scaling of logits: the family's own code runs, so none of it has to be known.
    import transformers

    small = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None,
    }  # fmt: skip
    for name, extra in [
        ("Gemma2Config", {"final_logit_softcapping": 0.5}),
        ("GraniteConfig", {"logits_scaling": 4.0}),
        ("CohereConfig", {"logit_scale": 0.25}),
    ]:
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, name)(**small, **extra), dtype=torch.float64, attn_implementation="eager"
        ).eval()
        tokens, positions = random_ids(40), torch.arange(40)
        with torch.inference_mode():
            logits = model(tokens[None]).logits[0]
            states = last_states(private_copy(model, "eager"), tokens[None], positions, 40)[0]
            bare = model.get_output_embeddings()(states)
        torch.testing.assert_close(Head(model)(states), logits, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(bare, logits, rtol=1e-2)


def test_a_head_that_needs_more_than_the_last_state_is_refused():
    model = tiny_model("llama", seed=11)
    plain, calls = model.lm_head.forward, []

    def moody(states):
        calls.append(1)
        return plain(states) * len(calls)

    model.lm_head.forward = moody
    try:
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM does not make its logits"):
            Head(model)
    finally:
        del model.lm_head.forward


def test_the_callers_model_keeps_its_body():
    model, ids = tiny_model("llama"), random_ids(60)
    before = evaluate(model, ids, keep_ratio=0.5).nll
    Head(model)
    assert torch.equal(evaluate(model, ids, keep_ratio=0.5).nll, before)


def test_summary_pools_tokens_not_texts():
    def of(kl, same):
        return Divergence(None, torch.tensor(kl, dtype=torch.float64), torch.tensor(same))

    pooled = summary([of([0.0, 1.0], [True, True]), of([2.0, 3.0, 4.0], [False, True, False])])
    assert (pooled.mean, pooled.median, pooled.top1_agreement) == (2.0, 2.0, 0.6)
    assert pooled.p99 == pytest.approx(3.96)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no rows"),
        ({1: {"keep_ratio": 0.5, "method": "stepwise"}}, "method='stepwise': divergence is measured with"),
        ({1: {"keep_ratio": 0.5, "score_from": "start"}}, "score_from='start': divergence"),
        ({1: {"keep_ratio": 0.5}, 2: {"keep_ratio": 0.5, "prune_after": 40}}, r"effective prune_after of \[40, 50\]"),
        ({1: {"keep_ratio": 0.0}}, "keep_ratio=0.0 is outside"),
    ],
)
def test_rows_whose_divergence_has_no_meaning_are_refused_with_the_reason(rows, message):
    with pytest.raises(ValueError, match=message):
        divergence(tiny_model("llama"), random_ids(100), rows)
    with pytest.raises(ValueError, match="no divergences"):
        summary([])


@pytest.mark.parametrize("family", ["gpt_neox"])
def test_rows_that_share_phase_1_equal_rows_one_by_one(family):
    model, ids = tiny_model(family), random_ids(100, 5)
    rows = {
        "plain": {"keep_ratio": 1.0, "prune_after": 40},
        "random": {"keep_ratio": 0.5, "prune_after": 40, "policy": "random", "seed": 3},
        "later": {"keep_ratio": 0.5, "prune_after": 48, "positions": "cache"},
        "skipped": {"keep_ratio": 0.5, "prune_after": 40, "skip_layers": (0,)},
        "skipped, cache": {"keep_ratio": 0.5, "prune_after": 40, "skip_layers": (0,), "positions": "cache"},
        "plain again": {"keep_ratio": 1, "prune_after": 40, "policy": "random", "positions": "cache"},
        "budget": {"when": "fixed_budget", "budget": 40, "recent": 3},
        "once": {"keep_ratio": 0.5, "prune_after": 40, "when": "after_prefill"},
        "paper": {"keep_ratio": 0.5, "prune_after": 40, "score_from": "start"},
    }
    table = evaluate_rows(model, ids, rows)
    for key, row in rows.items():
        alone = evaluate(model, ids, **row)
        torch.testing.assert_close(table[key].nll, alone.nll, atol=1e-10 if family == "gpt_neox" else 1e-5, rtol=0)
        assert table[key].evictions == alone.evictions
        assert table[key].effective_prune_after == alone.effective_prune_after
    assert effective_prune_after(100, 40) == table["plain"].effective_prune_after
