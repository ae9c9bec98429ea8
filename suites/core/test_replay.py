"""Evictions played forward in blocks, against a cache that is fed token by token and held as lists."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knorm_core import eviction_schedule
from knorm_core.counts import Eviction, budget_schedule
from knorm_core.methods import replay
from knorm_core.methods.attention import NEVER
from knorm_core.methods.replay import BLOCK, Logits, recomputed_attention, replayed_deaths
from knorm_core.policies import H2O, TOVA, KeyDiff, SnapKV
from knorm_core.policy import Policy
from knorm_core.selection import Protection
from suites.core.own_policies import AllQueries, Decayed, ThreeQueries

pytestmark = pytest.mark.fast


def scores_one_by_one(policy, q, k, v, alive, received, fed):
    """Scores of row 0's keys: lists over KV heads of lists over ``alive[head]``, from each policy's definition.

    ``received[head]``: dictionaries of a key's attention by query, one value per query head of the group.
    """
    kv_heads = len(alive)
    group = q.shape[0] // kv_heads
    match policy:
        case TOVA():
            columns = [[received[h][key][fed - 1] for key in alive[h]] for h in range(kv_heads)]
            mean = [sum(sum(columns[h][i]) for h in range(kv_heads)) / (kv_heads * group) for i in range(len(alive[0]))]
            return [mean] * kv_heads
        case H2O():
            return [
                [sum(sum(heads) / group for heads in received[h][key].values()) for key in alive[h]]
                for h in range(kv_heads)
            ]
        case Decayed():
            result = []
            for h in range(kv_heads):
                row = []
                for key in alive[h]:
                    state = sum(0.9 ** (fed - 1 - query) * max(heads) for query, heads in received[h][key].items())
                    row.append(state * float(v[h, key].abs().sum()) + 0.01 * min(received[h][key][fed - 1]))
                result.append(row)
            return result
        case KeyDiff():
            result = []
            for h in range(kv_heads):
                unit = [k[h, key] / k[h, key].norm() for key in alive[h]]
                anchor = sum(unit) / len(unit)
                result.append([-float(direction @ anchor / anchor.norm()) for direction in unit])
            return result
    raise AssertionError(policy)


def attend(query, keys, scale, softcap):
    """Weights of one query over a list of keys."""
    products = [float(query @ key) * scale for key in keys]
    if softcap is not None:
        products = [softcap * math.tanh(product / softcap) for product in products]
    top = max(products)
    weights = [math.exp(product - top) for product in products]
    return [weight / sum(weights) for weight in weights]


def observed_scores(policy, q, k, alive, fed, scale, softcap):
    """Scores of `SnapKV` and `AllQueries`, whose queries attend anew to the keys that are alive."""
    kv_heads, group = len(alive), q.shape[0] // len(alive)
    window = policy.query_window or fed
    result = []
    for h in range(kv_heads):
        heads = []
        for g in range(group):
            given_to = dict.fromkeys(alive[h], 0.0)
            for query in range(max(0, fed - window), fed):
                seen = [key for key in alive[h] if key <= query]
                weights = attend(q[h * group + g, query], [k[h, key] for key in seen], scale, softcap) if seen else []
                for key, weight in zip(seen, weights, strict=True):
                    given_to[key] += weight
            heads.append([given_to[key] for key in alive[h]])
        if isinstance(policy, AllQueries):
            result.append([max(column) for column in zip(*heads, strict=True)])
            continue
        before = len(alive[h]) - window
        pooled = []
        half = policy.kernel // 2
        for i in range(before):
            near = [sum(head[j] for head in heads) for j in range(max(0, i - half), min(before, i + half + 1))]
            pooled.append(sum(near) / policy.kernel / window / group)
        result.append(pooled + [math.inf] * window)
    return result


def fed_one_by_one(policy, query, key, value, schedule, protection, scale, softcap, move=None):
    """Deaths of each key, (rows, kv_heads, length)."""
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scale = width**-0.5 if scale is None else scale
    deaths = torch.full((rows, kv_heads, length), NEVER)
    sinks, recent = protection[0], max(protection[1], policy.recent)
    for row in range(rows):
        q, k, v = query[row], key[row].clone(), value[row]
        alive = [[] for _ in range(kv_heads)]
        received = [{} for _ in range(kv_heads)]
        at = {eviction.step: eviction for eviction in schedule}
        for token in range(length):
            if token in at:
                if isinstance(policy, SnapKV | AllQueries):
                    scores = observed_scores(policy, q, k, alive, token, scale, softcap)
                else:
                    scores = scores_one_by_one(policy, q, k, v, alive, received, token)
                for h in range(kv_heads):
                    assert len(alive[h]) == at[token].before
                    ranked = sorted(range(len(alive[h])), key=lambda i, h=h: (-scores[h][i], i))
                    free = [i for i in ranked if sinks <= alive[h][i] < token - recent]
                    count = at[token].before - at[token].after
                    assert count <= len(free)
                    for i in free[len(free) - count :]:
                        deaths[row, h, alive[h][i]] = token
                    alive[h] = [born for born in alive[h] if deaths[row, h, born] == NEVER]
                    if move is not None:
                        born = torch.tensor(alive[h])
                        k[h, born] = move(key[row, h, born][None, None], born[None, None])[0, 0]
            for h in range(kv_heads):
                alive[h].append(token)
                received[h][token] = {}
                per_head = [
                    attend(q[h * group + g, token], [k[h, born] for born in alive[h]], scale, softcap)
                    for g in range(group)
                ]
                for born, weights in zip(alive[h], zip(*per_head, strict=True), strict=True):
                    received[h][born][token] = weights
    return deaths


POLICIES = [TOVA(), H2O(), SnapKV(window=3, kernel=3), KeyDiff(), AllQueries(), ThreeQueries(), Decayed()]


@settings(max_examples=30)
@given(
    policy=st.sampled_from(POLICIES),
    block=st.sampled_from([5, 8, 64]),
    length=st.integers(12, 36),
    start=st.integers(8, 30),
    kind=st.sampled_from(["every_step", "after_prefill", "fixed_budget"]),
    percent=st.sampled_from([95, 90, 70, 50]),
    sinks=st.integers(0, 2),
    recent=st.integers(0, 2),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    rows=st.integers(1, 2),
    moves=st.booleans(),
    seed=st.integers(0, 99),
)
@example(H2O(), 8, 36, 14, "fixed_budget", 50, 2, 1, None, None, 1, False, 0)
@example(TOVA(), 8, 36, 14, "fixed_budget", 50, 2, 1, None, None, 2, False, 0)
@example(SnapKV(window=3, kernel=3), 8, 36, 20, "every_step", 95, 0, 0, 2.0, None, 1, False, 0)
@example(SnapKV(window=3, kernel=3), 8, 36, 20, "fixed_budget", 95, 1, 0, None, 0.3, 1, True, 0)
@example(Decayed(), 8, 36, 14, "every_step", 70, 0, 0, None, 0.3, 1, True, 0)
@example(ThreeQueries(), 8, 36, 14, "fixed_budget", 70, 0, 2, None, None, 1, False, 0)
@example(ThreeQueries(), 8, 36, 14, "fixed_budget", 70, 2, 0, None, None, 2, False, 1)
@example(H2O(), 8, 36, 20, "after_prefill", 50, 0, 0, None, 0.3, 1, False, 0)
def test_deaths_are_those_of_a_cache_fed_one_by_one(
    policy, block, length, start, kind, percent, sinks, recent, softcap, scale, rows, moves, seed
):
    generator = torch.Generator().manual_seed(seed)
    heads, kv_heads = 4, 2
    query, key, value = (
        torch.randn(rows, h, length, w, generator=generator, dtype=torch.float64) * size
        for h, w, size in [(heads, 4, 2.0), (kv_heads, 4, 1.0), (kv_heads, 3, 1.0)]
    )
    start = min(start, length - 2)
    schedule = (
        budget_schedule(length + 1, start)
        if kind == "fixed_budget"
        else eviction_schedule(length + 1, start, percent / 100, when=kind)
    )
    move = moved if moves else None
    protection = Protection(sinks, max(recent, policy.recent))
    with mock.patch.object(replay, "BLOCK", block):
        deaths = replayed_deaths(
            policy, query, key, value, schedule, protection=protection, logits=Logits(scale, softcap), move=move
        )
    expected = fed_one_by_one(policy, query, key, value, schedule, (sinks, recent), scale, softcap, move)
    assert torch.equal(deaths, expected)


def moved(survivors, born):
    """A change that shows which survivor it was, how many there are, and in which order."""
    place = torch.arange(born.shape[-1], dtype=survivors.dtype)
    return survivors * (1 + place / 10).unsqueeze(-1) + (born / 50).unsqueeze(-1)


def layer_of(length, kv_heads=2, group=2, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, h, length, 4, generator=generator, dtype=torch.float64) * 2
        for h in (kv_heads * group, kv_heads, kv_heads)
    )


def test_nothing_that_is_fed_later_changes_an_eviction():
    schedule = budget_schedule(121, 40)
    for policy in POLICIES:
        query, key, value = layer_of(120)
        protection = Protection(0, policy.recent)
        deaths = replayed_deaths(policy, query, key, value, schedule, protection=protection)
        for tensor in (query, key, value):
            tensor[:, :, 90:] = torch.randn_like(tensor[:, :, 90:])
        changed = replayed_deaths(policy, query, key, value, schedule, protection=protection)
        assert torch.equal(deaths[deaths <= 90], changed[deaths <= 90]), policy
        assert not torch.equal(deaths, changed), policy


def test_no_product_of_all_queries_by_all_keys_is_made(monkeypatch):
    sizes = []
    times = Logits.__call__

    def noted(self, query, key):
        product = times(self, query, key)
        sizes.append(product.shape[-2:])
        return product

    monkeypatch.setattr(Logits, "__call__", noted)
    query, key, value = layer_of(1000)
    for policy in (TOVA(), H2O()):
        for schedule in (budget_schedule(1001, 100), eviction_schedule(1001, 100, 0.5)):
            sizes.clear()
            replayed_deaths(policy, query, key, value, schedule)
            assert max(queries for queries, _ in sizes) <= BLOCK
            assert max(keys for _, keys in sizes) <= 100 + BLOCK


def test_a_policy_without_memory_is_asked_for_the_rows_of_its_evictions_alone(monkeypatch):
    rows = []
    times = Logits.__call__
    monkeypatch.setattr(Logits, "__call__", lambda self, q, k: rows.append(q.shape[3]) or times(self, q, k))
    query, key, value = layer_of(300)
    replayed_deaths(TOVA(), query, key, value, eviction_schedule(301, 100, 0.5))
    assert rows == [1, 1, 51]  # at 100 and 150 one each; 200 and 250 share a block


def test_a_query_that_is_older_than_all_alive_keys_attends_to_none():
    products = torch.zeros(1, 1, 1, 3, 2)
    attention = recomputed_attention(products, torch.tensor([[[4, 5]]]), first=3)
    assert attention[0, 0, 0].tolist() == [[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]


def test_ties_keep_the_earlier():
    class Flat(Policy):
        reads = "cache"

        def score(self, seen):
            return torch.zeros(1, 1, 1)

    query, key, value = layer_of(12)
    [deaths, _] = replayed_deaths(Flat(), query, key, value, [Eviction(6, 6, 3), Eviction(9, 6, 5)])[0].tolist()
    assert deaths == [NEVER] * 3 + [6] * 3 + [NEVER] * 2 + [9] + [NEVER] * 3
