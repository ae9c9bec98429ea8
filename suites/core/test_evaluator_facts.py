"""What an evaluation must be, whatever the method: plain loss at ratio 1, causal, audited, without side effects."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from knorm_core import (
    PAPER_PROTOCOL,
    NoEvictionError,
    effective_prune_after,
    evaluate,
    evaluate_table,
    eviction_schedule,
    l2_compress,
    perplexity,
)
from knorm_core import setting as setting_module
from suites.families import VOCABULARY, random_ids, tiny_model

pytestmark = pytest.mark.fast

methods = pytest.mark.parametrize("method", ["onepass", "stepwise"])
families = pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen3"])


@families
@methods
def test_keep_ratio_one_is_a_plain_forward(family, method):
    model, ids = tiny_model(family), random_ids(70)
    with torch.no_grad():
        plain = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    start = evaluate(model, ids, keep_ratio=1.0, score_from="start", method=method)
    phase_2 = evaluate(model, ids, keep_ratio=1.0, prune_after=40, method=method)
    torch.testing.assert_close(start.nll, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(phase_2.nll, plain[phase_2.effective_prune_after :], rtol=0, atol=1e-5)
    assert not any(start.evictions)


@methods
@settings(max_examples=15)
@given(length=st.integers(34, 120), prune_after=st.integers(1, 200))
def test_exactly_the_tokens_after_phase_1_are_scored(method, length, prune_after):
    start = effective_prune_after(length, prune_after)
    result = evaluate(
        tiny_model("gpt_neox"), random_ids(length), keep_ratio=0.5, prune_after=prune_after, method=method
    )
    assert result.nll.shape == (length - 1 - start,)
    assert result.nll.dtype == torch.float64
    assert result.effective_prune_after == start
    assert result.ppl == pytest.approx(float(result.nll.mean().exp()), rel=1e-12)


@families
@methods
@pytest.mark.parametrize("positions", ["absolute", "cache"])
def test_changing_a_later_token_never_changes_an_earlier_loss(family, method, positions):
    model, ids = tiny_model(family), random_ids(80)
    changed = ids.clone()
    changed[60:] = (changed[60:] + 1) % VOCABULARY
    arguments = {"keep_ratio": 0.4, "prune_after": 40, "positions": positions, "method": method}
    before, after = evaluate(model, ids, **arguments).nll, evaluate(model, changed, **arguments).nll
    seen = 59 - 40  # losses of tokens 41 … 59
    torch.testing.assert_close(before[:seen], after[:seen], rtol=0, atol=1e-10 if family == "gpt_neox" else 1e-5)
    assert not torch.allclose(before[seen:], after[seen:], atol=1e-3)


def test_the_audit_is_what_the_cache_lengths_were():
    lengths = []  # before and after, at every call, as an outsider sees them

    def spy(cache, keep_ratio, prune_after, skip_layers):
        compressed = l2_compress(cache, keep_ratio, prune_after, skip_layers)
        lengths.append(([x.get_seq_length() for x in cache.layers], [x.get_seq_length() for x in compressed.layers]))
        return compressed

    model, ids = tiny_model("llama"), random_ids(100)
    spied = evaluate(model, ids, keep_ratio=0.6, prune_after=48, skip_layers=[1], compressor=spy)
    ours = evaluate(model, ids, keep_ratio=0.6, prune_after=48, skip_layers=[1])
    assert spied.evictions == ours.evictions
    assert float((spied.nll - ours.nll).abs().max()) < 1e-5
    for layer in range(3):
        seen = [(48 + i, b[layer], a[layer]) for i, (b, a) in enumerate(lengths) if b[layer] != a[layer]]
        assert list(ours.evictions[layer]) == seen
        assert list(ours.cache_trace[layer]) == [after[layer] + 1 for _, after in lengths]
    assert ours.evictions_per_layer == (len(ours.evictions[0]), 0, len(ours.evictions[2]))
    assert ours.evictions_per_layer[0] >= 2
    everything = [after[layer] + 1 for _, after in lengths for layer in range(3)]
    assert ours.mean_cache == pytest.approx(sum(everything) / len(everything))
    assert ours.peak_cache == max(everything) == 99


def test_a_tables_schedules_are_worked_out_once_a_row_not_once_a_layer(monkeypatch):
    ratios = []

    def counted(seq_len, prune_after, keep_ratio, **when):
        ratios.append(float(keep_ratio))
        return eviction_schedule(seq_len, prune_after, keep_ratio, **when)

    monkeypatch.setattr(setting_module, "eviction_schedule", counted)
    table = evaluate_table(tiny_model("llama"), random_ids(70), keep_ratios=[0.9, 0.5], prune_after=35)
    assert sorted(ratios) == [0.5, 0.9]
    for (_, ratio), result in table.items():
        assert len(result.evictions) > 1
        assert set(result.evictions) == {eviction_schedule(70, 35, ratio)}


@families
@methods
def test_with_layer_0_skipped_cache_and_absolute_positions_agree(family, method):
    model, ids = tiny_model(family), random_ids(80)
    arguments = {"keep_ratio": 0.4, "prune_after": 40, "skip_layers": (0,), "method": method}
    absolute, cache = (evaluate(model, ids, positions=mode, **arguments) for mode in ("absolute", "cache"))
    assert torch.equal(absolute.nll, cache.nll)
    drifted = evaluate(model, ids, keep_ratio=0.4, prune_after=40, positions="cache", method=method)
    assert not torch.allclose(drifted.nll, cache.nll, atol=1e-3)


@methods
def test_after_prefill_evicts_once_and_grows_from_there(method):
    result = evaluate(
        tiny_model("llama"), random_ids(120), keep_ratio=0.5, prune_after=60, when="after_prefill", method=method
    )
    assert result.evictions == (((60, 60, 30),),) * 3
    assert result.cache_trace[0] == tuple(range(31, 31 + 59))


@methods
def test_the_models_own_state_is_left_as_it_was(method):
    model = tiny_model("llama")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        model.train()
        before = (model.config._attn_implementation, list(model._forward_hooks), model.training)
        evaluate(model, random_ids(60), keep_ratio=0.5, prune_after=40, method=method)
        assert (model.config._attn_implementation, list(model._forward_hooks), model.training) == before
        with pytest.raises(ZeroDivisionError):
            evaluate(model, random_ids(60), keep_ratio=0.5, prune_after=40, compressor=lambda *_, **__: 1 / 0)
        assert (model.config._attn_implementation, list(model._forward_hooks), model.training) == before
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    finally:
        handle.remove()
        model.eval()


@methods
def test_dropout_is_off_even_where_the_model_is_training(method):
    model, ids = tiny_model("gpt_neox"), random_ids(60)
    quiet = evaluate(model, ids, keep_ratio=0.5, prune_after=40, method=method).nll
    model.config.attention_dropout = model.gpt_neox.emb_dropout.p = 0.5
    try:
        model.train()
        assert torch.equal(evaluate(model, ids, keep_ratio=0.5, prune_after=40, method=method).nll, quiet)
    finally:
        model.config.attention_dropout = model.gpt_neox.emb_dropout.p = 0.0
        model.eval()


def test_two_threads_evaluate_one_model_at_once():
    model = tiny_model("gpt_neox")
    cases = [
        {"keep_ratio": ratio, "prune_after": 40, "positions": mode, "method": method}
        for ratio in (0.9, 0.3)
        for mode in ("absolute", "cache")
        for method in ("onepass", "stepwise")
    ]
    alone = [evaluate(model, random_ids(70, 1), **case).nll for case in cases]
    together: list = [None] * len(cases)
    barrier = threading.Barrier(len(cases))

    def work(index):
        barrier.wait()
        together[index] = evaluate(model, random_ids(70, 1), **cases[index]).nll

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# --- the faults of the report, reproduced and caught


def test_without_the_adjuster_512_on_512_tokens_never_evicts_and_raises():
    model, ids = tiny_model("llama", seed=1), random_ids(512)
    with pytest.raises(NoEvictionError, match="prune_after=512"):
        evaluate(model, ids, keep_ratio=0.5, prune_after=512, adjust=False)
    with pytest.raises(NoEvictionError, match="nothing is ever evicted: 512 tokens"):
        evaluate(model, ids, keep_ratio=0.5, prune_after=512, adjust=False, score_from="start")
    result = evaluate(
        model, ids, keep_ratio=0.5, prune_after=512, adjust=False, score_from="start", allow_no_eviction=True
    )
    assert (result.peak_cache, sum(result.evictions_per_layer)) == (511, 0)  # "tops out at 511"
    assert evaluate(model, ids, keep_ratio=0.5, prune_after=512).evictions_per_layer == (1, 1, 1)


@pytest.mark.parametrize("length", [150, 223])
def test_short_samples_never_reach_256_without_the_adjuster_and_do_with_it(length):
    model, ids = tiny_model("llama"), random_ids(length)
    with pytest.raises(NoEvictionError):
        evaluate(model, ids, keep_ratio=0.5, prune_after=256, adjust=False, score_from="start")
    assert min(evaluate(model, ids, keep_ratio=0.5, prune_after=256).evictions_per_layer) >= 1


def test_scoring_from_the_start_dilutes_the_change():
    model, ids = tiny_model("gpt_neox"), random_ids(400)

    def change(score_from):
        full, half = (
            evaluate(model, ids, keep_ratio=ratio, prune_after=256, score_from=score_from) for ratio in (1.0, 0.1)
        )
        if score_from == "start":
            # phase 1 is the same, whatever the ratio (up to the order of summation in another kernel)
            torch.testing.assert_close(full.nll[:256], half.nll[:256], rtol=0, atol=1e-10)
        return abs(math.log(half.ppl / full.ppl))

    # exactly by the share of tokens that phase 2 has
    assert change("start") / change("phase2") == pytest.approx(143 / 399, rel=1e-6)


@methods
def test_the_papers_protocol_is_a_named_setting(method):
    ids = random_ids(100)
    result = evaluate(tiny_model("llama"), ids, prune_after=50, method=method, **{**PAPER_PROTOCOL, "keep_ratio": 0.5})
    assert len(result.nll) == 99
    assert result.evictions_per_layer == (0, 0, 2)
    with pytest.raises(NoEvictionError):
        evaluate(tiny_model("llama"), ids, prune_after=256, **PAPER_PROTOCOL)


def test_perplexity_pools_tokens_not_texts():
    model = tiny_model("llama")
    short, long = (evaluate(model, random_ids(n, n), keep_ratio=0.5, prune_after=32) for n in (40, 90))
    pooled = torch.cat([short.nll, long.nll]).mean().exp()
    assert perplexity([short, long]) == pytest.approx(float(pooled), rel=1e-12)
