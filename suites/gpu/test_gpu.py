"""On a GPU: the same numbers as on the CPU, in every precision, and the same float64 baseline.

KNORM_TEST_DEVICE names another device than "cuda"; "elsewhere" is a stand-in that any machine has.
"""

from __future__ import annotations

import copy

import pytest
import torch

from knorm_core import (
    POLICIES,
    SlowFallbackWarning,
    evaluate,
    evaluate_batch,
    evaluate_table,
    fit_q_filters,
    l2_compress,
)
from knorm_core.experiments.divergence import divergence
from knorm_core.plugin.inputs import TEST_DEVICE
from knorm_core.policies import LagKV
from suites.families import PROMISED, SLOW, random_ids, tiny_model
from suites.goldens.test_embedded_model import MODES, RATIOS, SAMPLES, check_baseline
from suites.gpu import elsewhere

if TEST_DEVICE == elsewhere.NAME:
    elsewhere.install()


HAS_DEVICE = TEST_DEVICE != "cuda" or torch.cuda.is_available()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_DEVICE, reason="torch sees no CUDA device on this machine"),
    *([pytest.mark.fast] if HAS_DEVICE else []),
]

methods = pytest.mark.parametrize("method", ["onepass", "stepwise"])
HALF = {"keep_ratio": 0.5, "prune_after": 40}


def on_device(family, dtype=torch.float64):
    return copy.deepcopy(tiny_model(family, dtype)).to(TEST_DEVICE)


def test_a_tensor_there_and_one_of_the_cpu_do_not_meet():
    there, here = torch.arange(3, device=TEST_DEVICE), torch.arange(3)
    meetings = (lambda: there + here, lambda: here[there], lambda: torch.stack([here, there]), lambda: there.numpy())
    for meeting in meetings:
        with pytest.raises((RuntimeError, TypeError)):
            meeting()
    assert (there + torch.tensor(1)).tolist() == there[here + 0].add(1).tolist() == [1, 2, 3]


@methods
@pytest.mark.parametrize("positions", ["absolute", "cache"])
@pytest.mark.parametrize("family", PROMISED)
def test_losses_are_those_of_the_cpu(family, positions, method):
    ids = random_ids(90)
    arguments = {"positions": positions, "method": method, **HALF}
    there, here = (evaluate(model, ids, **arguments) for model in (on_device(family), tiny_model(family)))
    assert there.nll.device.type == "cpu"
    assert there.evictions == here.evictions
    torch.testing.assert_close(there.nll, here.nll, rtol=0, atol=1e-5)
    assert there.ppl == pytest.approx(here.ppl, rel=1e-6)


@pytest.mark.parametrize("family", SLOW)
def test_what_one_pass_cannot_serve_falls_back_there_too(family):
    ids, dtype = random_ids(70), torch.float32  # transformers' experts take no float64 there
    with pytest.warns(SlowFallbackWarning, match=SLOW[family]):
        there = evaluate(on_device(family, dtype), ids, **HALF)
    here = evaluate(tiny_model(family, dtype), ids, method="stepwise", **HALF)
    torch.testing.assert_close(there.nll, here.nll, rtol=0, atol=1e-3)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "q_filters"])  # it is fitted
def test_every_policy_and_schedule_evicts_the_same_keys_there(policy):
    model, ids = on_device("gpt_neox"), random_ids(90)
    if policy == "lagkv":
        policy = LagKV(lag=5)  # so that there are partitions
    for arguments in (HALF, {"when": "fixed_budget", "budget": 40, "recent": 5}, HALF | {"positions": "rerotated"}):
        if policy == "pyramidkv" and "positions" in arguments:
            continue  # its layers differ in length
        there, here = (evaluate(either, ids, policy=policy, **arguments) for either in (model, tiny_model("gpt_neox")))
        torch.testing.assert_close(there.nll, here.nll, rtol=0, atol=1e-5)


def test_q_filters_are_fitted_and_evaluated_there():
    model, ids, text = on_device("gpt_neox"), random_ids(90), random_ids(80, 7)
    there, here = (fit_q_filters(either, [text]) for either in (model, tiny_model("gpt_neox")))
    torch.testing.assert_close(there.directions.vectors, here.directions.vectors, rtol=0, atol=1e-6)
    losses = [evaluate(either, ids, policy=here, **HALF).nll for either in (model, tiny_model("gpt_neox"))]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)


@methods
@pytest.mark.parametrize("family", PROMISED)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.2)])
def test_lower_precisions_stay_near_float64(family, dtype, rel, method):
    ids = random_ids(90)
    rough = evaluate(on_device(family, dtype), ids, keep_ratio=1.0, prune_after=40, method=method).nll.mean()
    exact = evaluate(tiny_model(family), ids, keep_ratio=1.0, prune_after=40).nll.mean()
    assert float(rough) == pytest.approx(float(exact), rel=rel)


@pytest.mark.parametrize("family", PROMISED)
def test_a_batch_equals_its_texts_one_by_one(family):
    model, ids = on_device(family), torch.stack([random_ids(300, seed) for seed in range(3)])
    for text, evaluation in zip(ids, evaluate_batch(model, ids, **HALF), strict=True):
        torch.testing.assert_close(evaluation.nll, evaluate(model, text, **HALF).nll, rtol=0, atol=1e-5)


def test_tables_divergence_and_compressors_run_there():
    model, ids = on_device("llama"), random_ids(90)
    table = evaluate_table(model, ids, keep_ratios=(1.0, 0.5), prune_after=40, positions=("absolute", "cache"))
    diverged = divergence(model, ids, {0: HALF})[0]
    called = evaluate(model, ids, compressor=l2_compress, **HALF)
    for evaluation in (diverged.evaluation, called):
        torch.testing.assert_close(evaluation.nll, table["absolute", 0.5].nll, rtol=0, atol=1e-5)
    assert diverged.kl.device.type == "cpu"


@pytest.mark.golden
@pytest.mark.xdist_group("embedded model")
def test_the_float64_baseline_holds_there(embedded_model_on_gpu, texts_of, golden):
    samples = texts_of(embedded_model_on_gpu, "embedded-short", None, SAMPLES)
    tables = [
        evaluate_table(embedded_model_on_gpu.model, text.input_ids, keep_ratios=RATIOS, positions=MODES)
        for text in samples
    ]
    check_baseline(golden, tables, samples, embedded_model_on_gpu)
