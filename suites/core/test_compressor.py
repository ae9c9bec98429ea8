"""`l2_compress` and the survivors behind it: what must hold for any keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knorm_core import POLICIES, kept_count, l2_compress
from knorm_core.norms import key_norms, round_norms
from knorm_core.policies import Random
from knorm_core.policy import key_scores
from knorm_core.policy_names import find_policy
from knorm_core.selection import UNPROTECTED, Protection, survivors

pytestmark = pytest.mark.fast

ratios = st.integers(1, 100).map(lambda hundredths: hundredths / 100)
shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 24), st.integers(1, 4))


@st.composite
def caches(draw, layers=2):
    """Layers of (key, value) whose values encode their key's index, and whose norms tie often."""
    batch, heads, length, dim = draw(shapes)
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(layers):
        keys = torch.randint(-3, 4, (batch, heads, length, dim), generator=generator).double()
        values = torch.arange(length, dtype=torch.float64).view(1, 1, length, 1).expand(batch, heads, length, dim)
        pairs.append((keys, values))
    return pairs


def chosen(pair):
    """Indices of the survivors, as the values remember them: (batch, heads, kept)."""
    return pair[1][..., 0].long()


@given(caches(), ratios)
def test_survivors_are_exactly_the_kept_count_and_in_temporal_order(cache, ratio):
    for keys, values in l2_compress(cache, ratio, prune_after=1):
        length = cache[0][0].shape[2]
        assert keys.shape[2] == values.shape[2] == kept_count(length, ratio)
        assert bool((chosen((keys, values)).diff(dim=-1) > 0).all())


@given(caches(), ratios)
def test_survivors_are_the_smallest_norms_and_the_earliest_of_equal_ones(cache, ratio):
    for before, after in zip(cache, l2_compress(cache, ratio, prune_after=1), strict=True):
        norms = before[0].norm(dim=-1)
        for row, head in [(r, h) for r in range(norms.shape[0]) for h in range(norms.shape[1])]:
            order = sorted(range(norms.shape[2]), key=lambda i, n=norms[row, head]: (float(n[i]), i))
            assert chosen(after)[row, head].tolist() == sorted(order[: after[0].shape[2]])


@given(caches(), ratios)
def test_every_value_stays_with_its_key(cache, ratio):
    for before, after in zip(cache, l2_compress(cache, ratio, prune_after=1), strict=True):
        index = chosen(after).unsqueeze(-1).expand_as(after[0])
        assert torch.equal(after[0], before[0].gather(2, index))


@given(caches(), ratios)
def test_each_head_and_row_chooses_on_its_own(cache, ratio):
    whole = l2_compress(cache, ratio, prune_after=1)
    for layer, (keys, values) in enumerate(cache):
        for row in range(keys.shape[0]):
            for head in range(keys.shape[1]):
                alone = (keys[row : row + 1, head : head + 1], values[row : row + 1, head : head + 1])
                [(kept, _)] = l2_compress([alone], ratio, prune_after=1)
                assert torch.equal(kept[0, 0], whole[layer][0][row, head])


@given(caches(), ratios, st.integers(1, 30))
def test_nothing_is_touched_below_prune_after_in_skipped_layers_or_in_the_input(cache, ratio, prune_after):
    copies = [(keys.clone(), values.clone()) for keys, values in cache]
    after = l2_compress(cache, ratio, prune_after=prune_after, skip_layers=[1])
    assert all(
        torch.equal(a, b) for pair, copied in zip(cache, copies, strict=True) for a, b in zip(pair, copied, strict=True)
    )
    assert after[1][0] is cache[1][0]
    if cache[0][0].shape[2] < prune_after:
        assert after[0][0] is cache[0][0]
    else:
        assert after[0][0].shape[2] == kept_count(cache[0][0].shape[2], ratio)


@given(caches())
def test_keep_ratio_one_is_the_identity(cache):
    assert all(a[0] is b[0] and a[1] is b[1] for a, b in zip(cache, l2_compress(cache, 1.0, 1), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_cache_in_dynamic_cache_out_with_the_same_survivors(dtype):
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(1)
    pairs = [tuple(torch.randn(2, 3, 40, 8, generator=generator).to(dtype) for _ in "kv") for _ in range(2)]
    cache = DynamicCache()
    for layer, pair in enumerate(pairs):
        cache.update(*pair, layer)
    compressed = l2_compress(cache, 0.3, prune_after=40)
    assert isinstance(compressed, DynamicCache)
    assert compressed is not cache
    assert cache.get_seq_length() == 40
    for layer, (keys, values) in zip(compressed.layers, l2_compress(pairs, 0.3, prune_after=40), strict=True):
        assert layer.keys.dtype == dtype
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    compressed.update(*(torch.zeros(2, 3, 1, 8, dtype=dtype) for _ in "kv"), 0)
    assert [layer.get_seq_length() for layer in compressed.layers] == [13, 12]


def test_bfloat16_keys_are_ranked_by_float32_norms():
    # Norms that differ in float32 and tie in bfloat16 (kvpress issue 276)
    keys = torch.tensor([[8.0, 0.5], [8.0, 0.25], [8.0, 0.125]], dtype=torch.bfloat16).view(1, 1, 3, 2)
    assert len(keys.norm(dim=-1).unique()) == 1
    [(kept, _)] = l2_compress([(keys, keys)], 0.3, prune_after=1)
    assert kept.flatten().tolist() == [8.0, 0.125]


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_rounded_norms_keep_the_order_and_tie_only_within_16_bits(first, second):
    low, high = sorted((first, second))
    ranks = round_norms(torch.tensor([low, high], dtype=torch.float64))
    assert ranks[0] <= ranks[1]
    if high / low > 1 + 2**-15:
        assert ranks[0] < ranks[1]
    if high / low < 1 + 2**-18:
        assert ranks[1] - ranks[0] <= 1  # equal, or the two sides of one rounding boundary


def test_one_ulp_of_a_norm_does_not_decide_between_equal_tokens():
    norm = torch.tensor(5.4321, dtype=torch.float32)
    pair = torch.stack([torch.nextafter(norm, torch.tensor(9.0)), norm])
    assert survivors(-round_norms(pair), 1).tolist() == [0]
    assert survivors(-pair, 1).tolist() == [1]


KEY_POLICIES = [name for name in POLICIES if find_policy(name).reads == "key" and name != "q_filters"]  # it is fitted


@given(st.sampled_from(KEY_POLICIES), st.integers(1, 20), st.integers(0, 2**16))
def test_a_score_depends_on_its_own_key_alone(policy, length, seed):
    # What lets one pass know every death in advance: dropping other keys changes no score.
    keys = torch.randn(1, 2, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    positions = torch.arange(length)
    policy = find_policy(policy, seed)
    whole = key_scores(policy, keys, positions, layer=1)
    part = key_scores(policy, keys[:, :, ::2], positions[::2], layer=1)
    assert torch.equal(whole[..., ::2], part)


@pytest.mark.parametrize(
    ("policy", "protection", "expected"),
    [
        ("low_norm", UNPROTECTED, [1, 3, 4, 6, 7]),
        ("low_norm_exact", UNPROTECTED, [1, 3, 4, 6, 7]),
        ("low_norm", Protection(sinks=1, recent=2), [0, 1, 4, 6, 7]),
        ("high_norm", UNPROTECTED, [0, 2, 3, 5, 7]),
        ("newest", UNPROTECTED, [3, 4, 5, 6, 7]),
        ("newest", Protection(sinks=4), [0, 1, 2, 3, 7]),
    ],
)
def test_policies_keep_what_their_names_say(policy, protection, expected):
    keys = torch.tensor([9.0, 1.0, 8.0, 3.0, 2.0, 7.0, 1.0, 3.0]).view(1, 1, 8, 1)
    scores = key_scores(find_policy(policy), keys, torch.arange(8))
    assert survivors(scores, 5, protection).flatten().tolist() == expected


def test_random_policy_differs_by_seed_layer_and_head_and_repeats():
    keys = torch.ones(1, 2, 30, 4)
    positions = torch.arange(30)
    scores = [key_scores(Random(seed), keys, positions, layer=layer) for layer, seed in [(0, 0), (0, 1), (1, 0)]]
    orders = [tuple(row.argsort().tolist()) for score in scores for row in score[0]]
    assert len(set(orders)) == 6
    assert torch.equal(scores[0], key_scores(Random(), keys, positions, layer=0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_keys_that_cannot_be_ranked_are_refused(bad):
    keys = torch.ones(1, 1, 4, 2)
    keys[0, 0, 2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        key_norms(keys)
    with pytest.raises(ValueError, match="NaN or infinite"):
        l2_compress([(keys, keys)], 0.5, prune_after=1)
