"""Linear layers by oneDNN: another product of matrices, the same model."""

from __future__ import annotations

import copy

import pytest
import torch

from knorm_core import evaluate
from knorm_core.inputs import onednn
from knorm_core.inputs.onednn import multiply_with_onednn
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast


def linear_layers(model):
    return {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)}


def by_onednn(model):
    model = copy.deepcopy(model)
    multiply_with_onednn(model)
    return model


@pytest.mark.skipif(not onednn.has_onednn(), reason="this PyTorch has no product of oneDNN's")
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_losses_are_those_of_float32(family):
    ids = random_ids(120)
    plain = tiny_model(family, torch.float32)
    model = by_onednn(plain)
    assert linear_layers(model) == {onednn._OneDNNLinear}
    arguments = {"keep_ratio": 0.5, "prune_after": 40, "policy": "newest"}  # no last bit decides who stays
    losses = [evaluate(each, ids, **arguments).nll for each in (model, plain)]
    assert float((losses[0] - losses[1]).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_another_precision_layers_stay_what_they_are(dtype):
    assert linear_layers(by_onednn(tiny_model("llama", dtype))) == {torch.nn.Linear}


def test_without_onednn_layers_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(onednn, "has_onednn", lambda: False)
    assert linear_layers(by_onednn(tiny_model("llama", torch.float32))) == {torch.nn.Linear}


def test_tied_weights_stay_tied():
    model = copy.deepcopy(tiny_model("llama", torch.float32))
    model.lm_head.weight = model.model.embed_tokens.weight
    model = by_onednn(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
