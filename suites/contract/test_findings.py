"""A failure reads like a finding."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from knorm_core import kept_count, l2_compress
from knorm_core.contract import (
    COMPRESSOR_CHECKS,
    EVALUATOR_CHECKS,
    Claims,
    Finding,
    as_compressor,
    check_compressor,
    searching,
)
from knorm_core.contract.checks import COMPRESSOR_GROUPS, Check, registered
from knorm_core.contract.findings import Broken
from knorm_core.contract.trials import Trial

pytestmark = pytest.mark.fast

CHECKS = COMPRESSOR_CHECKS + EVALUATOR_CHECKS
BROKEN = Broken(expected="one thing", got="another")
by_name = {check.name: check for check in CHECKS}


def by_norm(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    layers = []
    for keys, values in past:
        index = keys.norm(dim=-1).argsort(dim=-1)[..., : kept_count(keys.shape[2], keep_ratio)].unsqueeze(-1)
        layers.append((keys.take_along_dim(index, 2), values.take_along_dim(index, 2)))
    return layers


def finding_of(check: str, compressor: Any) -> Finding:
    finding = by_name[check].find(as_compressor(compressor))
    assert finding is not None
    return finding


def test_the_message_names_promise_example_expectation_and_how_to_see_it() -> None:
    def unlike_norms(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        high = [(-keys.norm(dim=-1)).argsort(dim=-1)[..., : kept_count(keys.shape[2], keep_ratio)] for keys, _ in past]
        return [
            (keys.take_along_dim(index.unsqueeze(-1), 2), values.take_along_dim(index.unsqueeze(-1), 2))
            for (keys, values), index in zip(past, high, strict=True)
        ]

    assert str(finding_of("lowest_norms_survive", unlike_norms)).splitlines() == [
        "unlike_norms does not keep the promise 'lowest_norms_survive'",
        "",
        "  promise   In every row and KV head, the keys of smallest L2 norm survive.",
        "  example   CacheCase(lengths=(2,))",
        "              compressed with keep_ratio=0.5, prune_after=1, skip_layers=[]",
        "  where     layer 0",
        "            row 0",
        "            head 0",
        "            norms [1.1, 1]",
        "  expected  tokens [1] to stay",
        "  got       tokens [0]: exactly the highest norms",
        "  picture   fed       0 1",
        "            expected  . 1",
        "            got       0 .",
        "  against   the sign (highest instead of lowest), against norms averaged over heads or one head's choice used",
        "            for all, and against another norm than L2.",
        "  claim     Claims(key_norm=False) says that it is not promised",
        "  see it    from knorm_core.contract import CacheCase",
        "            # unlike_norms is what was passed; it has no name to import it by",
        "            print(unlike_norms(CacheCase(lengths=(2,)).pairs(), "
        "keep_ratio=0.5, prune_after=1, skip_layers=[]))",
    ]


def test_counterexamples_are_small() -> None:
    finding = finding_of("keeps_temporal_order", by_norm)
    assert "CacheCase(lengths=(3,)" in str(finding)
    assert "keep_ratio=0.5," in str(finding)


def test_an_exception_is_a_finding_that_says_where_it_came_from() -> None:
    def crashes(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        raise IndexError("out of keys")

    assert "got       IndexError: out of keys (test_findings.py:" in str(finding_of("returns_a_cache", crashes))


@pytest.mark.parametrize(
    ("returned", "got"),
    [(3, "a int"), ([], "0 layers"), ([1], "a cache of the kind"), ([(torch.ones(2), torch.ones(2))], "(2,)")],
    ids=str,
)
def test_what_is_no_cache_is_a_finding(returned: Any, got: str) -> None:
    assert got in str(finding_of("returns_a_cache", lambda *args, **kwargs: returned))


def test_a_compressor_that_cannot_make_up_its_mind_is_a_finding() -> None:
    wrong: list[float] = []

    def moody(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        length = past[0][0].shape[2]
        evicts = length >= prune_after and kept_count(length, keep_ratio) < length and not skip_layers
        if not wrong and evicts and len(past) == 2 and keep_ratio != 0.5:
            wrong.append(keep_ratio)  # once, not where the rule that it keeps is looked for
            return past
        return l2_compress(past, keep_ratio, prune_after, skip_layers)

    assert "the same call did not fail again" in str(finding_of("keeps_the_declared_count", moody))


def test_hypothesis_adds_nothing_to_a_finding() -> None:
    with pytest.raises(Finding) as caught:
        by_name["keeps_temporal_order"](as_compressor(by_norm))
    assert not getattr(caught.value, "__notes__", [])
    assert caught.value.__cause__ is None
    assert "ypothesis" not in str(caught.value)


def test_the_number_of_cases_can_be_set() -> None:
    calls = []

    def counts(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        calls.append(keep_ratio)
        return l2_compress(past, keep_ratio, prune_after, skip_layers)

    with searching(examples=7):
        by_name["ratio_one_changes_nothing"](as_compressor(counts))
    assert calls.count(1.0) == 7  # what is tried before any check has other ratios


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_every_check_states_its_promise_and_the_fault_it_guards_against(check: Check) -> None:
    assert check.promise.endswith(".")
    assert "Guards against " in (check.function.__doc__ or "")
    assert check.guards.endswith(".")


def test_no_two_checks_share_a_name() -> None:
    assert len(by_name) == len(CHECKS)


@pytest.mark.parametrize(
    ("claims", "left_out"),
    [
        (Claims(key_norm=False), "lowest_norms_survive"),
        (Claims(order=False), "keeps_temporal_order"),
        (Claims(count=None), "keeps_the_declared_count"),
        (Claims(threshold=False), "fires_again"),
    ],
)
def test_a_compressor_is_held_only_to_what_it_claims(claims: Claims, left_out: str) -> None:
    assert not by_name[left_out].applies(claims)
    assert by_name[left_out].applies(Claims())


def test_the_count_rule_that_was_expected_is_named_and_so_is_the_one_that_was_seen() -> None:
    def truncates(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        kept_count(1, keep_ratio)
        kept = [max(1, int(keep_ratio * keys.shape[2])) for keys, _ in past]
        return [
            (keys[:, :, :count].clone(), values[:, :, :count].clone())
            for (keys, values), count in zip(past, kept, strict=True)
        ]

    claims = Claims(threshold=False, skip_layers=False, key_norm=False)
    [finding] = check_compressor(lambda past, keep_ratio: truncates(past, keep_ratio, 1, ()), claims)
    assert finding.check == "keeps_the_declared_count"
    assert "2 of 3 keys at keep ratio 0.5, by the claimed rule kept_count" in finding.expected
    assert finding.got == "1 keys; every count that was tried is that of the rule by_floor"
    assert finding.claim.startswith("Claims(count=by_floor) ")


@pytest.mark.parametrize("check", registered(*COMPRESSOR_GROUPS[1:]), ids=str)
def test_every_check_says_what_switches_it_off(check: Check) -> None:
    claim = check._claim(as_compressor(l2_compress), Trial(as_compressor(l2_compress)).counterexample(BROKEN))
    if check.name in claim:
        assert not {field.name for field in dataclasses.fields(Claims)} & set(check.needs)
    else:
        switched_off = eval(claim.split(" says ")[0], {"Claims": Claims})
        assert not check.applies(switched_off)
