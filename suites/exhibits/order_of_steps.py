"""Evaluators whose losses one cause explains: the order of steps, the threshold, short texts."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core import effective_prune_after, l2_compress
from knorm_core.contract import as_evaluator
from knorm_core.contract.evaluators import knorm_onepass
from knorm_core.methods.forward import private_copy
from suites.exhibits.evaluators import REPORT, Losses, low_norm, walk
from suites.exhibits.exhibit import Exhibit, collector

EXHIBITS: list[Exhibit] = []
exhibit = collector(EXHIBITS, wrap=as_evaluator, sound=knorm_onepass)


@exhibit("compresses_before_feeding", REPORT + ": compare_methods.py feeds a token, then compresses")
def feeds_then_compresses(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The cache is compressed after a token has been fed, so the first eviction meets one key more."""
    start = effective_prune_after(len(ids), prune_after)
    compress = low_norm(keep_ratio, start)
    return walk(
        private_copy(model, "sdpa"),
        ids,
        start,
        lambda cache, step: cache if step == start else compress(cache, step),
    )


@exhibit("compresses_as_claimed", "the report's later package: if seq_len <= prune_after: continue")
def beyond_the_threshold(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """The cache is compressed when it holds more than P keys, not when it holds P."""
    start = effective_prune_after(len(ids), prune_after)
    return walk(private_copy(model, "sdpa"), ids, start, low_norm(keep_ratio, start + 1))


@exhibit("takes_short_texts", REPORT + ": texts of fewer than P + 10 tokens fall back to a plain forward pass")
def short_texts_whole(model: Any, ids: Any, keep_ratio: float, prune_after: int) -> Losses:
    """A text with few tokens to score is scored whole and uncompressed, and nobody is told."""
    start = effective_prune_after(len(ids), prune_after)
    if len(ids) < start + 10:
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0]
        return list(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return walk(private_copy(model, "sdpa"), ids, start, lambda cache, step: l2_compress(cache, keep_ratio, start))
