"""Bad arguments are refused by name, with what is allowed, before any model runs."""

from __future__ import annotations

import math

import pytest
import torch

from knorm_core import NoEvictionError, UnsupportedModelError
from knorm_core.inputs.models import ModelNotFoundError
from knorm_core.latency import measure_cold_start, measure_contexts, measure_latency
from suites.families import VOCABULARY, random_ids

pytestmark = pytest.mark.fast

GOOD = {"keep_ratios": [0.5], "prune_after": 40, "new_tokens": 4, "repeats": 1, "warmup": 0}


@pytest.fixture
def never_run(tiny):
    def forward(*_):
        raise AssertionError("the model ran")

    hook = tiny.register_forward_pre_hook(forward)
    yield tiny
    hook.remove()


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("keep_ratios", [], ValueError, "keep_ratios is empty"),
        ("keep_ratios", "0.5", TypeError, "keep_ratios='0.5' is not a collection"),
        ("keep_ratios", 0.5, TypeError, "keep_ratios=0.5 is not a collection"),
        ("keep_ratios", [0.5, 1.5], ValueError, r"keep_ratio=1.5 is outside \(0, 1\]"),
        ("keep_ratios", [0.5, math.nan], ValueError, r"keep_ratio=nan is outside \(0, 1\]"),
        ("keep_ratios", ["0.5"], TypeError, "keep_ratio='0.5' is not a number"),
        ("keep_ratios", [0.5, 0.5], ValueError, r"keep_ratios=\[0.5, 0.5\] names one of them twice"),
        ("prune_after", 0, ValueError, "prune_after=0 is below 1"),
        ("prune_after", 40.0, TypeError, "prune_after=40.0 is not an integer"),
        ("new_tokens", 0, ValueError, "new_tokens=0 is below 1"),
        ("new_tokens", 500, ValueError, "with new_tokens=500 exceeds the model's 512 positions"),
        ("repeats", 0, ValueError, "repeats=0 is below 1"),
        ("repeats", True, TypeError, "repeats=True is not an integer"),
        ("warmup", -1, ValueError, "warmup=-1 is below 0"),
        ("seed", -1, ValueError, "seed=-1 is below 0"),
        ("compressor", "l2", TypeError, "compressor='l2' is not callable"),
        ("clock", 1.0, TypeError, "clock=1.0 is not callable"),
    ],
)
def test_measure_latency_refuses(never_run, argument, value, error, message):
    with pytest.raises(error, match=message):
        measure_latency(never_run, random_ids(40), **(GOOD | {argument: value}))


@pytest.mark.parametrize(
    ("input_ids", "error", "message"),
    [
        ([], ValueError, "input_ids is empty"),
        (torch.rand(40), TypeError, "input_ids has dtype torch.float32"),
        (torch.zeros(2, 40, dtype=torch.long), ValueError, "one text at a time"),
        ([VOCABULARY] * 40, ValueError, f"input_ids holds {VOCABULARY}"),
        ([1] * 10, ValueError, "input_ids has 10 tokens"),
    ],
)
def test_measure_latency_refuses_input(never_run, input_ids, error, message):
    with pytest.raises(error, match=message):
        measure_latency(never_run, input_ids, **GOOD)


def test_a_keep_ratio_that_would_never_evict_is_refused_unless_wanted(tiny):
    arguments = GOOD | {"prune_after": 100}
    with pytest.raises(NoEvictionError, match=r"keep_ratio=0.5 would never evict: 40 tokens .* Lower prune_after"):
        measure_latency(tiny, random_ids(40), **arguments)
    latency = measure_latency(tiny, random_ids(40), **arguments, allow_no_eviction=True)
    assert latency.row(0.5).evictions == 0


def test_a_model_whose_layers_all_slide_is_refused(sliding_model):
    with pytest.raises(UnsupportedModelError, match="every layer of the model has a sliding window"):
        measure_latency(sliding_model(0, 1, 2), random_ids(40), **GOOD)


def test_the_baseline_is_added_and_the_order_kept(tiny):
    arguments = GOOD | {"keep_ratios": iter([0.1, 0.5])}
    assert [row.keep_ratio for row in measure_latency(tiny, random_ids(40), **arguments)] == [1.0, 0.1, 0.5]
    arguments = GOOD | {"keep_ratios": [0.5, 1]}
    assert [row.keep_ratio for row in measure_latency(tiny, random_ids(40), **arguments)] == [0.5, 1]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"contexts": []}, ValueError, "contexts is empty"),
        ({"contexts": "512"}, TypeError, "contexts='512' is not a collection"),
        ({"contexts": [4]}, ValueError, "contexts=4 is below 5"),
        ({"contexts": [20]}, ValueError, "input_ids has 16 tokens"),
        ({"contexts": [60]}, ValueError, r"contexts=\[60\] with new_tokens=4 needs a prompt of 56"),
        ({"keep_ratios": []}, ValueError, "keep_ratios is empty"),
        ({"repeats": 0}, ValueError, "repeats=0"),
    ],
)
def test_measure_contexts_refuses(never_run, changed, error, message):
    arguments = {"contexts": [44], "keep_ratios": [0.5], "new_tokens": 4}
    with pytest.raises(error, match=message):
        measure_contexts(never_run, random_ids(40), **(arguments | changed))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"keep_ratios": [1.0]}, ValueError, "none below 1"),
        ({"prompt_tokens": 33}, ValueError, "prompt_tokens=33 is below 34"),
        ({"processes": 0}, ValueError, "processes=0 is below 1"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is not one of 'float64'"),
        ({"prompt_tokens": 100, "prune_after": 200}, NoEvictionError, "lower prune_after, or raise prompt_tokens"),
        ({"model": "no-such-model"}, ModelNotFoundError, "no-such-model"),
    ],
)
def test_measure_cold_start_refuses(monkeypatch, changed, error, message):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(error, match=message):
        measure_cold_start(**changed)
