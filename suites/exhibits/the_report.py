"""What the report's own code does wrong, as its repository shows it, beyond what the other exhibits have."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

from knorm_core import effective_prune_after, l2_compress
from knorm_core.contract import as_evaluator
from knorm_core.contract.evaluators import knorm_onepass
from knorm_core.methods.forward import private_copy
from suites.exhibits.evaluators import Losses, low_norm, walk
from suites.exhibits.exhibit import Exhibit, collector

EXHIBITS: list[Exhibit] = []
exhibit = collector(EXHIBITS, wrap=as_evaluator, sound=knorm_onepass)
REPORT = "od-liu/CS3602-LLM-Inference-Acceleration, commit ae58300"


@exhibit("keep_one_is_scored_on_the_same_tokens", f"{REPORT}, optimized_test.py: the keep-1 row is model(ids).loss")
def baseline_on_the_whole_text(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The baseline is a plain forward over the whole text, and compressed rows are scored on phase 2 alone."""
    start = effective_prune_after(len(ids), prune_after)
    scored_from = 0 if keep_ratio == 1 else start
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start), scored_from=scored_from)


@exhibit("keeping_everything_is_a_no_op", f"{REPORT}, custom_generate.py: every layer is put at index 0")
def all_layers_into_layer_0(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """All layers' keys are written into layer 0 of the new cache: the other layers forget their past every token."""
    start = effective_prune_after(len(ids), prune_after)
    layers = model.config.num_hidden_layers

    def compress(cache: DynamicCache, step: int) -> DynamicCache:
        if keep_ratio == 1:
            return cache
        pairs = [(layer.keys, layer.values) for layer in cache.layers[:layers] if layer.keys is not None]
        new = DynamicCache()
        for keys, values in l2_compress(pairs, keep_ratio, start):
            new.update(keys, values, 0)
        return new

    def position(step: int, cache: DynamicCache) -> int:
        return cache.layers[0].keys.shape[2] if cache.layers else step

    return walk(private_copy(model, "sdpa"), ids, start, compress, positions=position)
