"""The controls without which a perplexity under compression says little: other choices of who survives.

If keeping the lowest norms is no better than keeping keys at random, the norm explains nothing; if a
sliding window with four sinks is better still, the norm is not worth computing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import torch

from knorm_core.evaluation import Evaluation, perplexity
from knorm_core.experiments.intervals import perplexity_ratio
from knorm_core.results.interval import Interval

#: StreamingLLM: the first four tokens and the latest ones.
NEWEST_WITH_SINKS = "newest_4_sinks"
POLICIES = ("low_norm", "high_norm", "random", "newest", NEWEST_WITH_SINKS)
SEEDS = (0, 1, 2, 3, 4)


class Control(NamedTuple):
    """What tells one row of the table from another."""

    policy: str
    keep_ratio: float
    positions: str = "absolute"
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Arguments of `evaluate`."""
        return self._asdict() | policy_arguments(self.policy)


def policy_arguments(label: str) -> dict[str, Any]:
    """Arguments of `evaluate` for what a row calls its policy."""
    return {"policy": "newest", "sinks": 4} if label == NEWEST_WITH_SINKS else {"policy": label}


UNCOMPRESSED = Control("low_norm", 1.0)


def control_rows(
    keep_ratios: Iterable[float], policies: Iterable[str] = POLICIES, seeds: Sequence[int] = SEEDS
) -> list[Control]:
    """Every policy at every keep ratio, `random` once per seed, and the uncompressed row first."""
    ratios = list(keep_ratios)
    return [UNCOMPRESSED] + [
        Control(policy, ratio, seed=seed)
        for policy in policies
        for ratio in ratios
        for seed in (seeds if policy == "random" else (0,))
    ]


def pooled(evaluations: Sequence[Evaluation], uncompressed: Sequence[Evaluation]) -> dict[str, float]:
    """Perplexity over all texts, its ratio to the uncompressed one with an interval, and the memory behind it."""
    return {
        "ppl": perplexity(evaluations),
        **perplexity_ratio(evaluations, uncompressed).columns("ratio"),
        "mean_cache": fmean(evaluation.mean_cache for evaluation in evaluations),
        "peak_cache": max(evaluation.peak_cache for evaluation in evaluations),
    }


def averaged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One text under several seeds: losses averaged, so that its perplexity is the seeds' geometric mean."""
    return replace(evaluations[0], nll=torch.stack([evaluation.nll for evaluation in evaluations]).mean(dim=0))


def shown_change(interval: Interval) -> dict[str, str]:
    """The two columns that a person reads."""
    return {"change": interval.change, "95 % interval": interval.limits}
