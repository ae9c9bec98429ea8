"""One cause makes one finding: limits of a compressor, and what explains an evaluator's losses."""

from __future__ import annotations

import math
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from knorm_core import effective_prune_after, kept_count, l2_compress
from knorm_core.contract import (
    COMPRESSOR_CHECKS,
    Claims,
    EvaluatorClaims,
    as_compressor,
    as_evaluator,
    check_compressor,
    check_evaluator,
    each_layer,
    searching,
)
from knorm_core.contract.diagnosis import diagnose
from knorm_core.contract.variants import above_threshold


@pytest.fixture(autouse=True)
def _few_cases() -> Iterator[None]:
    with searching(examples=5):
        yield


def limited(refuses: Callable[[Any, float], bool]) -> Callable[..., Any]:
    """`l2_compress`, except that it raises for some caches."""

    def compress(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        if refuses(past, keep_ratio):
            raise RuntimeError("not made for this")
        return l2_compress(past, keep_ratio, prune_after, skip_layers)

    return compress


def kept(keys: torch.Tensor, keep_ratio: float) -> int:
    return kept_count(keys.shape[2], keep_ratio) if 0 < keep_ratio <= 1 else keys.shape[2]


@pytest.mark.full
@pytest.mark.parametrize(
    ("refuses", "claim"),
    [
        (lambda past, ratio: any(keys.shape[2] < 2 for keys, _ in past), "min_length=2"),
        (lambda past, ratio: any(keys.shape[2] < 100 for keys, _ in past), "min_length=100"),
        (lambda past, ratio: any(kept(keys, ratio) < 4 for keys, _ in past), "min_kept=4"),
        (lambda past, ratio: past[0][0].shape[0] > 1, "max_batch=1"),
        (lambda past, ratio: past[0][0].shape[1] < 2, "min_heads=2"),
        (lambda past, ratio: len(past) > 1, "max_layers=1"),
        (lambda past, ratio: len({keys.shape[2] for keys, _ in past}) > 1, "equal_lengths=True"),
        (lambda past, ratio: past[0][0].dtype == torch.bfloat16, "dtypes=('float32', 'float64', 'float16')"),
    ],
)
def test_an_exception_that_repeats_is_one_finding_that_names_the_claim(refuses: Any, claim: str) -> None:
    [finding] = check_compressor(limited(refuses))
    assert claim in finding.claim
    assert finding.got.startswith("RuntimeError: not made for this (test_causes.py:")
    assert check_compressor(limited(refuses), eval(finding.claim.split(" says ")[0], {"Claims": Claims})) == []


@pytest.mark.full
def test_a_compressor_without_the_arguments_is_one_finding() -> None:
    [finding] = check_compressor(lambda past, keep_ratio: l2_compress(past, keep_ratio, prune_after=1))
    assert finding.claim.startswith("Claims(threshold=False, skip_layers=False) ")


@pytest.mark.full
def test_repeated_kv_heads_are_one_finding_and_not_a_crash() -> None:
    def repeats(past: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> Any:
        compressed = l2_compress(past, keep_ratio, prune_after, skip_layers)
        return [(keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)) for keys, values in compressed]

    [finding, *others] = check_compressor(repeats)
    assert (finding.check, finding.got) == ("returns_a_cache", "(1, 4, 12, 8)")
    assert finding.claim.startswith("Claims(repeats_heads=2) ")
    # At keep ratio 1 and below the threshold the heads are expanded as well: copied, so no more than that is said.
    assert not [other for other in others if other.crash]


@pytest.mark.full
def test_what_cannot_be_called_at_all_is_one_finding_and_the_rest_is_skipped() -> None:
    broken = as_compressor(limited(lambda past, ratio: True))
    [finding] = check_compressor(broken)
    assert finding.check == "returns_a_cache"
    [order] = [check for check in COMPRESSOR_CHECKS if check.name == "keeps_temporal_order"]
    with pytest.raises(unittest.SkipTest, match="not answered: see returns_a_cache"):
        order(broken)


@pytest.mark.full
def test_protected_tokens_are_one_finding_that_counts_them() -> None:
    def protects(keys: torch.Tensor, values: torch.Tensor, kept: int) -> Any:
        norms = keys.double().norm(dim=-1)
        norms[..., :2], norms[..., -3:] = -2.0, -1.0
        index = norms.argsort(dim=-1, stable=True)[..., :kept].sort(dim=-1).values.unsqueeze(-1)
        return keys.take_along_dim(index, 2), values.take_along_dim(index, 2)

    claims = Claims(threshold=False, skip_layers=False, rounded=False, refuses_nan=False)
    [finding] = check_compressor(each_layer(protects, claims))
    assert finding.check == "position_decides_nothing"
    assert "the first 2 and the latest 3 of the tokens always stay" in finding.got
    assert finding.claim.startswith("Claims(sinks=2, recent=3) ")


def loop(
    *, feeds_first: bool = False, drift: bool = False, compress: Any = l2_compress, skip_layers: tuple[int, ...] = ()
) -> Callable[..., list[torch.Tensor]]:
    """A two-phase evaluation in twenty lines, sharing nothing with `knorm_core.evaluate`."""

    def losses(model: Any, ids: torch.Tensor, keep_ratio: float, prune_after: int) -> list[torch.Tensor]:
        start = effective_prune_after(len(ids), prune_after)
        was_training = model.training
        model.eval()
        cache, result = DynamicCache(), []
        try:
            for step in range(len(ids) - 1):
                if step >= start + feeds_first:
                    cache = compress(cache, keep_ratio, start, skip_layers)
                where = {} if drift else {"position_ids": torch.tensor([[step]])}
                with torch.no_grad():
                    logits = model(ids[None, step : step + 1], past_key_values=cache, **where).logits[0, -1]
                if step >= start:
                    result.append(-logits.log_softmax(-1)[ids[step + 1]])
        finally:
            model.train(was_training)
        return result

    return losses


# Its own attention of a model that ignores positions would be refused by nobody in these loops.
OTHERS = {"deaf_models_are_refused", "evicts_while_scoring"}


EXPLAINED = [
    (
        loop(feeds_first=True),
        {},
        "compresses_before_feeding",
        "compresses after feeding a token instead of before: its first eviction comes one token later",
    ),
    (
        loop(feeds_first=True, skip_layers=(0,)),
        {"skip_layers": (0,)},
        "compresses_before_feeding",
        "compresses after feeding a token instead of before",
    ),
    (loop(drift=True), {}, "positions_do_not_drift", "position drift"),
    (loop(compress=above_threshold(l2_compress)), {}, "compresses_as_claimed", "only beyond prune_after keys"),
    (loop(), {"skip_layers": (0,)}, "layers_may_differ_in_length", "skips no layer"),
]
IDS = ["order of steps", "order of steps, layer 0 skipped", "drift", "threshold", "no layer skipped"]


@pytest.mark.full
@pytest.mark.parametrize(("evaluator", "claims", "check", "cause"), EXPLAINED, ids=IDS)
def test_one_cause_is_named_by_one_check(evaluator: Any, claims: Any, check: str, cause: str) -> None:
    counterexamples = diagnose(as_evaluator(evaluator, EvaluatorClaims(**claims))).counterexamples
    assert list(counterexamples) == [check]
    assert "your losses are exactly those of an evaluator that" in counterexamples[check].broken.got
    assert cause in counterexamples[check].broken.got


@pytest.mark.full
@pytest.mark.parametrize(("evaluator", "claims", "check", "cause"), EXPLAINED, ids=IDS)
def test_one_cause_is_one_finding(evaluator: Any, claims: Any, check: str, cause: str) -> None:
    findings = check_evaluator(evaluator, EvaluatorClaims(**claims))
    assert [finding.check for finding in findings if finding.check not in OTHERS] == [check]


@pytest.mark.full
def test_two_causes_at_once_are_two_findings_that_name_both() -> None:
    evaluator = loop(feeds_first=True, drift=True)
    counterexamples = diagnose(as_evaluator(evaluator)).counterexamples
    assert list(counterexamples) == ["positions_do_not_drift", "compresses_before_feeding"]
    for counterexample in counterexamples.values():
        assert "position drift" in counterexample.broken.got
        assert "after feeding a token instead of before" in counterexample.broken.got


@pytest.mark.full
def test_a_sound_loop_has_no_cause() -> None:
    assert not diagnose(as_evaluator(loop())).counterexamples


@pytest.mark.full
def test_the_paper_s_function_has_at_most_twelve_findings_all_of_different_checks() -> None:
    def paper(
        past_key_values: Any, keep_ratio: float = 1, prune_after: int = 2048, skip_layers: Any = (), **_: Any
    ) -> Any:
        layers = list(past_key_values)
        for layer, (keys, values) in enumerate(layers):
            if keys.size(2) < prune_after or layer in skip_layers:
                continue
            order = keys.norm(dim=-1).squeeze(-1).argsort(dim=-1).unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
            count = math.ceil(keep_ratio * keys.size(2))
            layers[layer] = (keys.gather(2, order)[:, :, :count], values.gather(2, order)[:, :, :count])
        return layers

    with searching(examples=25):
        findings = check_compressor(paper)
    assert len(findings) <= 12
    assert len({finding.check for finding in findings}) == len(findings)
    assert sum(bool(finding.crash) for finding in findings) == 1
