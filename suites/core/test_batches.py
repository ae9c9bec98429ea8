"""Texts of equal length, evaluated together: the same numbers as one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core import SlowFallbackWarning, evaluate, evaluate_batch, l2_compress
from knorm_core.methods import onepass
from suites.core.questions import questions, text_for
from suites.core.test_methods_agree import assert_equal
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

HALF = {"keep_ratio": 0.5, "prune_after": 40}


def texts(batch, length, seed=0):
    return torch.stack([random_ids(length, seed + row) for row in range(batch)])


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batches that go through the model."""
    seen = []
    run = onepass.run
    monkeypatch.setattr(onepass, "run", lambda model, ids, *rest: seen.append(len(ids)) or run(model, ids, *rest))
    return seen


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "gemma2"])
@settings(max_examples=5)
@given(question=questions(longest=70), batch=st.integers(1, 3))
def test_a_batch_equals_its_texts_one_by_one(family, question, batch):
    length, seed, arguments = question
    if family == "gemma2":
        arguments["skip_layers"] = ()
    model, ids = tiny_model(family), torch.stack([text_for(arguments, length, seed + row) for row in range(batch)])
    together = evaluate_batch(model, ids, **arguments)
    assert len(together) == batch
    for text, evaluation in zip(ids, together, strict=True):
        assert_equal(family, evaluation, evaluate(model, text, **arguments))


def test_rerotated_survivors_move_in_every_text_of_a_batch():
    model, ids = tiny_model("llama"), texts(3, 80)
    arguments = HALF | {"positions": "rerotated"}
    for text, evaluation in zip(ids, evaluate_batch(model, ids, **arguments), strict=True):
        assert_equal("llama", evaluation, evaluate(model, text, **arguments))


def test_on_a_cpu_short_texts_go_together_and_long_ones_one_by_one(passes):
    model = tiny_model("gpt_neox")
    evaluate_batch(model, texts(3, 256), keep_ratio=0.5)
    assert passes == [3]
    evaluate_batch(model, texts(2, 257), keep_ratio=0.5)
    assert passes[1:] == [1, 1]
    evaluate_batch(model, texts(25, 100), keep_ratio=0.5)  # 2,048 tokens at a time
    assert passes[3:] == [20, 5]


def test_what_cannot_go_together_goes_one_by_one_with_the_same_arguments():
    ids = texts(2, 60)
    with pytest.warns(SlowFallbackWarning, match="FalconForCausalLM") as said:
        slow = evaluate_batch(tiny_model("falcon"), ids, **HALF)
    assert [warning.filename for warning in said] == [__file__]
    assert {evaluation.method for evaluation in slow} == {"stepwise"}
    model = tiny_model("gpt_neox")
    for arguments in ({"method": "stepwise"}, {"compressor": l2_compress}):
        results = evaluate_batch(model, ids, **HALF, **arguments)
        assert [evaluation.method for evaluation in results] == ["stepwise"] * 2
        assert torch.equal(results[1].nll, evaluate(model, ids[1], **HALF, method="stepwise").nll)


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (random_ids(60), HALF, r"input_ids has shape \(60,\): give \(batch, n\)"),
        (torch.zeros(0, 60, dtype=torch.int64), HALF, r"shape \(0, 60\)"),
        (texts(2, 33), HALF, "33 tokens"),
        (torch.stack([random_ids(60), torch.full((60,), 97)]), HALF, "holds 97"),
        (texts(2, 60), {"keep_ratio": 0}, "keep_ratio=0"),
        (texts(2, 60), {"keep_ratio": 0.5, "prune_after": 59, "adjust": False}, "phase 2 of a text of 60 tokens empty"),
    ],
)
def test_bad_input_is_refused_as_evaluate_refuses_it(ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_batch(tiny_model("gpt_neox"), ids, **arguments)
