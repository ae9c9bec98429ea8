"""Who sees whom in one pass: deaths against a walk through the cache, attention against a full mask."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from knorm_core import eviction_schedule
from knorm_core.counts import Eviction, budget_schedule
from knorm_core.methods import attention
from knorm_core.methods.attention import BLOCK, NEVER, mortal_attention, moving_attention
from knorm_core.methods.deaths import death_row, layer_deaths, window_deaths
from knorm_core.methods.rotation import rotate
from knorm_core.policies import Newest, Random
from knorm_core.selection import Protection
from knorm_core.setting import Setting

pytestmark = pytest.mark.fast


def walk(ranks, schedule, window, sinks=0):
    """Deaths, the slow way: hold the cache as a list and take out the highest ranks at each eviction."""
    deaths, alive, fed = [NEVER] * len(ranks), [], 0
    for step, before, after in schedule:
        alive += range(fed, step)
        fed = step
        assert len(alive) == before
        free = sorted((key for key in alive if sinks <= key < step - window), key=lambda key: -ranks[key])
        for key in free[: before - after]:
            deaths[key] = step
            alive.remove(key)
    return deaths


@settings(max_examples=40)
@given(st.integers(3, 120), st.integers(1, 60), st.integers(1, 99), st.randoms(use_true_random=False))
def test_deaths_are_those_of_a_cache_held_as_a_list(seq_len, threshold, percent, random):
    schedule = eviction_schedule(seq_len, threshold, percent / 100)
    ranks = random.sample(range(seq_len - 1), seq_len - 1)
    assert death_row(ranks, schedule) == walk(ranks, schedule, 0)


@settings(max_examples=40)
@given(
    st.integers(5, 120), st.integers(2, 60), st.integers(0, 59), st.integers(0, 4), st.randoms(use_true_random=False)
)
def test_the_first_and_the_latest_keys_are_protected(seq_len, budget, window, sinks, random):
    assume(sinks + window < budget < seq_len - 1)
    schedule = budget_schedule(seq_len, budget)
    ranks = random.sample(range(seq_len - 1), seq_len - 1)
    deaths = death_row(ranks, schedule, Protection(sinks, window))
    assert deaths == walk(ranks, schedule, window, sinks)
    assert all(death - key > window for key, death in enumerate(deaths))
    assert deaths[:sinks] == [NEVER] * sinks


def test_of_the_keys_then_alive_the_highest_rank_goes():
    # Rank 3 is not yet fed at the first eviction, rank 2 is gone by the second.
    assert death_row([0, 2, 1, 3, 4], [Eviction(2, 2, 1), Eviction(4, 3, 2)]) == [NEVER, 2, NEVER, 4, NEVER]
    # With the last two protected, each eviction takes what is left.
    assert death_row([0, 1, 2, 3], [Eviction(3, 3, 2), Eviction(4, 3, 2)], Protection(recent=2)) == [3, 4, NEVER, NEVER]


def setting(**changes):
    return Setting(**{"seq_len": 41, "layers": 3, "start": 16, "keep_ratio": (Fraction(1, 2),) * 3} | changes)


def keys_of(length, batch=2, heads=3, seed=0):
    return torch.randn(batch, heads, length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_every_row_and_head_has_the_deaths_of_its_own_ranks():
    keys = keys_of(40)
    deaths = layer_deaths(setting(), 1, keys)
    assert deaths.shape == (2, 3, 40)
    assert deaths.dtype == torch.int64
    for row in range(2):
        for head in range(3):
            order = keys[row, head].norm(dim=-1).argsort().tolist()
            ranks = [order.index(key) for key in range(40)]
            assert deaths[row, head].tolist() == walk(ranks, setting().schedule(0), 0)
    assert len({tuple(row) for row in deaths.flatten(0, 1).tolist()}) == 6


def test_of_equal_norms_the_later_key_dies_first():
    [deaths] = layer_deaths(setting(seq_len=18), 0, torch.ones(1, 1, 17, 2))[0].tolist()
    assert deaths == [NEVER] * 8 + [16] * 8 + [NEVER]


def test_positions_and_layer_reach_the_policy():
    keys = keys_of(40, batch=1)
    newest = layer_deaths(setting(policy=Newest()), 0, keys)
    assert all(newest[0, head].tolist() == walk(range(40, 0, -1), setting().schedule(0), 0) for head in range(3))
    random = setting(policy=Random(seed=3))
    assert not torch.equal(layer_deaths(random, 0, keys), layer_deaths(random, 1, keys))
    budget = {"when": "fixed_budget", "keep_ratio": None, "budget": (16, 16, 16)}
    protected = setting(protection=Protection(recent=5), **budget)
    assert bool((layer_deaths(protected, 0, keys) - torch.arange(40) > 5).all())
    assert not torch.equal(layer_deaths(protected, 0, keys), layer_deaths(setting(**budget), 0, keys))


def test_a_layer_without_evictions_has_no_deaths():
    keys = keys_of(40)
    assert layer_deaths(setting(skip_layers=frozenset({2})), 2, keys) is None
    assert layer_deaths(setting(keep_ratio=(Fraction(1),) * 3), 0, keys) is None
    assert window_deaths(None, keys) is None


@pytest.mark.parametrize(("window", "slides"), [(39, True), (40, False), (41, False)])
def test_a_sliding_layer_forgets_each_key_after_its_window(window, slides):
    keys, sliding = keys_of(40), setting(sliding={1: window})
    for deaths in (window_deaths(window, keys), layer_deaths(sliding, 1, keys)):
        if slides:
            assert torch.equal(deaths, (torch.arange(40) + window).expand(2, 3, 40))
        else:
            assert deaths is None
    assert window_deaths(None, keys) is None
    assert layer_deaths(sliding, 0, keys) is not None


# --- attention


def dense(query, key, value, deaths, scale, softcap):
    """One softmax over every key, with a mask of (head, query, key)."""
    heads, kv_heads, length = query.shape[1], key.shape[1], key.shape[2]
    key, value = (tensor.repeat_interleave(heads // kv_heads, dim=1) for tensor in (key, value))
    born = torch.arange(length)
    fed = torch.arange(length - query.shape[2], length).view(-1, 1)
    seen = born <= fed
    if deaths is not None:
        seen = seen & (deaths.repeat_interleave(heads // kv_heads, dim=1).unsqueeze(-2) > fed)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value


@settings(max_examples=15)
@given(
    length=st.sampled_from([1, 2, 40, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 300]),
    fed=st.integers(0, 300),
    start=st.integers(1, 200),
    percent=st.sampled_from([100, 90, 50, 10]),
    grouped=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
@example(length=300, fed=0, start=100, percent=50, grouped=True, scale=None, softcap=None, seed=0)
@example(length=300, fed=0, start=100, percent=50, grouped=True, scale=None, softcap=2.0, seed=0)
@example(length=300, fed=0, start=100, percent=50, grouped=True, scale=0.3, softcap=2.0, seed=0)
@example(length=300, fed=120, start=100, percent=90, grouped=False, scale=0.3, softcap=None, seed=0)
@example(length=300, fed=120, start=100, percent=100, grouped=True, scale=None, softcap=2.0, seed=0)
@example(length=300, fed=0, start=250, percent=50, grouped=True, scale=0.3, softcap=None, seed=0)
@example(length=300, fed=0, start=100, percent=100, grouped=True, scale=0.3, softcap=None, seed=0)
@example(length=40, fed=0, start=40, percent=50, grouped=True, scale=None, softcap=None, seed=0)
@example(length=40, fed=0, start=1, percent=50, grouped=True, scale=None, softcap=None, seed=0)
@example(length=2, fed=0, start=200, percent=50, grouped=True, scale=None, softcap=None, seed=0)
@example(length=6, fed=0, start=200, percent=50, grouped=True, scale=None, softcap=None, seed=0)
def test_attention_is_that_of_a_full_mask(length, fed, start, percent, grouped, scale, softcap, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, kv_heads, width, value_width = 2, 2, 4, 6
    heads = kv_heads * (3 if grouped else 1)
    queries = max(1, length - fed)
    query, key, value = (
        torch.randn(batch, h, n, w, generator=generator, dtype=torch.float64) * 2
        for h, n, w in [(heads, queries, width), (kv_heads, length, width), (kv_heads, length, value_width)]
    )
    schedule = eviction_schedule(length + 1, start, percent / 100)
    deaths = None
    if schedule:
        ranks = torch.rand(batch, kv_heads, length, generator=generator).argsort(-1)
        deaths = torch.tensor([death_row(row, schedule) for row in ranks.flatten(0, 1).tolist()]).view(ranks.shape)
    out = mortal_attention(query, key, value, deaths, immortal_until=start, scale=scale, softcap=softcap)
    assert out.shape == (batch, heads, queries, value_width)
    torch.testing.assert_close(out, dense(query, key, value, deaths, scale, softcap), rtol=0, atol=1e-12)


def test_where_keys_die_from_the_start_nothing_is_taken_for_immortal():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 200, 4, generator=generator, dtype=torch.float64) for _ in "qkv")
    deaths = (torch.arange(200) + 30).expand(1, 2, 200)
    torch.testing.assert_close(
        mortal_attention(query, key, value, deaths), dense(query, key, value, deaths, None, None), rtol=0, atol=1e-12
    )


def test_immortal_until_beyond_the_text_is_the_whole_text():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, 20, 4, generator=generator, dtype=torch.float64) for _ in "qkv")
    deaths = torch.full((1, 2, 20), NEVER)
    out = mortal_attention(query, key, value, deaths, immortal_until=99)
    torch.testing.assert_close(out, dense(query, key, value, None, None, None), rtol=0, atol=1e-12)


def test_only_what_may_see_a_death_goes_by_blocks(monkeypatch):
    asked, blocks = [], attention._blocks
    monkeypatch.setattr(attention, "_blocks", lambda query, *rest: asked.append(query.shape[2]) or blocks(query, *rest))
    query = torch.randn(1, 2, 200, 4)
    deaths = torch.full((1, 2, 200), NEVER)
    mortal_attention(query, query, query, None)
    mortal_attention(query, query, query, deaths, immortal_until=200)
    assert not asked
    mortal_attention(query, query, query, deaths, immortal_until=150)
    mortal_attention(query[:, :, -80:], query, query, deaths, immortal_until=150)
    mortal_attention(query, query, query, None, softcap=2.0)
    assert asked == [50, 80, 200]


# --- survivors that move


def moved(survivors, born):
    """A change that shows which survivor it was, how many there are, and in which order."""
    place = torch.arange(born.shape[-1], dtype=survivors.dtype)
    return survivors * (1 + place / 10).unsqueeze(-1) + (born / 50).unsqueeze(-1)


@pytest.mark.parametrize(("scale", "softcap"), [(None, None), (0.3, None), (None, 2.0), (0.3, 2.0)])
@pytest.mark.parametrize("fed_before", [0, 7, 20, 26])
def test_survivors_move_at_every_eviction_and_stay_so_until_the_next(fed_before, scale, softcap):
    generator = torch.Generator().manual_seed(0)
    length, heads, kv_heads = 45, 4, 2
    query, key, value = (
        torch.randn(2, h, n, w, generator=generator, dtype=torch.float64)
        for h, n, w in [(heads, length - fed_before, 4), (kv_heads, length, 4), (kv_heads, length, 6)]
    )
    schedule = eviction_schedule(length + 1, 20, 0.7)
    steps = [eviction.step for eviction in schedule]
    assert steps[:3] == [20, 26, 32]
    ranks = torch.rand(2, kv_heads, length, generator=generator).argsort(-1)
    deaths = torch.tensor([death_row(row, schedule) for row in ranks.flatten(0, 1).tolist()]).view(ranks.shape)
    out = moving_attention(query, key, value, deaths, steps, moved, scale=scale, softcap=softcap)
    assert out.shape == (2, heads, length - fed_before, 6)
    for index in range(fed_before, length):
        last = max((step for step in steps if step <= index), default=0)
        for row, head in [(0, 0), (0, 3), (1, 1), (1, 2)]:
            alive = (deaths[row, head // 2, :last] > last).nonzero()[:, 0] if last else torch.arange(0)
            survivors = moved(key[row, head // 2, alive], alive)
            keys = torch.cat([survivors, key[row, head // 2, last : index + 1]])
            values = torch.cat([value[row, head // 2, alive], value[row, head // 2, last : index + 1]])
            alone = query[row, head, index - fed_before].view(1, 1, 1, 4)
            expected = dense(alone, keys[None, None], values[None, None], None, scale, softcap)
            torch.testing.assert_close(out[row, head, index - fed_before], expected[0, 0, 0], rtol=0, atol=1e-12)


def test_a_pass_that_begins_between_two_evictions_is_refused():
    key = torch.randn(1, 1, 40, 4)
    with pytest.raises(ValueError, match="a pass begins at an eviction or before the first, not at 25 of"):
        moving_attention(key[:, :, :15], key, key, torch.full((1, 1, 40), NEVER), [20, 30], moved)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_key_is_turned_by_position_times_frequency(dtype, atol):
    keys = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    by, frequencies = torch.tensor([0, 1, -1, 5, -40, 3, 1000]), torch.tensor([1.0, 0.1, 0.003], dtype=torch.float64)
    turned = rotate(keys, by, frequencies)
    assert (turned.dtype, turned.shape) == (dtype, keys.shape)
    # A pair of coordinates is a complex number, and the last four do not turn.
    wide = keys.double()
    pairs = torch.complex(wide[..., :3], wide[..., 3:6])
    angles = by[:, None] * frequencies
    expected = pairs * torch.complex(angles.cos(), angles.sin())
    torch.testing.assert_close(
        turned.double(), torch.cat([expected.real, expected.imag, wide[..., 6:]], dim=-1), rtol=0, atol=atol
    )
    assert torch.equal(turned[..., 6:], keys[..., 6:])


def test_each_head_turns_by_positions_of_its_own_in_the_precision_of_its_keys():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 3, 5, 4, generator=generator)
    by = torch.randint(-50, 50, (2, 3, 5), generator=generator)
    frequencies = torch.tensor([1.0, 0.1], dtype=torch.float64)
    turned = rotate(keys, by, frequencies)
    for row in range(2):
        for head in range(3):
            assert torch.equal(turned[row, head], rotate(keys[row, head], by[row, head], frequencies))
    # Angles are taken in float64, since positions are large, and all else in float32.
    angles = by.double().unsqueeze(-1) * frequencies
    cos, sin, first, second = angles.cos().float(), angles.sin().float(), keys[..., :2], keys[..., 2:]
    assert torch.equal(turned, torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def test_after_a_single_eviction_survivors_stay():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 40, 4, generator=generator, dtype=torch.float64) for _ in "qkv")
    schedule = eviction_schedule(41, 20, 0.5, when="after_prefill")
    deaths = torch.tensor([[death_row(list(range(40)), schedule), death_row(list(range(39, -1, -1)), schedule)]])
    for fed_before in (0, 20):
        asked = query[:, :, fed_before:]
        torch.testing.assert_close(
            moving_attention(asked, key, value, deaths, [20], lambda survivors, _: survivors),
            mortal_attention(asked, key, value, deaths),
            rtol=0,
            atol=1e-12,
        )
