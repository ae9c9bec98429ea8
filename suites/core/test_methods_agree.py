"""One pass equals stepwise, for every setting: the definition is the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from knorm_core import evaluate, evaluate_table
from suites.core.questions import REPLAYED, UNROTATING, questions, text_for
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

# LayerNorm has no float32 island, nor have learned positions: 2e-14 was the most that was seen of these families.
# Llama-style RMSNorm rounds to float32 even in a float64 model: mostly 1e-14 as well, but where float64 noise
# straddles such a step a single token parts by up to 4e-6.
PER_TOKEN = dict.fromkeys(("gpt_neox", "gpt2", "opt"), 1e-10)
RMSNORM_PER_TOKEN, RMSNORM_PPL = 1e-5, 1e-6


def assert_equal(family, first, second):
    apart = float((first.nll - second.nll).abs().max())
    assert apart <= PER_TOKEN.get(family, RMSNORM_PER_TOKEN)
    assert first.ppl == pytest.approx(second.ppl, rel=PER_TOKEN.get(family, RMSNORM_PPL))
    assert first.evictions == second.evictions
    assert (first.mean_cache, first.peak_cache) == (second.mean_cache, second.peak_cache)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen3"])
@settings(max_examples=15)
@given(question=questions())
def test_one_pass_equals_stepwise(family, question):
    length, seed, arguments = question
    model, ids = tiny_model(family), text_for(arguments, length, seed)
    evaluation = evaluate(model, ids, **arguments)
    assert_equal(family, evaluation, evaluate(model, ids, method="stepwise", **arguments))


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@settings(max_examples=10)
@given(question=questions(longest=60, policies=REPLAYED + UNROTATING, positions=("absolute", "cache", "rerotated")))
def test_policies_that_look_at_the_cache_are_played_forward_exactly(family, question):
    length, seed, arguments = question
    model, ids = tiny_model(family), text_for(arguments, length, seed)
    evaluation = evaluate(model, ids, **arguments)
    assert evaluation.method == "onepass"
    assert_equal(family, evaluation, evaluate(model, ids, method="stepwise", **arguments))


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen3"])
@pytest.mark.parametrize("score_from", ["phase2", "start"])
def test_a_shared_table_equals_its_rows_one_by_one(family, score_from):
    model, ids = tiny_model(family), random_ids(300, 1)
    ratios, modes = (1.0, 0.9, 0.5), ("absolute", "cache")
    table = evaluate_table(model, ids, keep_ratios=ratios, positions=modes, prune_after=64, score_from=score_from)
    assert list(table) == [(mode, ratio) for mode in modes for ratio in ratios]
    for (mode, ratio), row in table.items():
        alone = evaluate(model, ids, keep_ratio=ratio, positions=mode, prune_after=64, score_from=score_from)
        assert_equal(family, row, alone)


def test_blocks_longer_and_shorter_than_the_sawtooth_agree_with_stepwise():
    # More than two blocks of queries in phase 2, with evictions inside, across and at the edges of blocks.
    model, ids = tiny_model("gpt_neox"), random_ids(380, 2)
    for ratio in (0.99, 0.5):
        evaluation = evaluate(model, ids, keep_ratio=ratio, prune_after=100)
        assert_equal("gpt_neox", evaluation, evaluate(model, ids, keep_ratio=ratio, prune_after=100, method="stepwise"))


def test_models_that_show_nothing_would_prove_nothing():
    # The promise of `tiny_model`: policy, positions and keep ratio change the loss by far more than 1e-5.
    for family in ("gpt_neox", "llama", "qwen3"):
        model, ids = tiny_model(family), random_ids(90, 3)
        base = evaluate(model, ids, keep_ratio=0.5, prune_after=40).nll
        changes = {"positions": "cache", "keep_ratio": 0.9, "skip_layers": (1,), "sinks": 4, "recent": 8}
        others = [{name: value} for name, value in changes.items()]
        for other in others + [{"policy": policy} for policy in ("high_norm", *REPLAYED, *UNROTATING)]:
            changed = evaluate(model, ids, **({"keep_ratio": 0.5, "prune_after": 40} | other)).nll
            assert float((changed - base).abs().max()) > 1e-2, (family, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float64(dtype):
    ids = random_ids(80, 4)
    exact = evaluate(tiny_model("gpt_neox"), ids, keep_ratio=1.0, prune_after=40).ppl
    rough = evaluate(tiny_model("gpt_neox", dtype), ids, keep_ratio=1.0, prune_after=40).ppl
    # bfloat16 holds 8 significant bits
    assert rough == pytest.approx(exact, rel={torch.float32: 1e-4}.get(dtype, 0.1))
