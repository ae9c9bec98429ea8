"""Answers and error messages to the letter, where a property would let a near miss pass."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch

from knorm_core import effective_prune_after, evaluate, eviction_schedule, kept_count, l2_compress
from knorm_core.cache import check_skip_layers, read_layers, with_layers
from knorm_core.counts import check_choice, check_int, check_keep_ratio
from knorm_core.evaluator import evaluate_batch, evaluate_table
from knorm_core.methods.attention import NEVER, mortal_attention
from knorm_core.methods.deaths import layer_deaths
from knorm_core.methods.replay import replayed_deaths
from knorm_core.norms import key_norms, round_norms
from knorm_core.policies import H2O, KeyDiff, Random, SnapKV
from knorm_core.policy import key_scores
from knorm_core.policy_names import find_policy
from knorm_core.selection import Protection
from knorm_core.setting import Setting
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

KEYS = torch.arange(1.0, 9.0).flip(0).view(1, 1, 8, 1)


def exactly(message):
    return f"^{re.escape(message)}$"


MESSAGES = [
    (lambda: kept_count(-1, 0.5), ValueError, "length=-1 is below 0, the least that is allowed"),
    (lambda: kept_count(1.5, 0.5), TypeError, "length=1.5 is not an integer: give one of at least 0"),
    (lambda: check_keep_ratio("0.5"), TypeError, "keep_ratio='0.5' is not a number: give one in (0, 1]"),
    (lambda: check_keep_ratio(True), TypeError, "keep_ratio=True is not a number: give one in (0, 1]"),
    (lambda: check_keep_ratio(0.0), ValueError, "keep_ratio=0.0 is outside (0, 1]"),
    (lambda: check_keep_ratio(1.01), ValueError, "keep_ratio=1.01 is outside (0, 1]"),
    (lambda: check_int("n", True, 1), TypeError, "n=True is not an integer: give one of at least 1"),
    (lambda: effective_prune_after(99, 0), ValueError, "prune_after=0 is below 1, the least that is allowed"),
    (lambda: effective_prune_after(-1, 9), ValueError, "seq_len=-1 is below 0, the least that is allowed"),
    (
        lambda: effective_prune_after(33, 9),
        ValueError,
        "seq_len=33 is too short to evaluate: a text needs at least 34 tokens (32 of context, one to feed, "
        "one to score)",
    ),
    (lambda: eviction_schedule(-1, 4, 0.5), ValueError, "seq_len=-1 is below 0, the least that is allowed"),
    (
        lambda: eviction_schedule(9, 0, 0.5),
        ValueError,
        "effective_prune_after=0 is below 1, the least that is allowed",
    ),
    (
        lambda: eviction_schedule(9, 4, 0.5, when="fixed_budget"),
        ValueError,
        "when='fixed_budget' is not one of 'every_step', 'after_prefill'",
    ),
    (lambda: check_choice("a", "x", ("b", "c")), ValueError, "a='x' is not one of 'b', 'c'"),
    (
        lambda: find_policy("low"),
        ValueError,
        "policy='low' is not one of 'low_norm', 'low_norm_exact', 'high_norm', 'random', 'newest', 'h2o', 'tova', "
        "'snapkv', 'pyramidkv', 'keydiff', 'expected_attention', 'lagkv', 'q_filters', nor 'package.module:Name'",
    ),
    (
        lambda: key_norms(KEYS * torch.inf),
        ValueError,
        "keys hold NaN or infinite values: their norms cannot be ranked",
    ),
    (lambda: l2_compress([], 0.5, 0), ValueError, "prune_after=0 is below 1, the least that is allowed"),
    (
        lambda: check_skip_layers("01", 3),
        TypeError,
        "skip_layers='01' is not a collection of layer indices",
    ),
    (lambda: check_skip_layers(1, 3), TypeError, "skip_layers=1 is not a collection of layer indices"),
    (lambda: check_skip_layers([-1], 3), ValueError, "skip_layers=-1 is below 0, the least that is allowed"),
    (
        lambda: check_skip_layers([3, 0], 3),
        ValueError,
        "skip_layers=[0, 3] names layer 3, but there are 3 layers",
    ),
    (
        lambda: read_layers(None),
        TypeError,
        "past_key_values is a NoneType; give a transformers DynamicCache or a sequence of (key, value) pairs",
    ),
    (
        lambda: read_layers("kv"),
        TypeError,
        "past_key_values is a str; give a transformers DynamicCache or a sequence of (key, value) pairs",
    ),
    (
        lambda: read_layers([(KEYS, KEYS), 7]),
        TypeError,
        "past_key_values[1] is not a (key, value) pair",
    ),
    (lambda: read_layers([(KEYS, 7)]), TypeError, "past_key_values[0] is not a pair of tensors"),
    (lambda: read_layers([(7, KEYS)]), TypeError, "past_key_values[0] is not a pair of tensors"),
    (
        lambda: read_layers([(KEYS.long(), KEYS)]),
        TypeError,
        "past_key_values[0] holds keys of torch.int64; give a floating dtype",
    ),
    (
        lambda: read_layers([(KEYS, KEYS[:, :, 1:])]),
        ValueError,
        "past_key_values[0] has keys (1, 1, 8, 1) and values (1, 1, 7, 1); both have to be "
        "(batch, kv_heads, length, head_dim)",
    ),
    (
        lambda: read_layers([(KEYS[0], KEYS[0])]),
        ValueError,
        "past_key_values[0] has keys (1, 8, 1) and values (1, 8, 1); both have to be "
        "(batch, kv_heads, length, head_dim)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MESSAGES, ids=[message[:40] for _, _, message in MESSAGES])
def test_an_error_says_what_is_wrong_to_the_letter(call, error, message):
    with pytest.raises(error, match=exactly(message)):
        call()


def test_what_is_allowed_passes():
    assert check_int("n", 1, 1) == 1
    assert check_choice("a", "b", ("b", "c")) is None
    assert check_skip_layers([0, 2], 3) == {0, 2}
    assert check_skip_layers((), 0) == frozenset()
    assert eviction_schedule(0, 1, 0.5) == ()


def caches():
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    cache.update(KEYS, KEYS, 0)
    cache.layers.append(DynamicLayer())
    return cache


def test_layers_of_a_dynamic_cache_that_hold_nothing_or_cannot_be_pruned():
    empty = caches()
    for keys in (None, KEYS[:, :, :0]):
        empty.layers[1].keys = keys
        with pytest.raises(ValueError, match=exactly("past_key_values holds no keys in layer 1: feed the model first")):
            read_layers(empty)
    foreign = caches()
    foreign.layers[1] = object()
    message = (
        "past_key_values is a DynamicCache whose layer 1 is a object; only the growing layers of a DynamicCache can "
        "be pruned (not static, quantised or sliding-window ones)"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        read_layers(foreign)
    single = caches()
    single.layers[1].keys = single.layers[1].values = KEYS[:, :, :1]
    assert [keys.shape[2] for keys, _ in read_layers(single)] == [8, 1]
    with pytest.raises(ValueError, match="zip"):
        with_layers(single, [(KEYS, KEYS)])


def test_the_defaults_are_no_compression_and_a_threshold_of_2048():
    assert l2_compress([(KEYS, KEYS)], prune_after=1)[0][0] is KEYS
    for length, kept in [(2047, 2047), (2048, 1024)]:
        keys = torch.ones(1, 1, length, 1)
        assert l2_compress([(keys, keys)], 0.5)[0][0].shape[2] == kept


def test_a_tuple_gives_a_tuple_and_a_list_a_list():
    for kind in (tuple, list):
        compressed = l2_compress(kind([(KEYS, KEYS)]), 0.5, 1)
        assert type(compressed) is kind
        assert compressed[0][0].flatten().tolist() == [4.0, 3.0, 2.0, 1.0]


def test_norms_round_to_the_nearest_of_16_bits():
    bits_of_1 = 1023 << 15  # the exponent of 1.0, and 15 bits after it
    norms = torch.tensor([1.0, 1 + 2**-16 - 2**-52, 1 + 2**-16, 1 + 2**-15, 2.0], dtype=torch.float64)
    assert round_norms(norms).tolist() == [bits_of_1, bits_of_1, bits_of_1 + 1, bits_of_1 + 1, bits_of_1 + (1 << 15)]


def test_norms_are_float32_except_for_float64_keys():
    dtypes = {dtype: key_norms(KEYS.to(dtype)).dtype for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    assert dtypes == {
        torch.float64: torch.float64,
        torch.float32: torch.float32,
        torch.bfloat16: torch.float32,
    }


def test_random_scores_are_the_same_numbers_everywhere():
    # Philox, whose raw stream NumPy guarantees: seed, layer and head are its key.
    scores = -key_scores(Random(seed=2), torch.ones(1, 2, 3, 1), torch.arange(3), layer=1)
    assert scores.dtype == torch.int64
    assert scores.tolist() == [
        [
            [4739194144735590222, 8302617146763877213, 2729744657045137061],
            [7308529671235504348, 4359821264248852369, 3680063440828681211],
        ]
    ]
    default = key_scores(find_policy("random"), KEYS, torch.arange(8))
    assert torch.equal(default, key_scores(Random(seed=0), KEYS, torch.arange(8), layer=0))


def test_tensors_are_made_where_the_keys_are_whatever_the_default_device():
    keys = torch.randn(1, 2, 200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    setting = Setting(seq_len=201, layers=2, start=64, keep_ratio=(Fraction(1, 2),) * 2, sliding={1: 32})

    def everything():
        [(kept, _)] = l2_compress([(keys, keys)], 0.5, 1)
        scores = [
            key_scores(find_policy(policy), keys, torch.arange(200, device="cpu"))
            for policy in ("low_norm", "low_norm_exact", "high_norm", "random", "newest")
        ]
        deaths = [layer_deaths(setting, 0, keys), layer_deaths(setting, 1, keys)]
        for policy in (H2O(), SnapKV(), KeyDiff()):
            protection = Protection(4, policy.recent)
            deaths.append(replayed_deaths(policy, keys, keys, keys, setting.schedule(0), protection=protection))
        attended = [mortal_attention(keys, keys, keys, death, softcap=cap) for death in deaths for cap in (None, 3.0)]
        return [kept, *scores, *deaths, *attended, mortal_attention(keys, keys, keys, None, softcap=3.0)]

    expected = everything()
    with torch.device("meta"):
        made = everything()
    for here, there in zip(expected, made, strict=True):
        assert there.device.type == "cpu"
        assert torch.equal(here, there)


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
@pytest.mark.parametrize("arguments", [{}, {"policy": "snapkv", "keep_ratio": 0.9}, {"positions": "rerotated"}])
def test_a_default_device_without_numbers_changes_no_evaluation(method, arguments):
    given = {"keep_ratio": 0.5, "prune_after": 40, "method": method, **arguments}
    model, ids = tiny_model("llama"), random_ids(60).tolist()
    expected = evaluate(model, ids, **given).nll
    with torch.device("meta"):
        nll = [evaluate(model, ids, **given).nll, evaluate_batch(model, [ids], **given)[0].nll]
        ratio = given.pop("keep_ratio")
        nll += [each.nll for each in evaluate_table(model, ids, keep_ratios=[ratio], **given).values()]
    assert all(torch.equal(each, expected) for each in nll)


def test_the_token_fed_at_the_step_of_a_death_no_longer_sees_the_key():
    keys = torch.randn(1, 1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    deaths = torch.tensor([[[1, NEVER, NEVER]]])
    out = mortal_attention(keys, keys, keys, deaths)
    assert torch.equal(out[0, 0, :2], keys[0, 0, :2])
