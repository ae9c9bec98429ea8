"""A sweep in one process: the numbers of `evaluate`, at the cost of a table, and never computed twice."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import knorm_core
from knorm_core import evaluate, evaluate_rows, l2_compress
from knorm_core.experiments.codecs import CHOICES, DIVERGENCE, FLAG, HEAD
from knorm_core.experiments.divergence import divergence
from knorm_core.experiments.norm_attention import HeadObservation
from knorm_core.experiments.precision import evaluate_choices
from knorm_core.inputs.loaded import is_as_loaded, loaded
from knorm_core.inputs.models import ModelNotFoundError, load_model, model_identity
from knorm_core.policies import TOVA
from knorm_core.sweeps.cells import Bench, code_files, environment, sweep_cells
from knorm_core.sweeps.codec import EVALUATION, each, remember
from knorm_core.sweeps.outcome import CellFailedError
from knorm_core.sweeps.run import run_cells, with_progress
from knorm_core.sweeps.store import Store, StoreWarning, canonical
from suites.families import VOCABULARY, random_ids, tiny_model

pytestmark = pytest.mark.fast

ROWS = [
    {"keep_ratio": ratio, "positions": mode, "prune_after": 40}
    for mode, ratio in itertools.product(("absolute", "cache"), (1.0, 0.7, 0.3))
]
POISON = {"keep_ratio": 0.5, "prune_after": 0}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results.sqlite")


@pytest.fixture
def passes(tiny, monkeypatch):
    """``passes(action)``: its value, and the forward passes of a tiny model that it took."""
    seen = []
    forward = type(tiny).forward

    @functools.wraps(forward)
    def counted(*arguments, **options):
        seen.append(1)
        return forward(*arguments, **options)

    # Not a hook: a model with a hook is no longer the one that was loaded.
    monkeypatch.setattr(type(tiny), "forward", counted)

    def during(action):
        seen.clear()
        return action(), len(seen)

    for tokens in (60, 120):
        evaluate(tiny, random_ids(tokens), keep_ratio=0.5)  # a model is probed once for each length
    assert seen
    return during


# --- numbers


def equal(first, second):
    """Whether two results are equal to the last bit, whatever they are made of."""
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
        )
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return first == second and type(first) is type(second)


def test_a_sweep_gives_the_numbers_of_evaluate_at_the_cost_of_a_table(cells_of, tiny, store, passes):
    cells = cells_of(ROWS, texts=2)
    tables, cost = passes(
        lambda: [evaluate_rows(tiny, random_ids(120, text), dict(enumerate(ROWS))) for text in range(2)]
    )
    outcomes, paid = passes(lambda: list(run_cells(cells, store=store)))
    assert [outcome.cell for outcome in outcomes] == cells
    assert paid == cost == 2 * (1 + 5)  # phase 1, and every row but the second uncompressed one
    for outcome, (table, index) in zip(outcomes, itertools.product(tables, range(len(ROWS))), strict=True):
        assert outcome.stored is None
        assert equal(outcome.result(), table[index])


def test_what_is_stored_is_not_computed_again_and_is_the_same_to_the_last_bit(cells_of, tiny, store, passes):
    cells = cells_of(ROWS)
    first = list(run_cells(cells, store=store))
    second, paid = passes(lambda: list(run_cells(cells_of(ROWS), store=Store(store.path))))
    assert paid == 0
    assert all(outcome.stored for outcome in second)
    assert all(equal(computed.result(), stored.result()) for computed, stored in zip(first, second, strict=True))


def test_a_sweep_that_was_stopped_goes_on_where_it_was(cells_of, tiny, store, passes):
    for _, outcome in zip(range(4), run_cells(cells_of(ROWS, texts=2), store=store), strict=False):
        assert outcome.stored is None
    outcomes, paid = passes(lambda: list(run_cells(cells_of(ROWS, texts=2), store=store)))
    assert [outcome.stored is not None for outcome in outcomes] == [True] * 4 + [False] * 8
    assert paid == (1 + 2) + (1 + 5)


def test_a_cell_that_fails_is_reported_with_its_name_and_does_not_stop_the_others(cells_of, tiny, store):
    outcomes = list(run_cells(cells_of([ROWS[1], POISON, ROWS[2]]), store=store))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    with pytest.raises(
        CellFailedError, match=r"tiny llama on text 0 \(keep_ratio=0.5, prune_after=0, .*: ValueError: prune_"
    ):
        outcomes[1].result()
    again = list(run_cells(cells_of([POISON]), store=store))  # no failure is ever stored
    assert isinstance(again[0].error, ValueError)


def test_stepwise_cells_and_any_iterable_of_layers_are_evaluated_too(cells_of, tiny):
    row = {"keep_ratio": 0.5, "prune_after": 40, "method": "stepwise", "skip_layers": iter([0])}
    [outcome] = run_cells(cells_of([row], tokens=60))
    assert equal(outcome.result(), evaluate(tiny, random_ids(60), **(row | {"skip_layers": [0]})))


def test_the_model_is_loaded_once_for_all_texts_and_checked(cells_of, tiny_folder):
    bench, (model, _) = Bench(), load_model(tiny_folder)
    cells = cells_of(ROWS[:2], texts=2, tokens=60)
    assert all(equal(bench(cell), evaluate(model, cell.input_ids, **cell.arguments)) for cell in cells)
    assert bench.loaded == 1
    with pytest.raises(ModelNotFoundError, match=r"weights of SHA-256 .* here, and 0000"):
        bench(dataclasses.replace(cells[0], weights="0" * 64))


# --- what a result is found by


def test_every_input_changes_the_key(cells_of):
    [cell] = cells_of([{"keep_ratio": 0.5}])
    around = environment("cpu")
    others = [
        cell,
        *(dataclasses.replace(cell, **{name: "0" * 64}) for name in ("weights", "tokenizer", "dtype")),
        dataclasses.replace(cell, input_ids=random_ids(120, 7)),
        dataclasses.replace(cell, input_ids=cell.input_ids[:-1]),
        *(
            dataclasses.replace(cell, arguments={**cell.arguments, **changed})
            for changed in (
                {"keep_ratio": 0.25}, {"prune_after": 99}, {"positions": "cache"},
                {"policy": "random"}, {"policy": "random", "seed": 1},
                {"skip_layers": (1,)}, {"when": "after_prefill"}, {"adjust": False}, {"score_from": "start"},
                {"method": "stepwise"}, {"budget": 9}, {"recent": 2}, {"sinks": 2},
                {"first_eviction_after": 1}, {"policy": TOVA()},
                {"policy": "suites.core.own_policies:TOVA"}, {"keep_ratio": [0.5, 0.25]},
            )
        ),
    ]  # fmt: skip
    texts = [canonical(other.inputs(around)) for other in others]
    texts += [canonical(cell.inputs({**around, name: "other"})) for name in around]
    assert set(around) == {"knorm_core", "torch", "transformers", "device", "threads", "switches"}
    assert len(set(texts)) == len(texts) == 21 + 8


def test_names_and_defaults_do_not_change_the_key(cells_of):
    [cell] = cells_of([{"keep_ratio": 0.5}])
    moved = dataclasses.replace(
        cell, model="elsewhere", text="renamed", arguments={"policy": "low_norm", "skip_layers": (), "keep_ratio": 0.5}
    )
    assert canonical(moved.inputs({})) == canonical(cell.inputs({}))


def test_a_policy_without_identity_is_evaluated_and_never_stored_and_that_is_said(cells_of, store, tiny):
    class Closure(TOVA):
        """Made in a function, so nobody else can import it."""

    rows = [{"keep_ratio": 0.5, "prune_after": 40, "policy": policy} for policy in (Closure(), TOVA())]
    with pytest.warns(StoreWarning, match="results of policy Closure are not stored: it has no identity") as said:
        outcomes = [outcome for _ in "ab" for outcome in run_cells(cells_of(rows), store=store)]
    assert len(said) == 1
    assert [outcome.stored is not None for outcome in outcomes] == [False, False, False, True]
    assert len({tuple(outcome.result().nll.tolist()) for outcome in outcomes}) == 1


@contextlib.contextmanager
def low_matmul_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "switched", [low_matmul_precision, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["matmul", "autocast"]
)
def test_what_was_computed_under_another_switch_of_torch_is_not_looked_up(switched, cells_of, tiny, tmp_path):
    store = Store(tmp_path / "results.sqlite")
    list(run_cells(cells_of([{"keep_ratio": 0.5}]), store=store))
    with switched():
        [outcome] = run_cells(cells_of([{"keep_ratio": 0.5}]), store=store)
        assert outcome.stored is None
    [outcome] = run_cells(cells_of([{"keep_ratio": 0.5}]), store=store)
    assert outcome.stored is not None


def test_threads_are_part_of_the_environment():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert environment("cpu")["threads"] == 2
    finally:
        torch.set_num_threads(before)


def imported_by(path):
    """The sources of this package that a source imports, anywhere in it."""
    root = Path(knorm_core.__file__).parent
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("knorm_core"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                place = root.joinpath(*name.split(".")[1:])
                if place != root:
                    yield from filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py"))


def test_every_source_that_a_result_may_depend_on_is_part_of_the_code_version():
    root = Path(knorm_core.__file__).parent
    reached, waiting = set(), [root / "sweeps" / "cells.py", *(root / "experiments").glob("*.py")]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += imported_by(path)
    assert {"evaluator.py", "onepass.py", "stepwise.py", "tova.py", "models.py"} <= {path.name for path in reached}
    # A sweep is the way to a result and an interval a form for it: neither decides a number that is stored.
    assert {path.parent.name for path in reached - set(code_files())} == {"sweeps", "results"}


def test_a_compressor_cannot_go_into_a_cell(cells_of):
    with pytest.raises(
        TypeError, match="cannot go into a cell: results are found again by what they were computed from"
    ):
        cells_of([{"keep_ratio": 0.5, "compressor": l2_compress}])


def test_an_argument_that_json_does_not_hold_is_that_cells_failure(cells_of, tiny, store):
    [outcome] = run_cells(cells_of([{"keep_ratio": 0.5, "seed": object()}]), store=store)
    assert isinstance(outcome.error, TypeError)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"keep_ratio": 0.3}, {"keep_ratio": np.float32(0.3)}),
        ({"keep_ratio": 0.5}, {"keep_ratio": Fraction(1, 2)}),
        ({"keep_ratio": 1.0}, {"keep_ratio": 1}),
        ({"keep_ratio": 0.5, "prune_after": 40}, {"keep_ratio": 0.5, "prune_after": np.int64(40)}),
        ({"keep_ratio": 0.5, "skip_layers": (0, 1)}, {"keep_ratio": 0.5, "skip_layers": np.array([1, 0, 1])}),
    ],
)
def test_what_means_the_same_to_evaluate_is_found_again(cells_of, tiny, store, passes, first, second):
    [computed] = run_cells(cells_of([first]), store=store)
    [again], taken = passes(lambda: list(run_cells(cells_of([second]), store=store)))
    assert taken == 0
    assert again.result().ppl == computed.result().ppl == evaluate(tiny, random_ids(120, 0), **second).ppl
    [as_int32] = cells_of([first])
    as_int32 = dataclasses.replace(as_int32, input_ids=as_int32.input_ids.int())
    assert as_int32.inputs({}) == cells_of([second])[0].inputs({})


@pytest.mark.parametrize("wrong", [{"skip_layers": [0.5]}, {"skip_layers": "0"}, {"keep_ratio": math.nan}])
def test_what_evaluate_refuses_is_not_answered_from_the_store(cells_of, tiny, store, wrong):
    list(run_cells(cells_of([{"keep_ratio": 0.5, "skip_layers": [0]}, {"keep_ratio": 0.5}]), store=store))
    row = {"keep_ratio": 0.5, **wrong}
    [outcome] = run_cells(cells_of([row]), store=store)
    with pytest.raises((TypeError, ValueError)) as refused:
        evaluate(tiny, random_ids(120, 0), **row)
    assert str(outcome.error) == str(refused.value)


def test_a_third_is_not_the_decimal_that_comes_near_it(cells_of):
    third, decimal = cells_of([{"keep_ratio": Fraction(1, 3)}, {"keep_ratio": 1 / 3}])
    assert canonical(third.inputs({})) != canonical(decimal.inputs({}))


def test_a_title_that_is_not_utf_8_is_stored_too(cells_of, tiny, store):
    [cell] = cells_of([{"keep_ratio": 0.5}])
    cell = dataclasses.replace(cell, text="caf\udce9")  # as a file's name comes from os.listdir
    for _ in range(2):
        [outcome] = run_cells([cell], store=store)
    assert outcome.result()
    assert len(store.reused) == 1


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
            run = run_cells([cell, cell])
            assert equal(next(run).result(), first)
            with torch.no_grad():
                held.lm_head.weight.mul_(2)
            assert equal(next(run).result(), first)
    [after] = run_cells([cell], store=Store(store.path))
    assert equal(after.result(), first)


@pytest.mark.parametrize("switch", ["function mode", "hook", "variable", "backend", "denormals"])
def test_a_switch_of_the_process_is_part_of_the_environment(switch, monkeypatch):
    before = environment("cpu")
    with contextlib.ExitStack() as left:
        if switch == "function mode":
            left.enter_context(torch.overrides.BaseTorchFunctionMode())
        elif switch == "hook":
            left.callback(torch.nn.modules.module.register_module_forward_pre_hook(print).remove)
        elif switch == "variable":
            monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
        elif switch == "backend":
            products = torch.backends.mkldnn.matmul if hasattr(torch.backends.mkldnn, "matmul") else None
            if not hasattr(products, "fp32_precision"):
                pytest.skip("this torch has one switch for all backends")
            left.callback(setattr, products, "fp32_precision", products.fp32_precision)
            products.fp32_precision = "bf16"
        else:
            if not torch.set_flush_denormal(True):
                pytest.skip("this processor does not flush denormal numbers")
            left.callback(torch.set_flush_denormal, False)
        assert environment("cpu") != before
    monkeypatch.undo()
    assert environment("cpu") == before


# --- how results are stored


@pytest.fixture(scope="module")
def results(tiny):
    rows = dict(enumerate(ROWS[:3]))
    ids = random_ids(90)
    sliding = evaluate(tiny_model("qwen3_sliding_20"), ids, keep_ratio=0.5, prune_after=40, skip_layers=(0,))
    return [
        ("evaluation", EVALUATION, [sliding, sliding]),
        ("divergence", DIVERGENCE, list(divergence(tiny, ids, rows).values())),
        ("choices", CHOICES, list(evaluate_choices(tiny, ids, rows).values())),
        ("flags", FLAG, [True, False]),
        (
            "heads",
            HEAD,
            [HeadObservation(0, 1, 2, -0.1, math.pi, 1e-300, 0.1 + 0.2, 7.0, *(1 / n for n in range(3, 9)))],
        ),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_a_result_is_stored_to_the_last_bit_whatever_its_kind(kind, results, store):
    name, codec, values = results[kind]
    assert values
    computed = []

    def compute():
        computed.append(name)
        return values

    for _ in range(2):
        assert equal(remember(store, name, {"what": name}, compute, each(codec)), values)
    assert computed == [name]
    assert len(store.reused) == 1
    assert remember(None, name, {}, compute, each(codec)) is values


# --- making and showing sweeps


def test_a_sweep_is_every_combination_a_text_at_a_time(tiny_folder):
    cells = sweep_cells(
        [tiny_folder], ["embedded-articles"], keep_ratios=[1.0, 0.5], policies=["low_norm", "newest"],
        max_eval_tokens=60, prune_after=40,
    )  # fmt: skip
    assert len(cells) == 4 * 4
    assert [cell.text for cell in cells[:5]] == ["embedded-articles: article-1"] * 4 + ["embedded-articles: article-2"]
    assert [tuple(cell.arguments.values()) for cell in cells[:4]] == [
        (1.0, "absolute", "low_norm", 40), (0.5, "absolute", "low_norm", 40),
        (1.0, "absolute", "newest", 40), (0.5, "absolute", "newest", 40),
    ]  # fmt: skip


def test_every_cell_of_a_sweep_skips_the_layers_of_an_iterator(tiny_folder):
    layers = (layer for layer in (0, 1))
    cells = sweep_cells(
        [tiny_folder], ["embedded-articles"], keep_ratios=[0.5, 0.3], max_eval_tokens=60, skip_layers=layers
    )
    assert [cell.arguments["skip_layers"] for cell in cells] == [[0, 1]] * 8


def test_progress_is_plain_lines_where_there_is_no_terminal(cells_of, tiny):
    file = io.StringIO()
    cells = cells_of([ROWS[1], POISON, ROWS[2]], tokens=60)
    assert len(list(with_progress(run_cells(cells, progress=False), 3, file))) == 3
    # The oldest rich ends with an empty line.
    assert file.getvalue().rstrip().splitlines() == [
        "knorm: 0 of 3 cells, 0 from the store, 0 failed",
        "knorm: 3 of 3 cells, 0 from the store, 1 failed",
    ]


@pytest.mark.parametrize("progress", [True, False])
def test_a_sweep_shows_how_far_it_is_and_its_totals_unless_it_is_told_not_to(progress, cells_of, store, capsys):
    cells = cells_of(ROWS[1:3], tokens=60)
    list(run_cells(iter(cells[:1]), store=store, progress=False))
    list(run_cells(iter(cells), store=store, **({} if progress else {"progress": False})))
    lines = capsys.readouterr().err.rstrip().splitlines()
    expected = ["knorm: 0 of 2 cells, 0 from the store, 0 failed", "knorm: 2 of 2 cells, 1 from the store, 0 failed"]
    assert lines == (expected if progress else [])
