"""A cell is evaluated with the model that it names, as it was loaded, whatever was done to one in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from knorm_core import evaluate
from knorm_core.inputs.loaded import is_as_loaded, loaded
from knorm_core.inputs.models import ModelNotFoundError, load_model, model_identity
from knorm_core.sweeps.cells import Bench
from knorm_core.sweeps.run import run_cells
from knorm_core.sweeps.store import Store
from suites.families import VOCABULARY
from suites.sweep.equality import equal

pytestmark = pytest.mark.fast


def test_another_configuration_of_the_same_weights_is_another_model(cells_of, tiny_folder, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(tiny_folder, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    [cell] = cells_of([{"keep_ratio": 0.5}])
    changed = dataclasses.replace(cell, model=str(other), **model_identity(other)._asdict())
    assert changed.weights == cell.weights
    assert changed.inputs({}) != cell.inputs({})
    assert Bench()(changed).ppl != Bench()(cell).ppl
    with pytest.raises(ModelNotFoundError, match=r"has a configuration of SHA-256 .* where the sweep was made"):
        Bench()(dataclasses.replace(cell, model=str(other)))


def test_a_cell_is_evaluated_with_the_model_and_the_precision_that_it_names(cells_of, tiny, store):
    # The same folder is in memory in another precision, and another cell asks for that one.
    [double] = cells_of([{"keep_ratio": 0.5, "prune_after": 40}], tokens=60)
    single = dataclasses.replace(double, dtype="float32")
    outcomes = list(run_cells([double, single, double], store=store))
    in_single = evaluate(load_model(double.model, torch.float32)[0], double.input_ids, **double.arguments)
    assert equal(outcomes[1].result(), in_single)
    assert not equal(outcomes[0].result(), in_single)
    assert [outcome.stored is None for outcome in outcomes] == [True, True, False]
    again = list(run_cells([single, double], store=Store(store.path)))
    assert all(outcome.stored for outcome in again)
    assert equal(again[0].result(), in_single)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.init.zeros_(model.lm_head.weight),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.ones(VOCABULARY))),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(2 * model.lm_head.weight)),
        lambda model: model.lm_head.weight.data.mul_(2),
        lambda model: np.multiply(values := model.lm_head.weight.detach().numpy(), 2, out=values),
        lambda model: model.lm_head.weight.data.copy_(model.lm_head.weight.flip(1)),
        lambda model: model.model.rotary_emb.inv_freq.mul_(2),
        lambda model: setattr(model.model.norm, "variance_epsilon", 1.0),
        lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
        lambda model: setattr(model.model.layers[0].mlp, "forward", torch.zeros_like),
        lambda model: model.model.norm.register_forward_hook(lambda module, given, made: 2 * made),
        lambda model: model.model.norm.register_forward_pre_hook(lambda module, given: (given[0] + 1,)),
        lambda model: torch.nn.utils.parametrizations.spectral_norm(model.lm_head),
    ],
    ids=[
        "written to",
        "converted",
        "added to",
        "replaced",
        "data",
        "numpy",
        "columns exchanged",
        "buffer",
        "attribute",
        "activation",
        "forward",
        "hook",
        "hook before",
        "parametrization",
    ],
)
def test_a_model_that_was_changed_in_memory_is_no_cells_model(change, cells_of, tiny_folder, store):
    [cell] = cells_of([{"keep_ratio": 0.5, "prune_after": 40, "policy": "high_norm"}], tokens=60)
    held = loaded(tiny_folder, "float32").model
    cell = dataclasses.replace(cell, dtype="float32")
    expected = Bench()(cell)
    with torch.no_grad():
        change(held)
    assert loaded(tiny_folder, "float32").model is not held
    [outcome] = run_cells([cell], store=store)
    assert equal(outcome.result(), expected)


def test_an_evaluation_leaves_a_model_as_it_was_loaded(cells_of, tiny):
    [cell] = cells_of([{"keep_ratio": 0.5, "prune_after": 40}], tokens=60)
    bench = Bench()
    for _ in range(2):
        bench(cell)
        evaluate(tiny, cell.input_ids, **cell.arguments, method="stepwise")
    assert is_as_loaded(tiny)
    assert bench.loaded == 1


@pytest.mark.parametrize("change", ["precision", "hook", "model"])
def test_what_changes_between_two_cells_of_a_run_changes_the_second_alone(change, cells_of, tiny_folder, store):
    [cell] = cells_of([{"keep_ratio": 1.0, "prune_after": 40}], tokens=60)
    cell = dataclasses.replace(cell, dtype="float32")
    held = loaded(tiny_folder, "float32").model
    run = run_cells([cell, cell], store=store)
    first = next(run).result()
    with contextlib.ExitStack() as left:
        if change == "precision":
            left.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("medium")
            second = next(run)
            assert second.stored is None  # it is no longer the same cell
        elif change == "hook":
            hook = torch.nn.modules.module.register_module_forward_hook(
                lambda module, given, made: 1.5 * made if isinstance(module, torch.nn.Linear) else None
            )
            left.callback(hook.remove)
            second = next(run)
            assert second.stored is None
            assert not equal(second.result(), first)
        else:
            other = dataclasses.replace(cell, arguments={"keep_ratio": 0.5, "prune_after": 40})
            expected = Bench()(other)
            run = run_cells([cell, other])
            assert equal(next(run).result(), first)
            with torch.no_grad():
                held.lm_head.weight.mul_(2)
            assert equal(next(run).result(), expected)
    [after] = run_cells([cell], store=Store(store.path))
    assert equal(after.result(), first)
