"""A sweep in one process: the numbers of `evaluate`, at the cost of a table, and never computed twice."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from knorm_core import evaluate, evaluate_rows, l2_compress
from knorm_core.experiments.codecs import CHOICES, DIVERGENCE, FLAG, HEAD
from knorm_core.experiments.divergence import divergence
from knorm_core.experiments.norm_attention import HeadObservation
from knorm_core.experiments.precision import evaluate_choices
from knorm_core.inputs.models import ModelNotFoundError, load_model
from knorm_core.policies import TOVA
from knorm_core.sweeps.cells import Bench, sweep_cells
from knorm_core.sweeps.codec import EVALUATION, each, remember
from knorm_core.sweeps.environment import environment
from knorm_core.sweeps.outcome import CellFailedError
from knorm_core.sweeps.run import run_cells, with_progress
from knorm_core.sweeps.store import Store, StoreWarning, canonical
from suites.families import random_ids, tiny_model
from suites.sweep.equality import equal

pytestmark = pytest.mark.fast

ROWS = [
    {"keep_ratio": ratio, "positions": mode, "prune_after": 40}
    for mode, ratio in itertools.product(("absolute", "cache"), (1.0, 0.7, 0.3))
]
POISON = {"keep_ratio": 0.5, "prune_after": 0}


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
