"""Every shape that a compressor comes in is held to the same contract."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from knorm_core import l2_compress
from knorm_core.contract import (
    COMPRESSOR_CHECKS,
    KVPRESS,
    CacheCase,
    Claims,
    as_compressor,
    check_compressor,
    kvpress_press,
    on_dynamic_cache,
    searching,
)
from knorm_core.contract.claims import kvpress_count

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _few_cases() -> Iterator[None]:
    with searching(examples=8):
        yield


@dataclasses.dataclass
class ScoreOrderPress:
    """A press with the interface and the habits of kvpress's KnormPress: a hook, topk, in place."""

    compression_ratio: float

    def __post_init__(self) -> None:
        assert 0 <= self.compression_ratio < 1

    @contextlib.contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        hooks = [layer.self_attn.register_forward_hook(self.hook, with_kwargs=True) for layer in model.model.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["cache"] if "cache" in kwargs else kwargs["past_key_values"]  # renamed in transformers 5.24
        layer = cache.layers[module.layer_idx]
        assert kwargs["hidden_states"].shape[1] == layer.keys.shape[2]  # a prefill
        if self.compression_ratio == 0:
            return
        kept = kvpress_count(layer.keys.shape[2], 1 - self.compression_ratio)
        dtype = torch.promote_types(layer.keys.dtype, torch.float32)
        index = (-torch.linalg.vector_norm(layer.keys, dim=-1, dtype=dtype)).topk(kept).indices
        index = index.unsqueeze(-1).expand(-1, -1, -1, module.head_dim)
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)


def test_a_press_runs_as_the_hook_it_is() -> None:
    claims = dataclasses.replace(KVPRESS, key_norm=True, layers=True)
    assert check_compressor(kvpress_press(ScoreOrderPress, claims)) == []


def test_a_press_that_claims_order_is_held_to_it() -> None:
    (check,) = [check for check in COMPRESSOR_CHECKS if check.name == "keeps_temporal_order"]
    assert not check.applies(KVPRESS)
    finding = check.find(kvpress_press(ScoreOrderPress))
    assert finding is not None
    assert "kvpress_press(ScoreOrderPress)" in finding.snippet


def compress_in_place(cache: Any, keep_ratio: float, prune_after: int, skip_layers: Any) -> None:
    for mine, new in zip(cache.layers, l2_compress(cache, keep_ratio, prune_after, skip_layers).layers, strict=True):
        mine.keys, mine.values = new.keys, new.values


def test_a_function_may_change_the_dynamic_cache_and_return_none() -> None:
    assert check_compressor(on_dynamic_cache(compress_in_place, Claims(leaves_input=False))) == []
    (finding,) = check_compressor(on_dynamic_cache(compress_in_place))
    assert finding.check == "input_is_left_alone"


def test_arguments_that_are_not_claimed_are_not_passed() -> None:
    def prefill_only(past: Any, keep_ratio: float) -> Any:
        return l2_compress(past, keep_ratio, prune_after=1)

    claims = Claims(threshold=False, skip_layers=False)
    assert check_compressor(prefill_only, claims) == []
    assert len(as_compressor(prefill_only, claims)(CacheCase(lengths=(4,)).pairs(), 0.5)) == 1


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="compressor=3 is not callable"):
        as_compressor(3)
