"""A failure reads like a finding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from knorm_core import kept_count, l2_compress
from knorm_core.contract import COMPRESSOR_CHECKS, EVALUATOR_CHECKS, Claims, Finding, as_compressor, searching
from knorm_core.contract.checks import Check

pytestmark = pytest.mark.fast

CHECKS = COMPRESSOR_CHECKS + EVALUATOR_CHECKS
by_name = {check.name: check for check in CHECKS}


def by_norm(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
    layers = []
    for keys, values in past:
        index = keys.norm(dim=-1).argsort(dim=-1)[..., : kept_count(keys.shape[2], keep_ratio)].unsqueeze(-1)
        layers.append((keys.take_along_dim(index, 2), values.take_along_dim(index, 2)))
    return layers


def found(check: str, compressor: Any) -> Finding:
    finding = by_name[check].find(as_compressor(compressor))
    assert finding is not None
    return finding


def test_the_message_names_promise_example_expectation_and_how_to_see_it() -> None:
    def latest(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        return [(keys[:, :, -1:], values[:, :, -1:]) for keys, values in past]

    assert str(found("lowest_norms_survive", latest)).splitlines() == [
        "latest does not keep the promise 'lowest_norms_survive'",
        "",
        "  promise   In every row and KV head, the keys of smallest L2 norm survive.",
        "  example   CacheCase(lengths=(2,), kv_heads=2)",
        "              compressed with keep_ratio=0.5, prune_after=1, skip_layers=[]",
        "  where     layer 0",
        "            row 0",
        "            head 1",
        "            norms [0.99999998, 1.1]",
        "  expected  tokens [0] to stay",
        "  got       tokens [1]",
        "  against   the sign (highest instead of lowest), against norms averaged over heads or one head's choice used",
        "            for all, and against another norm than L2.",
        "  see it    from knorm_core.contract import CacheCase",
        "            # latest is what was passed; it has no name to import it by",
        "            print(latest(CacheCase(lengths=(2,), kv_heads=2).pairs(), "
        "keep_ratio=0.5, prune_after=1, skip_layers=[]))",
    ]


def test_counterexamples_are_small() -> None:
    finding = found("keeps_temporal_order", by_norm)
    assert "CacheCase(lengths=(3,)" in str(finding)
    assert "keep_ratio=0.5," in str(finding)


def test_an_exception_is_a_finding_that_says_where_it_came_from() -> None:
    def crashes(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        raise IndexError("out of keys")

    assert "got       IndexError: out of keys (test_findings.py:" in str(found("keeps_temporal_order", crashes))


@pytest.mark.parametrize(
    ("returned", "got"),
    [(None, "a NoneType"), ([], "0 layers"), ([1], "a cache of the kind"), ([(torch.ones(2), torch.ones(2))], "(2,)")],
    ids=str,
)
def test_what_is_no_cache_is_a_finding(returned: Any, got: str) -> None:
    assert got in str(found("keeps_temporal_order", lambda *args, **kwargs: returned))


def test_a_compressor_that_cannot_make_up_its_mind_is_a_finding() -> None:
    wrong_once: list[bool] = []

    def moody(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        right = l2_compress(past, keep_ratio, prune_after, skip_layers)
        evicts = any(keys.shape != kept.shape for (keys, _), (kept, _) in zip(past, right, strict=True))
        if evicts and not wrong_once:
            wrong_once.append(True)
            return past
        return right

    assert "the same call did not fail again" in str(found("keeps_the_declared_count", moody))


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
        return past

    with searching(examples=7):
        by_name["ratio_one_changes_nothing"](as_compressor(counts))
    assert len(calls) == 7


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
