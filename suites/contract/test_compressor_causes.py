"""One cause makes one finding: what a compressor does to its survivors is recognised before they are called wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from knorm_core import l2_compress
from knorm_core.contract import Claims, Finding, as_compressor, check_compressor, each_layer, for_budget, searching

pytestmark = pytest.mark.full

#: A compressor of one layer, by key norm, that leaves ties and NaN to torch.
BY_NORM = Claims(threshold=False, skip_layers=False, ties=False, rounded=False, float32_norms=False, refuses_nan=False)


@pytest.fixture(autouse=True)
def _few_cases() -> Iterator[None]:
    with searching(examples=5):
        yield


def keeping(scores: Callable[[Any, Any, int], torch.Tensor]) -> Callable[[Any, Any, int], Any]:
    """The keys of lowest score stay, in temporal order."""

    def compress(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        order = scores(keys.double(), values.double(), kept).expand(keys.shape[:3]).argsort(dim=-1, stable=True)
        index = order[..., :kept].sort(dim=-1).values.unsqueeze(-1)
        return keys.take_along_dim(index, 2), values.take_along_dim(index, 2)

    return compress


def norms(keys: Any, values: Any, kept: int) -> torch.Tensor:
    return torch.as_tensor(keys).norm(dim=-1)


def only_finding(compressor: Any, claims: Claims | None = None) -> Finding:
    [finding] = check_compressor(compressor, claims)
    return finding


def promises_no_more(finding: Finding, compressor: Any, claims: Claims) -> bool:
    """The claim that a finding names leaves nothing to find."""
    changes = eval(finding.claim.split(" says ")[0].replace("Claims(", "dict(", 1))
    return check_compressor(compressor, dataclasses.replace(claims, **changes)) == []


RULES = {
    "the highest norms": ("lowest_norms_survive", lambda keys, values, kept: -keys.norm(dim=-1)),
    "the lowest norms, averaged over the heads": (
        "lowest_norms_survive",
        lambda keys, values, kept: keys.norm(dim=-1).mean(dim=1, keepdim=True),
    ),
    "the choice of head 0, in every head": (
        "heads_choose_for_themselves",
        lambda keys, values, kept: keys.norm(dim=-1)[:, :1],
    ),
    "the lowest L1 norms": ("rotation_changes_nothing", lambda keys, values, kept: keys.abs().sum(dim=-1)),
    "the lowest maximum norms": ("rotation_changes_nothing", lambda keys, values, kept: keys.abs().amax(dim=-1)),
    "the lowest norms of the first half of the head": (
        "rotation_changes_nothing",
        lambda keys, values, kept: keys[..., : keys.shape[-1] // 2].norm(dim=-1),
    ),
    "the lowest norms of the values": ("values_decide_nothing", lambda keys, values, kept: values.norm(dim=-1)),
    "the latest tokens, whatever their norm": (
        "position_decides_nothing",
        lambda keys, values, kept: -torch.arange(keys.shape[2]),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_another_rule_is_named_once(rule: str) -> None:
    check, scores = RULES[rule]
    compressor = each_layer(keeping(scores), BY_NORM)
    finding = only_finding(compressor)
    assert finding.check == check
    assert finding.got.endswith(f": exactly {rule}")
    assert promises_no_more(finding, compressor, BY_NORM)


def test_a_window_that_grows_with_the_budget_is_one_finding() -> None:
    def a_third_recent(keys: Any, values: Any, kept: int) -> torch.Tensor:
        scores = norms(keys, values, kept).clone()
        scores[..., keys.shape[2] - kept // 3 :] = -1.0
        return scores

    finding = only_finding(each_layer(keeping(a_third_recent), BY_NORM))
    assert finding.check == "position_decides_nothing"
    assert finding.got.endswith("once some first or latest tokens always stay, more in larger budgets")


def test_a_random_choice_is_one_finding() -> None:
    def random(keys: Any, values: Any, kept: int) -> torch.Tensor:
        return torch.rand(keys.shape[:3])

    claims = dataclasses.replace(BY_NORM, key_norm=False)
    compressor = each_layer(keeping(random), claims)
    finding = only_finding(compressor)
    assert finding.check == "two_calls_agree"
    assert finding.claim == "Claims(deterministic=False) says that it is not promised"
    assert promises_no_more(finding, compressor, claims)


def test_merged_values_are_one_finding() -> None:
    def merges(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        keys, before = keeping(norms)(keys, values, kept)
        return keys, before + values.mean(dim=2, keepdim=True)

    claims = dataclasses.replace(BY_NORM, leaves_input=True)
    findings = check_compressor(each_layer(merges, claims))
    assert [finding.check for finding in findings] == ["values_stay_with_their_keys", "ratio_one_changes_nothing"]
    assert findings[0].claim == "Claims(unmerged=False) says that it is not promised"


def test_rows_that_depend_on_each_other_are_one_finding() -> None:
    compressor = each_layer(keeping(lambda keys, values, kept: norms(keys, values, kept)[:1]), BY_NORM)
    finding = only_finding(compressor)
    assert finding.check == "batch_rows_are_independent"
    assert promises_no_more(finding, compressor, BY_NORM)


def test_a_threshold_that_is_off_by_one_is_one_finding() -> None:
    def beyond(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        return l2_compress(past, keep_ratio, prune_after + 1, skip_layers)

    finding = only_finding(beyond)
    assert finding.check == "fires_from_the_threshold_on"
    assert "only beyond prune_after keys" in finding.got
    assert promises_no_more(finding, beyond, Claims())


def test_a_compressor_that_never_evicts_is_one_finding() -> None:
    def nothing(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        return past

    finding = only_finding(nothing)
    assert finding.check == "keeps_the_declared_count"
    assert "nothing is ever evicted, from layers of 3 to 100 keys" in finding.got


def test_one_budget_for_all_layers_needs_no_claim_about_their_lengths() -> None:
    def make(kept: int) -> Any:
        return lambda past: [keeping(norms)(keys, values, kept) for keys, values in past]

    assert check_compressor(for_budget(make, BY_NORM)) == []


def test_at_keep_ratio_one_any_order_will_do_where_none_is_promised() -> None:
    def by_score(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        index = keys.double().norm(dim=-1).argsort(dim=-1)[..., :kept].unsqueeze(-1)
        return keys.take_along_dim(index, 2), values.take_along_dim(index, 2)

    claims = dataclasses.replace(BY_NORM, order=False)
    assert check_compressor(each_layer(by_score, claims)) == []
    ordered = {finding.check for finding in check_compressor(each_layer(by_score, BY_NORM))}
    assert ordered == {"keeps_temporal_order", "ratio_one_changes_nothing"}


def test_an_exception_in_torch_is_placed_where_torch_was_called() -> None:
    def crashes(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        return len(torch.tensor(1))  # raises in torch/_tensor.py

    assert "(test_compressor_causes.py:" in only_finding(as_compressor(crashes)).got
