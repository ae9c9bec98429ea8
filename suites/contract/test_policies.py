"""The contract of policies: those of the suite keep it, and it sees what it has to."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from knorm_core.contract import (
    POLICY_CHECKS,
    CheckedPolicy,
    PolicyCase,
    PolicyClaims,
    as_policy,
    check_policy,
    parametrize_with_policy_checks,
    searching,
)
from knorm_core.contract.checks import Check
from knorm_core.contract.policy_peeks import peeks
from knorm_core.policies import TOVA, LowNorm, SnapKV
from knorm_core.policy import Policy
from suites.core import own_policies

pytestmark = pytest.mark.fast

CHECKS = {check.name: check for check in POLICY_CHECKS}
LIMIT, NAMES = 4, ("a", "b")
LOG = logging.getLogger(__name__)
COUNTER = 0
LOADED: list[torch.Tensor] = []


@parametrize_with_policy_checks("low_norm", own_policies.TOVA(), own_policies.Decayed(), own_policies.ThreeQueries())
def test_policies_keep_the_contract(policy: Any, check: Check) -> None:
    with searching(examples=6):
        check(policy)


def test_a_finding_names_the_smallest_case_the_claim_and_how_to_see_it() -> None:
    from suites.exhibits.policies import ExpandedMean

    finding = CHECKS["heads_are_independent"].find(as_policy(ExpandedMean()))
    assert finding is not None
    assert finding.claim == "PolicyClaims(heads=False) says that it is not promised"
    assert "from suites.exhibits.policies import ExpandedMean" in finding.snippet
    assert ".survivors(ExpandedMean())" in finding.snippet
    assert "looked at KV head" in str(finding)
    assert CHECKS["heads_are_independent"] not in [
        check for check in POLICY_CHECKS if check.applies(PolicyClaims(heads=False))
    ]


def test_scores_that_are_nan_break_the_promise_that_they_can_be_ranked_whichever_check_comes_upon_them() -> None:
    class NaNForSomeTexts(Policy):
        reads = "cache"

        def score(self, seen: Any) -> Any:
            scores = seen.keys.sum(dim=-1)
            return scores / 0 * 0 if len(scores) == 2 else scores  # only where two texts are looked at together

    finding = CHECKS["rows_are_independent"].find(as_policy(NaNForSomeTexts()))
    assert finding is not None
    assert finding.check == "scores_can_be_ranked"
    assert finding.expected == "scores that can be ranked"
    assert "returned NaN" in finding.got


def test_one_exception_is_one_finding() -> None:
    class Raises(Policy):
        def score(self, seen: Any) -> Any:
            raise KeyError("weights")

    [finding] = check_policy(Raises())
    assert "KeyError" in finding.got
    assert "same_answer_twice" in str(finding)


def test_a_case_is_repeated_by_its_repr() -> None:
    case = PolicyCase(20, 8, 0.75, sinks=1, seeds=(3, 4), later=9)
    assert eval(repr(case)) == case
    assert repr(case) == "PolicyCase(seq_len=20, prune_after=8, keep_ratio=0.75, sinks=1, seeds=(3, 4), later=9)"
    survivors = case.survivors(LowNorm())
    assert {place[0] for place in survivors} == {0, 1}
    assert all(positions.shape == (2, 2, 6) for positions in survivors.values())


def test_a_policy_is_named_as_it_is_made() -> None:
    assert as_policy(SnapKV(window=4)).called == "SnapKV(window=4, kernel=5)"
    assert as_policy("suites.contract.test_policies:MINE").claims.heads is False
    with pytest.raises(ValueError, match=r"suites\.contract\.test_policies has no YOURS"):
        as_policy("suites.contract.test_policies:YOURS")
    with pytest.raises(TypeError, match="is a class: give an instance"):
        as_policy(TOVA)


MINE: CheckedPolicy = as_policy(TOVA(), PolicyClaims(heads=False))


class Constant(Policy):
    """Reads a number, a tuple, a logger, a function and a class that do not change."""

    def score(self, seen: Any) -> Any:
        LOG.debug("%s", NAMES)
        return seen.keys[..., :LIMIT].sum(-1) * len(as_policy.__name__)


class Rebound(Policy):
    """Reads a number that another function assigns."""

    def score(self, seen: Any) -> Any:
        return seen.positions * COUNTER


def count() -> None:
    global COUNTER
    COUNTER += 1


class OfTheClass(Policy):
    """Its instances share what one of them wrote."""

    memory: dict[int, torch.Tensor] = {}  # noqa: RUF012

    def score(self, seen: Any) -> Any:
        return self.memory.setdefault(seen.layer, seen.positions)


def made_here() -> Policy:
    weights = torch.ones(4)

    class Closure(Policy):
        def score(self, seen: Any) -> Any:
            return seen.keys.sum(-1) * weights.sum()

    return Closure()


class Nested(Policy):
    """What it reads is named in a comprehension of a function that it calls."""

    def score(self, seen: Any) -> Any:
        return seen.positions + total()


def total() -> Any:
    return sum(int(each.sum()) for each in LOADED)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Constant(), []),
        (Rebound(), ["COUNTER, an int global of"]),
        (OfTheClass(), ["memory, a dict that all instances of OfTheClass share"]),
        (made_here(), ["weights, a Tensor of the function that made"]),
        (Nested(), ["LOADED, a list global of"]),
    ],
    ids=["constants", "rebound", "class", "closure", "nested"],
)
def test_what_may_change_beside_what_is_shown_is_named(policy: Policy, says: list[str]) -> None:
    outside = peeks(policy)
    assert len(outside) == len(says)
    assert all(start in got for start, got in zip(says, outside, strict=True))
