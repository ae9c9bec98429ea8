"""Arguments of `evaluate`, at random: every policy, schedule, protection and position mode that goes together."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from knorm_core import POLICIES, effective_prune_after, kept_count
from knorm_core.policies import ExpectedAttention, LagKV, PyramidKV, SnapKV
from knorm_core.policy import Policy
from suites.core.own_policies import AllQueries, Decayed, HiddenStates
from suites.families import VOCABULARY, random_ids

RATIOS = (1.0, 0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03)
KEY_POLICIES = ("low_norm", "low_norm_exact", "high_norm", "random", "newest")
#: One of each kind that plays its evictions forward, and some that a user might write.
REPLAYED = (
    "h2o",
    "tova",
    "keydiff",
    SnapKV(window=3, kernel=3),
    PyramidKV(window=2, kernel=3, beta=3),
    LagKV(lag=5, sinks=2),
    AllQueries(),
    Decayed(),
    HiddenStates(),
)
#: Those that un-rotate queries, for families whose rotation is known.
UNROTATING = (ExpectedAttention(future=16, window=20, sinks=2), ExpectedAttention(future=9, window=None, sinks=0))
# q_filters is fitted to a model: `test_q_filters`.
assert set(KEY_POLICIES) | {"h2o", "tova", "keydiff", "snapkv", "pyramidkv", "lagkv"} == set(POLICIES) - {
    "expected_attention",
    "q_filters",
}


def text_for(arguments, length, seed):
    """Token ids (length,), each but once where a policy ranks by what rounding noise may decide.

    A token that is fed twice with the same position, as "cache" has it, has the same key in layer 0 and receives the
    same attention up to the last bit. Norms are rounded for that reason; other scores are not.
    """
    if arguments["policy"] in KEY_POLICIES:
        return random_ids(length, seed)
    return torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[:length]


def fits(policy, least, divisible):
    """Whether a policy can be evaluated where an eviction keeps at least so many keys.

    ``divisible``: enough for a pyramid, of layers whose lengths may differ.
    """
    return divisible if policy.divides else policy.sinks + policy.recent <= least


@st.composite
def questions(draw, longest=90, policies=KEY_POLICIES + REPLAYED, positions=("absolute", "cache"), by_layer=True):
    """Arguments of `evaluate`, and the text's length, and its seed."""
    length = draw(st.integers(34, longest))
    mode = draw(st.sampled_from(positions))
    arguments = {
        "positions": mode,
        "score_from": draw(st.sampled_from(["phase2", "start"])),
        "first_eviction_after": draw(st.sampled_from([0, 0, 0, 1])),
        "allow_no_eviction": True,
    }
    by_layer = by_layer and mode != "rerotated"
    if by_layer:
        arguments["skip_layers"] = draw(st.sampled_from([(), (0,), (1,), (0, 2)]))
    times = 3 if by_layer and draw(st.booleans()) else 1
    if draw(st.booleans()):
        amounts = draw(st.lists(st.integers(2, length - 2), min_size=times, max_size=times))
        least = min(amounts) - 1
        arguments |= {"when": "fixed_budget", "budget": amounts if times > 1 else amounts[0]}
    else:
        amounts = draw(st.lists(st.sampled_from(RATIOS), min_size=times, max_size=times))
        arguments |= {"when": draw(st.sampled_from(["every_step", "after_prefill"]))}
        arguments |= {"keep_ratio": amounts if times > 1 else amounts[0], "prune_after": draw(st.integers(1, 80))}
        least = kept_count(effective_prune_after(length, arguments["prune_after"]), min(amounts))
    divisible = times == 1 and mode != "rerotated" and least >= 8
    fitting = [policy for policy in policies if isinstance(policy, str) or fits(policy, least, divisible)]
    if least < 2 and "keydiff" in fitting:
        fitting.remove("keydiff")  # of two keys, both are equally far from their mean
    arguments["policy"] = draw(st.sampled_from(fitting))
    policy = arguments["policy"]
    if isinstance(policy, str):
        arguments["seed"] = draw(st.integers(0, 9))
    own = (policy.sinks, policy.recent) if isinstance(policy, Policy) else (0, 0)
    if isinstance(policy, PyramidKV):  # whose last layer keeps fewer
        least = policy.recent
    arguments["sinks"] = draw(st.integers(0, min(4, least - own[1])))
    arguments["recent"] = draw(st.integers(0, min(12, least - max(own[0], arguments["sinks"]))))
    return length, draw(st.integers(0, 5)), arguments
