"""The presses of kvpress 0.5.5 that are held against the contract, what each claims, and where it differs.

Every public press has a place here: in `PRESSES`, or in `LEFT_OUT` with the reason. kvpress is imported
when a press is built, so this file can be read, and its tests collected, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from knorm_core.cache import Pair
from knorm_core.contract import Claims, Compressor, as_compressor, kvpress_count, kvpress_press

HOOK, KEYS = "hook", "keys"

needs_kvpress = pytest.mark.skipif(
    find_spec("kvpress") is None, reason="kvpress is not installed here: it wants an older transformers; tox -e peers"
)

# What a press cannot be asked, so that its claims leave it out.
_NO_THRESHOLD = "a press has no prune_after: it compresses every prefill, once"
DECLARED: Mapping[str, str] = {
    "fires_from_the_threshold_on": _NO_THRESHOLD,
    "never_fires_below_the_threshold": _NO_THRESHOLD,
    "fires_again": _NO_THRESHOLD,
    "skipped_layers_are_untouched": "a press has no skip_layers",
    "input_is_left_alone": "as a hook, a press rewrites the cache of the model that it runs in",
    "layers_are_independent": "what scores with queries depends on the weights of its layer",
}

# Where presses differ from the contract, and why.
_BY_SCORE = {"keeps_temporal_order": "topk leaves survivors in order of their score (kvpress issue 173)"}
_KEYS_WIDTH = {"values_may_be_wider_or_narrower": "values are taken for as wide as keys"}
_TOPK = _BY_SCORE | _KEYS_WIDTH
_BY_NORM = _TOPK | {
    "equal_norms_keep_the_earlier": "topk promises nothing about equal scores",
    "rounding_noise_decides_nothing": "norms are compared to the last bit, as in low_norm_exact",
    "nan_is_refused": "a NaN score goes to topk unseen",
}
_CHUNK_COUNT = {
    "keeps_the_declared_count": "counts are per chunk: int(chunk * (1 - ratio)), at least 1, or whole chunks"
}
_FIRST_ROW = {"batch_rows_are_independent": "the choice is made on row 0 of the batch and used for all"}
_UNSEEDED = dict.fromkeys(
    ("memory_layout_does_not_matter", "batch_rows_are_independent", "two_calls_agree"),
    "keys are projected on random directions, without a seed",
)
_REWRITTEN = ("keeps_temporal_order", "values_stay_with_their_keys")

_ON_KEYS = Claims(
    count=kvpress_count,
    threshold=False,
    skip_layers=False,
    leaves_input=True,
    key_norm=False,
)
_AS_HOOK = replace(_ON_KEYS, leaves_input=False, layers=False, equal_lengths=True)


@dataclass(frozen=True)
class Press:
    """One press on one route.

    Attributes:
        label: its class.
        build: from a compression ratio (1 - keep ratio) to the press.
        route: "hook", in the prefill of a tiny model, or "keys", its ``compress`` on synthetic keys alone.
        differs: check to the reason why it is expected to fail.
        claims: what it says of itself, where that is not what its route says.
    """

    label: str
    build: Callable[[float], Any]
    route: str
    differs: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.label}-{self.route}"

    @property
    def compressor(self) -> Compressor:
        if self.route == HOOK:
            return kvpress_press(self.build, replace(_AS_HOOK, **self.claims), name=self.name)
        return as_compressor(on_keys(self.build), replace(_ON_KEYS, **self.claims), name=self.name)


def on_keys(build: Callable[[float], Any]) -> Callable[..., list[Pair]]:
    """A press that needs no model, as a function over (key, value) pairs of any lengths."""

    def compress(past_key_values: list[Pair], keep_ratio: float) -> list[Pair]:
        press = build(1 - keep_ratio)
        compressed = []
        for layer, (keys, values) in enumerate(past_key_values):
            batch, heads, length, width = keys.shape
            module = SimpleNamespace(head_dim=width, layer_idx=layer)
            hidden_states = torch.zeros(batch, length, heads * width)  # looked at for their shape only
            compressed.append(press.compress(module, hidden_states, keys, values, None, {}))
        return compressed

    return compress


def press(name: str, *inner: str, **arguments: Any) -> Callable[[float], Any]:
    """How to build ``name(compression_ratio=…, **arguments)``, or a wrapper around another press."""

    def build(compression_ratio: float) -> Any:
        import kvpress

        if inner:
            return getattr(kvpress, name)(press=press(*inner)(compression_ratio), **arguments)
        return getattr(kvpress, name)(compression_ratio=compression_ratio, **arguments)

    return build


def _from_keys(
    label: str, differs: Mapping[str, str] = _TOPK, claims: Mapping[str, Any] | None = None, **arguments: Any
) -> list[Press]:
    """A press that scores from keys (or keys and values) alone: on both routes."""
    build, claims = press(label, **arguments), claims or {}
    return [
        Press(label, build, HOOK, differs, {"layers": True, **claims}),
        Press(label, build, KEYS, differs, claims),
    ]


def _from_model(label: str, differs: Mapping[str, str] = _TOPK, min_length: int = 1, **arguments: Any) -> Press:
    """A press that scores with queries, hidden states or attention: in a prefill only."""
    return Press(label, press(label, **arguments), HOOK, differs, {"min_length": min_length})


def _around_knorm(label: str, differs: Mapping[str, str], **arguments: Any) -> Press:
    """A wrapper that refuses attention weights, or changes what survives, around `KnormPress`: on keys only."""
    return Press(label, press(label, "KnormPress", **arguments), KEYS, differs)


PRESSES = [
    *_from_keys("KnormPress", _BY_NORM, {"key_norm": True}),
    *_from_keys("KeyDiffPress"),
    *_from_keys("StreamingLLMPress", claims={"min_length": 5}),
    *_from_keys("LagKVPress", lag_size=4),
    *_from_keys("CURPress"),
    *_from_keys(
        "RandomPress", _TOPK | {"batch_rows_are_independent": "one stream of random numbers runs on over rows"}, seed=0
    ),
    _around_knorm("BlockPress", _TOPK, block_size=4),
    _around_knorm("ChunkPress", _TOPK | _CHUNK_COUNT, chunk_length=4),
    _around_knorm("ChunkKVPress", _KEYS_WIDTH | _CHUNK_COUNT | _FIRST_ROW, chunk_length=4),
    _around_knorm("EntropyGatedChunkKVPress", _KEYS_WIDTH | _FIRST_ROW, chunk_length=4, low_entropy_chunk_length=2),
    _around_knorm(
        "MergingPress", _KEYS_WIDTH | dict.fromkeys(_REWRITTEN, "evicted values are blended into those that stay")
    ),
    Press(
        "KeyRerotationPress",
        press("KeyRerotationPress", "KnormPress"),
        HOOK,
        _KEYS_WIDTH | dict.fromkeys(_REWRITTEN, "keys are rotated to the positions that they move up to"),
        {"layers": True},
    ),
    Press("CriticalKVPress", press("CriticalKVPress", "KnormPress"), HOOK, _TOPK),
    # Attention of a tiny random model is nearly flat, so that the order of scores happens to be that of time.
    Press("ObservedAttentionPress", press("ObservedAttentionPress"), HOOK, _KEYS_WIDTH, {"order": False}),
    _from_model("SnapKVPress", min_length=4, window_size=2),
    _from_model(
        "PyramidKVPress",
        _TOPK | {"keeps_the_declared_count": "budgets fall from layer to layer, and are rounded where short"},
        min_length=4,
        window_size=2,
        beta=2,
    ),
    _from_model("TOVAPress", min_length=2),
    _from_model("ExpectedAttentionPress", min_length=6),
    _from_model("CapPress", min_length=6),
    _from_model("NonCausalAttnPress", min_length=2, chunk_size=8),
    _from_model("LeverageScorePress", _TOPK | _UNSEEDED, min_length=2),
    _from_model("CompactorPress", _TOPK | _UNSEEDED, min_length=6, sink_size_start=2, sink_size_end=2),
]

_OWN_WEIGHTS = "needs trained weights or statistics of its own, made for one model"
_REPLAYS = "reads the context a second time to score it: not a hook in one prefill"
_MASKS = "masks keys in the attention of later tokens; the cache keeps all of them"
_DECODES = "compresses while decoding, not in the prefill"
LEFT_OUT: Mapping[str, str] = {
    "BasePress": "is abstract",
    "ScorerPress": "is abstract",
    "KVPressTextGenerationPipeline": "is not a press",
    "DuoAttentionPress": _OWN_WEIGHTS,
    "ExpectedAttentionStatsPress": _OWN_WEIGHTS,
    "FastKVzipPress": _OWN_WEIGHTS,
    "KVzapPress": _OWN_WEIGHTS,
    "LUKVPress": _OWN_WEIGHTS,
    "QFilterPress": _OWN_WEIGHTS,
    "RestoreKVPress": _OWN_WEIGHTS,
    "KVComposePress": _REPLAYS,
    "KVgradPress": _REPLAYS,
    "KVzipPress": _REPLAYS,
    "AdaKVPress": _MASKS,
    "CriticalAdaKVPress": _MASKS,
    "CAMPress": _DECODES,
    "CompressionRatioDecodingPress": _DECODES,
    "DecodingPress": _DECODES,
    "PrefillDecodingPress": _DECODES + "; its prefill is that of the press that it is given",
    "ComposedPress": "is several presses one after the other",
    "PerLayerCompressionPress": "takes a ratio per layer in place of one",
    "DMSPress": "takes a threshold of scores in place of a ratio",
    "SimLayerKVPress": "takes a threshold in place of a ratio, and keeps or cuts whole layers",
    "ThinKPress": "drops channels of keys, not tokens",
    "FinchPress": "needs a delimiter token between context and question",
}
