"""The same table in another precision: how far perplexity moves, and how many evictions choose otherwise.

Eviction is a discrete choice, so a rounding error either changes nothing or changes who survives. Which
tolerance a continuous integration can hold follows from how often the second happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from knorm_core.evaluation import Evaluation
from knorm_core.evaluator import Evaluator, Key
from knorm_core.methods import onepass
from knorm_core.methods.attention import NEVER

Deaths = Sequence[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Choices:
    """An evaluation, and per layer the step at which each key died (1, kv_heads, length), None where none did."""

    evaluation: Evaluation
    deaths: tuple[torch.Tensor | None, ...]


def evaluate_choices(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, Choices]:
    """`evaluate_rows` by one pass, with the choices of every eviction."""
    evaluator = Evaluator(model, input_ids)
    table = {}
    for key, setting in evaluator.settings(rows, one_pass=True).items():
        deaths: dict[int, torch.Tensor | None] = {}
        nll = onepass.run(model, evaluator.ids, setting, evaluator.prefix(setting), watch=deaths.__setitem__)
        table[key] = Choices(Evaluation.of(setting, nll), tuple(deaths[layer] for layer in sorted(deaths)))
    return table


@dataclass(frozen=True)
class Disagreement:
    """Evictions are counted per layer, KV head and step.

    Attributes:
        evictions: how many there were.
        differ: share of them that evicted another set of keys.
        keys_differ: share of evicted keys that the other evaluation did not evict at the same step. One
            other choice leaves other candidates for the next, so choices that differ come in rows.
    """

    evictions: int
    differ: float
    keys_differ: float


def disagreement(first: Deaths, second: Deaths) -> Disagreement:
    """Compare the choices of two evaluations of the same text and setting.

    Raises:
        ValueError: they do not have the same layers, heads and lengths.
    """
    evictions = differing = keys = keys_differing = 0
    if len(first) != len(second):
        raise ValueError(f"deaths of {len(first)} layers cannot be compared with those of {len(second)}")
    for ours, theirs in zip(first, second, strict=True):
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise ValueError("the two evaluations differ in which layers they compress, or in length")
        for step in ours[ours != NEVER].unique():
            ours_go, theirs_go = ours == step, theirs == step
            apart = (ours_go & ~theirs_go).sum(dim=-1)
            evictions += apart.numel()
            differing += int((apart > 0).sum())
            keys += int(ours_go.sum())
            keys_differing += int(apart.sum())
    return Disagreement(evictions, differing / max(evictions, 1), keys_differing / max(keys, 1))
