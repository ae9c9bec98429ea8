"""Norms of the first tokens' keys against all others', layer by layer, before and after QK-norm; and their attention.

QK-norm divides every key by its root mean square, then multiplies each channel by a learned weight: what a layer's
keys differ by in length before, they do not differ by after. The rotary embedding leaves norms as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from knorm_core.counts import effective_prune_after, eviction_schedule
from knorm_core.experiments.breadth import RATIOS
from knorm_core.experiments.resampling import mean_over_texts
from knorm_core.methods.deaths import death_row
from knorm_core.methods.forward import private_copy
from knorm_core.methods.head import body_of
from knorm_core.norms import round_norms
from knorm_core.results.interval import FEWEST_TEXTS, Interval


@dataclass(frozen=True)
class FirstTokens:
    """One layer of one text. Norms are over the median of all later keys' norms: below 1 is a lower one.

    Attributes:
        layer: counted from 0.
        before, after: of the first token's key, before and after QK-norm; the lowest of its KV heads.
        next_before, next_after: the same, of the mean of the tokens that follow it (three of them).
        rank_before, rank_after: share of all keys that have a lower norm than the first token's.
        spread_before, spread_after: interdecile range of the later keys' norms, over their median.
        stays_90, stays_50, stays_10: share of phase 2 through which the first token's key is in the cache of low norm,
            at keep 0.9, 0.5 and 0.1, by these norms; the lowest of its KV heads.
        attention: that the text's second half pays to the first token, mean over heads and queries.
    """

    layer: int
    before: float
    after: float
    next_before: float
    next_after: float
    rank_before: float
    rank_after: float
    spread_before: float
    spread_after: float
    stays_90: float
    stays_50: float
    stays_10: float
    attention: float


FIRST = 4


@torch.inference_mode()
def first_tokens(model: nn.Module, input_ids: torch.Tensor, prune_after: int) -> list[FirstTokens]:
    """Every layer of a model with QK-norm on one text, (n,), from one uncompressed forward pass, attention eager."""
    model = private_copy(model, "eager")
    half = len(input_ids) // 2
    before: dict[int, torch.Tensor] = {}
    after: dict[int, torch.Tensor] = {}
    attention: dict[int, float] = {}

    def watch(module: Any, layer: int) -> None:
        def projected(_module: nn.Module, _arguments: Any, keys: torch.Tensor) -> None:
            before[layer] = keys[0].double().unflatten(-1, (-1, module.head_dim)).norm(dim=-1)

        def normed(_module: nn.Module, _arguments: Any, keys: torch.Tensor) -> None:
            norms = keys[0].double().norm(dim=-1)  # (n, kv_heads), or the other way round
            after[layer] = norms if len(norms) == len(input_ids) else norms.T

        def attended(_module: nn.Module, _arguments: Any, output: Any) -> None:
            attention[layer] = float(output[1][0, :, half:, 0].double().mean())

        module.k_proj.register_forward_hook(projected)
        module.k_norm.register_forward_hook(normed)
        module.register_forward_hook(attended)

    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "k_proj"):
            watch(module, int(module.layer_idx))
    body_of(model)(input_ids=input_ids[None], use_cache=False)
    return [
        FirstTokens(
            layer,
            *_paired(_measures(before[layer]), _measures(after[layer])),
            *(_stays(after[layer], prune_after, ratio) for ratio in RATIOS),
            attention[layer],
        )
        for layer in sorted(before)
    ]


def over_texts(by_text: Sequence[Sequence[FirstTokens]]) -> list[dict[str, float]]:
    """A row per layer: the mean of each number over texts, and its 95 % interval; infinite limits for few texts."""
    names = [field.name for field in fields(FirstTokens) if field.name != "layer"]
    return [
        {"layer": of_layer[0].layer}
        | {
            column: value
            for name in names
            for column, value in _mean([getattr(text, name) for text in of_layer]).columns(name).items()
        }
        for of_layer in zip(*by_text, strict=True)
    ]


def _mean(values: Sequence[float]) -> Interval:
    if len(values) < FEWEST_TEXTS:
        return Interval(fmean(values), -np.inf, np.inf)
    mean = mean_over_texts(np.array(values), np.ones(len(values)))
    return Interval(mean.value, mean.low, mean.high)


def _stays(norms: torch.Tensor, prune_after: int, keep_ratio: float) -> float:
    """Share of the tokens fed in phase 2 for which low norm still has the first token, of norms (n, kv_heads)."""
    fed, start = len(norms) - 1, effective_prune_after(len(norms), prune_after)
    schedule = eviction_schedule(len(norms), start, keep_ratio)
    ranks = round_norms(norms).argsort(dim=0, stable=True).argsort(dim=0)
    deaths = [death_row(head, schedule)[0] for head in ranks.T.tolist()]
    return (min(*deaths, fed) - start) / (fed - start)


def _measures(norms: torch.Tensor) -> tuple[float, float, float, float]:
    """First token, the next three, rank and spread, of norms (n, kv_heads)."""
    later = norms[FIRST:]
    median = later.median(dim=0).values
    tenth, ninth = later.quantile(torch.tensor([0.1, 0.9], dtype=norms.dtype), dim=0) / median
    rank = (norms < norms[0]).double().mean(dim=0)
    return (
        float((norms[0] / median).min()),
        float((norms[1:FIRST].mean(dim=0) / median).min()),
        float(rank.min()),
        float((ninth - tenth).mean()),
    )


def _paired(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [value for pair in zip(first, second, strict=True) for value in pair]
