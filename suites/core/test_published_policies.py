"""PyramidKV, LagKV, Expected Attention and Q-Filters: their definitions by another road, and refusals."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knorm_core import (
    Policy,
    PolicyError,
    UnsupportedModelError,
    evaluate,
    evaluate_rows,
    fit_q_filters,
    kept_count,
    press_policy,
)
from knorm_core.arguments import Arguments, check_setting
from knorm_core.methods.prefix import feed_prefix
from knorm_core.policies import ExpectedAttention, LagKV, PyramidKV, QFilters, SnapKV
from knorm_core.policy_names import policy_identity, policy_label
from suites.core.own_policies import HiddenStates
from suites.core.test_methods_agree import assert_equal
from suites.families import PROMISED, random_ids, tiny_model

pytestmark = pytest.mark.fast

HALF = {"keep_ratio": 0.5, "prune_after": 40}
PYRAMID = PyramidKV(window=3, kernel=3, beta=4)


def kept_of(layers=5, seq_len=600, **arguments):
    """Kept counts of every layer's first eviction."""
    setting = check_setting(Arguments.of(arguments), seq_len=seq_len, layers=layers, sliding={})
    return [schedule[0].after if schedule else None for schedule in setting.schedules]


def test_a_policy_that_looks_within_feeds_phase_1_itself():
    model, ids = tiny_model("llama"), random_ids(97)
    rows = {policy: {"policy": policy, **HALF} for policy in (HiddenStates(), LagKV(lag=5))}
    for policy, result in evaluate_rows(model, ids, rows).items():  # which share phase 1 where they can
        alone = evaluate(model, ids, policy=policy, **HALF).nll
        torch.testing.assert_close(result.nll, alone, rtol=0, atol=1e-10)
    hooks = [module for module in model.modules() if module._forward_pre_hooks]
    assert hooks == []


def test_a_press_without_kvpress_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(TypeError, match=r"^press=3: kvpress is not installed here .*; pip install kvpress$"):
        press_policy(3)


# --- PyramidKV


@given(
    window=st.integers(1, 40),
    beta=st.integers(1, 30),
    layers=st.integers(1, 40),
    full=st.integers(2, 300),
    data=st.data(),
)
def test_a_pyramid_falls_from_layer_to_layer_and_preserves_the_total(window, beta, layers, full, data):
    kept = data.draw(st.integers(1, full))
    counts = PyramidKV(window=window, beta=beta).kept_by_layer(kept, layers, full)
    assert len(counts) == layers
    assert sum(counts) == layers * kept
    assert list(counts) == sorted(counts, reverse=True)
    assert 1 <= counts[-1] <= counts[0] <= full
    if kept > window and layers > 1:
        clipped = 2 * kept - full > window + (kept - window) / beta
        last = 2 * kept - full if clipped else window + (kept - window) / beta
        assert abs(counts[-1] - last) < 1


def test_the_first_layer_keeps_at_most_what_it_is_compressed_at():
    once = kept_of(policy="pyramidkv", keep_ratio=0.75, prune_after=256, when="after_prefill")
    assert once == [None, 224, 192, 160, 128]  # the first keeps all of 256
    # … and where evictions go on, one less: or it would never be compressed again.
    assert kept_of(policy="pyramidkv", keep_ratio=0.75, prune_after=256) == [255, 224, 192, 160, 129]


def test_kept_counts_are_known_before_anything_runs_and_are_those_of_the_cache():
    model, ids = tiny_model("llama"), random_ids(97)
    for when in ("every_step", "after_prefill"):
        result = evaluate(model, ids, policy=PYRAMID, when=when, method="stepwise", **HALF)
        counts = [evictions[0].after for evictions in result.evictions]
        assert counts == kept_of(3, 97, policy=PYRAMID, when=when, **HALF) == [33, 20, 7]
        assert sum(counts) == 3 * kept_count(40, 0.5)
        assert all(eviction.before == 40 for evictions in result.evictions for eviction in evictions)
    budgets = evaluate(model, ids, policy=PYRAMID, when="fixed_budget", budget=20).evictions
    assert [evictions[-1].after + 1 for evictions in budgets] == [33, 20, 7]
    # The mean cache is that of SnapKV: a sawtooth's mean is linear in its ratio.
    pyramid, snapkv = (kept_of(5, policy=name, keep_ratio=0.5) for name in ("pyramidkv", "snapkv"))
    assert sum(pyramid) == sum(snapkv)


def test_the_pyramid_is_one_of_the_layers_that_are_compressed():
    assert kept_of(4, policy=PYRAMID, skip_layers=[0], **HALF)[1:] == kept_of(3, policy=PYRAMID, **HALF)
    assert kept_of(2, policy=PYRAMID, skip_layers=[1], **HALF) == [20, None]


def test_pyramidkv_is_snapkv_with_those_counts():
    model, ids = tiny_model("llama"), random_ids(97)
    ratios = [Fraction(count, 40) for count in (33, 20, 7)]
    rows = {
        "pyramid": {"policy": PYRAMID, **HALF},
        "snapkv": {"policy": SnapKV(window=3, kernel=3), "prune_after": 40, "keep_ratio": ratios},
        "even": {"policy": SnapKV(window=3, kernel=3), **HALF},
    }
    results = evaluate_rows(model, ids, rows)
    torch.testing.assert_close(results["pyramid"].nll, results["snapkv"].nll, rtol=0, atol=1e-10)
    assert float((results["pyramid"].nll - results["even"].nll).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ratio": [0.5, 0.4, 0.5]}, r"policy PyramidKV.* divides keep_ratio among the layers itself: give one"),
        ({"when": "fixed_budget", "budget": [9, 8, 9]}, "divides budget among the layers itself: give one for all"),
        ({"keep_ratio": 0.05}, r"recent=3 of policy PyramidKV.* protect 3 keys, and keep_ratio=.* keeps 2 of 40"),
        (
            {"keep_ratio": 0.5, "positions": "rerotated"},
            r"policy PyramidKV.*, which keeps more in some layers than in others, does not go with",
        ),
    ],
)
def test_what_a_pyramid_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model("llama"), random_ids(97), policy=PYRAMID, **({"prune_after": 40} | arguments))


def test_a_division_that_is_none_is_refused():
    class Uneven(Policy):
        def score(self, seen):
            return seen.positions

        def kept_by_layer(self, kept, layers, most):
            return [most] * layers

    with pytest.raises(PolicyError, match=r"policy Uneven\(\) divides 3 layers of 20 keys into \[39, 39, 39\]: exp"):
        evaluate(tiny_model("llama"), random_ids(97), policy=Uneven(), **HALF)


# --- LagKV


def lagkv_by_hand(keys, values, lag, sinks):
    """Rows of (place in its partition, score) of one head's keys, None for those that no partition follows."""
    length = len(keys)
    partitions = [range(at, at + lag) for at in range(sinks, length - lag + 1, lag)]
    scores = {}
    for each, following in pairwise(partitions):
        total = dict.fromkeys(each, 0.0)
        for states in (keys, values):
            deviations = []
            for token in each:
                relative = []
                for channel in range(len(states[0])):
                    column = [states[other][channel] for other in following]
                    span = max(column) - min(column)
                    relative.append((states[token][channel] - min(column)) / span if span else 0.0)
                mean = sum(relative) / len(relative)
                deviations.append(math.sqrt(sum((value - mean) ** 2 for value in relative) / (len(relative) - 1)))
            weights = [math.exp(deviation) for deviation in deviations]
            for token, weight in zip(each, weights, strict=True):
                total[token] += weight / sum(weights) / 2
        ranked = sorted(each, key=total.__getitem__)
        scores |= {token: (ranked.index(token) + total[token]) / lag for token in each}
    return [scores.get(token) for token in range(length)]


@pytest.mark.parametrize(("length", "lag", "sinks"), [(23, 5, 2), (20, 5, 0), (24, 4, 4)])
def test_lagkv_ranks_keys_within_partitions_by_how_they_stand_out_against_the_next(length, lag, sinks):
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, length, width, generator=generator).double() for width in (4, 6))
    values[0, 0, sinks + lag : sinks + 2 * lag, 1] = 0.5  # a channel without a span
    scores = LagKV(lag=lag, sinks=sinks).score(SimpleNamespace(keys=keys, values=values))
    for row in range(2):
        for head in range(3):
            by_hand = lagkv_by_hand(keys[row, head].tolist(), values[row, head].tolist(), lag, sinks)
            mine = scores[row, head].tolist()
            assert mine[:sinks] == [math.inf] * sinks
            scored = [place for place, score in enumerate(by_hand) if score is not None]
            assert scored == list(range(sinks, sinks + len(scored)))
            assert [mine[place] for place in scored] == pytest.approx([by_hand[place] for place in scored])
            latest = mine[sinks + len(scored) :]
            assert min(latest) >= 1 > max(mine[place] for place in scored)
            assert latest == sorted(latest)


def test_lagkv_keeps_the_latest_of_a_cache_without_two_partitions():
    scores = LagKV().score(SimpleNamespace(keys=torch.randn(1, 2, 67, 4), values=torch.randn(1, 2, 67, 4)))
    assert scores.squeeze().tolist() == [math.inf] * 4 + [float(place) for place in range(1, 64)]


@pytest.mark.parametrize("arguments", [{"lag": 1}, {"sinks": -1}])
def test_lagkv_refuses_what_has_no_meaning(arguments):
    with pytest.raises(ValueError, match=r"^(lag|sinks)="):
        LagKV(**arguments)


# --- Expected Attention


def test_expected_attention_is_the_mean_of_the_gaussian_turned_by_the_mean_rotation():
    generator = torch.Generator().manual_seed(0)
    fed, alive, width, pairs, sinks = 30, 12, 8, 3, 2  # the last two coordinates do not rotate
    queries = torch.randn(1, 2, 2, 20, width, generator=generator).double()
    keys, values = (torch.randn(1, 2, alive, width, generator=generator).double() for _ in range(2))
    frequencies = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
    policy = ExpectedAttention(future=7, window=20, sinks=sinks)
    seen = SimpleNamespace(
        unrotated_queries=queries,
        keys=keys,
        values=values,
        fed=fed,
        scale=0.4,
        next_position=33,
        frequencies=frequencies,
    )
    scores = policy.score(seen)
    rotations = []
    for position in range(33, 40):
        rotation = torch.eye(width, dtype=torch.float64)
        for pair, frequency in enumerate(frequencies):
            angle = position * float(frequency)
            rotation[pair, pair] = rotation[pair + pairs, pair + pairs] = math.cos(angle)
            rotation[pair + pairs, pair], rotation[pair, pair + pairs] = math.sin(angle), -math.sin(angle)
        rotations.append(rotation)
    mean_rotation = torch.stack(rotations).mean(dim=0)
    for head in range(2):
        expected = torch.zeros(alive - sinks, dtype=torch.float64)
        for group in range(2):
            rows = queries[0, head, group]  # fed 10 … 29, none of them a sink
            mean, covariance = mean_rotation @ rows.mean(dim=0), mean_rotation @ torch.cov(rows.T, correction=0)
            covariance = covariance @ mean_rotation.T
            weights = torch.stack(
                [torch.exp(0.4 * mean @ key + 0.08 * key @ covariance @ key) for key in keys[0, head, sinks:]]
            )
            expected += weights / weights.sum() / 2
        expected *= values[0, head, sinks:].norm(dim=-1)
        torch.testing.assert_close(scores[0, head, sinks:], expected)
        assert scores[0, head, :sinks].tolist() == [math.inf] * sinks


def test_queries_of_the_first_tokens_have_no_part_in_the_statistics():
    seen = SimpleNamespace(
        unrotated_queries=torch.randn(1, 1, 1, 6, 4).double(),
        keys=torch.randn(1, 1, 6, 4).double(),
        values=torch.randn(1, 1, 6, 4).double(),
        fed=6,
        scale=0.5,
        next_position=6,
        frequencies=torch.ones(2).double(),
    )
    scores = ExpectedAttention(future=3, sinks=2).score(seen)
    seen.unrotated_queries[..., :2, :] = 1e3
    assert torch.equal(ExpectedAttention(future=3, sinks=2).score(seen), scores)
    assert not torch.equal(ExpectedAttention(future=3, sinks=1).score(seen), scores)


class Unrotated(Policy):
    """Keeps what it saw."""

    reads = "queries"
    unrotates = True
    query_window = None

    def __init__(self):
        self.saw = {}

    def __hash__(self):
        return 0

    def score(self, seen):
        self.saw[seen.layer] = (seen.unrotated_queries, seen.next_position, seen.scale)
        return seen.positions


@pytest.mark.parametrize("positions", ["absolute", "cache"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_unrotated_queries_are_those_of_position_zero(family, positions):
    model, ids, policy = tiny_model(family), random_ids(60), Unrotated()
    result = evaluate(model, ids, policy=policy, positions=positions, **HALF)
    queries, following, scale = policy.saw[0]
    step = result.evictions[0][-1].step
    assert following == (step if positions == "absolute" else result.evictions[0][-1].after)
    assert scale == pytest.approx(8**-0.5)
    # Layer 0's hidden states depend on no position, so a text fed at position 0 alone shows its queries.
    setting = check_setting(Arguments(keep_ratio=1.0, allow_no_eviction=True), seq_len=60, layers=3, sliding={})
    for token in (0, 17, step - 1):
        alone = feed_prefix(model, ids[token : token + 1].repeat(60), setting).fed[0][0][0, :, 0]
        torch.testing.assert_close(queries[0, :, :, token].flatten(0, 1), alone, rtol=0, atol=1e-5)


def test_a_policy_says_that_it_unrotates():
    class Silent(Unrotated):
        unrotates = False

    with pytest.raises(PolicyError, match=r"looks at seen.unrotated_queries in layer 0 and does not say so: "):
        evaluate(tiny_model("llama"), random_ids(60), policy=Silent(), **HALF)


@pytest.mark.parametrize(("family", "reason"), [("gpt2", "has none"), ("opt", "has none"), ("gemma3", "has 2 of type")])
def test_a_model_whose_rotation_is_not_known_is_refused(family, reason):
    with pytest.raises(UnsupportedModelError, match=rf"^policy ExpectedAttention\(.*{reason}.*: use another policy$"):
        evaluate(tiny_model(family), random_ids(97), policy="expected_attention", **HALF)


# --- Q-Filters


@pytest.fixture(scope="module")
def fitted():
    return {family: fit_q_filters(tiny_model(family), [random_ids(90, 7), random_ids(70, 8)]) for family in PROMISED}


@pytest.mark.parametrize("family", PROMISED)
def test_one_pass_with_q_filters_equals_stepwise(family, fitted):
    # Each token but once: a score is not rounded, and a token that comes twice may have the same key.
    model, ids = tiny_model(family), torch.randperm(97, generator=torch.Generator().manual_seed(0))
    for arguments in ({"when": "fixed_budget", "budget": 30, "sinks": 2}, HALF | {"positions": "cache"}):
        onepass = evaluate(model, ids, policy=fitted[family], **arguments)
        assert_equal(family, onepass, evaluate(model, ids, policy=fitted[family], method="stepwise", **arguments))


def test_directions_are_the_main_singular_vectors_of_all_queries(fitted):
    model = tiny_model("llama")
    queries = []
    for length, seed in ((90, 7), (70, 8)):
        arguments = Arguments(keep_ratio=1.0, prune_after=length, adjust=False, score_from="start")
        setting = check_setting(arguments, seq_len=length + 1, layers=3, sliding={})
        text = torch.cat([random_ids(length, seed), torch.tensor([0])])  # the last token is scored, not fed
        queries.append([fed[0][0] for fed in feed_prefix(model, text, setting).fed])
    for layer, vectors in enumerate(fitted["llama"].directions.vectors):
        for head in range(2):
            directions = []
            for each in (2 * head, 2 * head + 1):
                rows = torch.cat([of_text[layer][each] for of_text in queries])
                main = torch.linalg.svd(rows, full_matrices=False).Vh[0]
                directions.append(main * (rows @ main).mean().sign())
            torch.testing.assert_close(vectors[head], torch.stack(directions).mean(dim=0), rtol=0, atol=1e-6)


def test_what_q_filters_cannot_be_evaluated_on_is_refused(fitted):
    model, policy, ids = tiny_model("llama"), fitted["llama"], random_ids(97)
    with pytest.raises(PolicyError, match=r"has no directions: make it with knorm_core.fit_q_filters\(model, texts\)"):
        evaluate(model, ids, policy="q_filters", **HALF)
    with pytest.raises(PolicyError, match="has the directions of another model than this LlamaForCausalLM: fit it"):
        evaluate(tiny_model("llama", seed=1), ids, policy=policy, **HALF)
    with pytest.raises(PolicyError, match="has the directions of another model than this GPTNeoXForCausalLM"):
        evaluate(tiny_model("gpt_neox"), ids, policy=policy, **HALF)
    for text in (random_ids(90, 7), random_ids(90, 7)[3:], torch.cat([ids[:20], random_ids(70, 8)[1:], ids[:9]])):
        with pytest.raises(PolicyError, match=r"was fitted on this text: \d passages of 32 tokens are the same"):
            evaluate(model, text, policy=policy, **HALF)
    assert len(evaluate(tiny_model("llama", torch.bfloat16), ids, policy=policy, **HALF).nll)
    with pytest.raises(ValueError, match=r"^texts is empty"):
        fit_q_filters(model, [])


def test_the_hash_of_the_directions_is_part_of_the_identity(fitted):
    policy, other = fitted["llama"], fit_q_filters(tiny_model("llama"), [random_ids(90, 9)])
    again = fit_q_filters(tiny_model("llama"), [random_ids(90, 7), random_ids(70, 8)])
    assert policy == again != other
    assert hash(policy) == hash(again)
    assert policy_identity(policy) == policy_identity(again) != policy_identity(other)
    assert policy.directions.identity in policy_identity(policy)
    assert policy_label(policy).startswith("q_filters(directions=<sha256:")
    assert policy_label(QFilters()) == "q_filters"
