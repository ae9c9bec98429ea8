"""The float32 copy of the breadth tables: another product of matrices, the same model."""

from __future__ import annotations

import pytest
import torch

from knorm_core import evaluate
from knorm_core.experiments import single_precision
from knorm_core.experiments.single_precision import in_single_precision
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast


def linear_layers(model):
    return {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_losses_are_those_of_float32_and_the_model_is_left_as_it_was(family):
    model, ids = tiny_model(family), random_ids(120)
    single = in_single_precision(model)
    assert model.dtype == torch.float64
    assert linear_layers(model) == {torch.nn.Linear}
    assert single.dtype == torch.float32
    arguments = {"keep_ratio": 0.5, "prune_after": 40, "policy": "newest"}  # no last bit decides who stays
    ours, plain = (evaluate(each, ids, **arguments).nll for each in (single, tiny_model(family, torch.float32)))
    assert float((ours - plain).abs().max()) < 1e-5


def test_without_onednn_layers_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(single_precision, "_has_onednn", lambda _: False)
    assert linear_layers(in_single_precision(tiny_model("llama"))) == {torch.nn.Linear}


def test_tied_weights_stay_tied():
    model = tiny_model("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    single = in_single_precision(model)
    assert single.lm_head.weight is single.model.embed_tokens.weight
