"""A policy's controls: made of its own score, with the same protections and the same memory."""

from __future__ import annotations

import math

import pytest
import torch

from knorm_core import evaluate
from knorm_core.contract import PolicyCase, check_policy, searching
from knorm_core.experiments.policy_controls import (
    CONTROLS,
    ITSELF,
    UNCOMPRESSED,
    Inverted,
    Permuted,
    compared,
    every_row,
    rows_of,
)
from knorm_core.policies import H2O, TOVA, HighNorm, LowNorm, Random, SnapKV
from knorm_core.policy import Policy
from knorm_core.policy_names import find_policy
from knorm_core.report.policies import sentences, verdict
from suites.core.own_policies import Decayed
from suites.families import random_ids, tiny_model

POLICIES = [LowNorm(), TOVA(), H2O(), SnapKV(window=4), Decayed()]
CASE = PolicyCase(60, 24, 0.5, sinks=4)


def same(survivors, other):
    return survivors.keys() == other.keys() and all(torch.equal(kept, other[at]) for at, kept in survivors.items())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.full
def test_what_is_made_of_a_policy_is_a_policy(policy):
    for made in (Inverted(policy), Permuted(policy, sinks=4, seed=3)):
        assert find_policy(made) is made
        assert (made.query_window, made.recent, made.observes) == (policy.query_window, policy.recent, policy.observes)
        with searching(examples=6):
            assert [finding.check for finding in check_policy(made)] == []


@pytest.mark.fast
def test_low_norm_inverted_is_high_norm_and_twice_inverted_the_policy():
    assert same(CASE.survivors(Inverted(LowNorm())), CASE.survivors(HighNorm()))
    for policy in POLICIES:
        assert same(CASE.survivors(Inverted(Inverted(policy))), CASE.survivors(policy))
        assert not same(CASE.survivors(Inverted(policy)), CASE.survivors(policy))


@pytest.mark.fast
def test_the_least_integer_is_inverted_too():
    class Least(Policy):
        def score(self, seen):
            return torch.where(seen.positions % 2 == 0, torch.iinfo(torch.int64).min, seen.positions)

    kept = CASE.survivors(Inverted(Least()))[0, 24]
    assert (kept[..., 4:] % 2 == 0).sum() == kept[..., 4:].numel()  # the sinks are 0 … 3; eight of the rest are even


@pytest.mark.full
def test_permuted_scores_say_nothing_of_the_keys():
    # Of 20 free keys 8 stay at the first eviction, each as often as any other; 400 draws of two layers and two heads.
    counts = torch.zeros(24)
    for seed in range(200):
        survivors = CASE.survivors(Permuted(LowNorm(), sinks=4, seed=seed))
        for layer in (0, 1):
            counts += torch.bincount(survivors[layer, 24].flatten(), minlength=24)
    draws = 200 * 2 * 2
    assert counts[:4].tolist() == [draws] * 4
    error = math.sqrt(draws * 0.4 * 0.6)
    assert counts[4:].tolist() == pytest.approx([0.4 * draws] * 20, abs=4 * error)


@pytest.mark.fast
def test_heads_that_share_their_scores_share_their_permutation_and_others_do_not():
    shared = CASE.survivors(Permuted(TOVA(), sinks=4))[0, 24]
    assert torch.equal(shared[:, 0], shared[:, 1])
    own = CASE.survivors(Permuted(LowNorm(), sinks=4))[0, 24]
    assert not torch.equal(own[:, 0], own[:, 1])


@pytest.mark.fast
def test_a_window_that_the_policy_protects_keeps_its_scores():
    # SnapKV gives its window infinite scores: permuted into the rest, the earliest of them would always stay.
    kept = [CASE.survivors(Permuted(SnapKV(window=4), sinks=4, seed=seed))[0, 24] for seed in range(30)]
    assert {int(token) for each in kept for token in each[0, 0, 4:-4]} > set(range(5, 19))


@pytest.mark.fast
def test_all_rows_of_a_ratio_have_the_same_protections_and_the_same_memory():
    model, ids = tiny_model("llama"), random_ids(340)
    for policy in POLICIES:
        rows = rows_of(policy, 0.5)
        assert {row.sinks for row in rows.values()} == {4}
        assert {rows[name].recent for name in (ITSELF, "random", "permuted", "inverted")} == {policy.recent}
        traces = {evaluate(model, ids, **row.arguments(0)[0]).cache_trace for row in rows.values()}
        assert len(traces) == 1


@pytest.mark.fast
def test_seeds_differ_between_texts_and_random_has_two():
    row = rows_of(TOVA(), 0.5)
    assert [a["policy"] for a in row["random"].arguments(3)] == [Random(6), Random(7)]
    assert row["permuted"].arguments(3)[0]["policy"].seed == 6
    assert {a["prune_after"] for index in (0, 1) for a in row[ITSELF].arguments(index)} == {192, 244}


@pytest.mark.fast
def test_what_policies_share_is_asked_once():
    rows = every_row(LowNorm(), (0.9, 0.5), {0.9: ("newest", "random"), 0.5: CONTROLS})
    assert rows[0] == UNCOMPRESSED
    assert len(rows) == len(set(rows)) == 1 + 3 + 5
    shared = set(rows) & set(every_row(TOVA(), (0.9, 0.5)))
    assert len(shared) == 1 + 2 * 2  # uncompressed, and newest and random of each ratio


@pytest.mark.fast
def test_the_table_and_its_sentence():
    model = tiny_model("llama")
    texts = [random_ids(340, index) for index in range(8)]
    rows = compared(model, texts, TOVA(), [0.5], ("newest", "random"))
    own, newest, _ = rows
    assert [row["control"] for row in rows] == [ITSELF, "newest", "random"]
    assert (own["against"], own["against_low"], own["against_high"]) == (1, 1, 1)
    assert newest["against"] == pytest.approx(own["ppl"] / newest["ppl"], rel=1e-9)
    [sentence] = sentences("mine", rows)
    assert sentence.startswith("mine at keep 0.5: perplexity ")
    assert sentence.count("perplexity") == 2
    assert "at equal memory" in sentence


@pytest.mark.parametrize(
    ("against", "low", "high", "says"),
    [
        (0.9, 0.85, 0.95, "better"),
        (1.1, 1.05, 1.2, "worse"),
        (0.98, 0.9, 1.05, "not told apart (from +8.0 % on it would be)"),
    ],
)
@pytest.mark.fast
def test_a_verdict_needs_the_whole_interval_on_one_side(against, low, high, says):
    assert verdict({"against": against, "against_low": low, "against_high": high, "detectable": 1.08}) == says
