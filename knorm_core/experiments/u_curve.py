"""The report's "U curve": at a threshold of 32 perplexity falls with the keep ratio, and what makes it fall.

At keep 0.95 one key goes at almost every token, so that of a key seen a few tokens ago the norm alone decides. If
that is why gentle compression is the worst, protecting the latest keys ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from knorm_core.evaluation import Evaluation
from knorm_core.experiments.controls import pooled
from knorm_core.experiments.intervals import paired_rows
from knorm_core.experiments.report_figures import EARLY

#: The gentlest of the report's curve, its lowest point, and its last.
RATIOS = (0.95, 0.6, 0.3)
#: Latest keys that are protected, of the 10 that keep 0.3 leaves.
RECENT = 8
UNCOMPRESSED = 1.0

Curve = Mapping[float, Sequence[Evaluation]]


def curve_arguments(recent: int = 0) -> dict[float, dict[str, Any]]:
    """Arguments of `evaluate` by keep ratio, layer 0 left alone as in the report's scripts."""
    own: dict[str, Any] = {"policy": "low_norm_exact", "skip_layers": (0,), "recent": recent, **EARLY}
    return {UNCOMPRESSED: {"keep_ratio": UNCOMPRESSED, "score_from": "start"}} | {
        ratio: own | {"keep_ratio": ratio} for ratio in RATIOS
    }


def curve_rows(curve: Curve) -> list[dict[str, Any]]:
    """A row per keep ratio: texts, perplexity over all of them, and its paired ratio to the uncompressed one.

    Args:
        curve: by keep ratio one evaluation per text, of every ratio of `curve_arguments`.
    """
    plain = curve[UNCOMPRESSED]
    return [
        {
            "keep_ratio": ratio,
            "texts": len(evaluations),
            **pooled(evaluations, plain),
            "evictions_per_layer": sum(evaluation.evictions_per_layer[-1] for evaluation in evaluations),
        }
        for ratio, evaluations in curve.items()
    ]


def curve_pairs(curve: Curve) -> list[dict[str, Any]]:
    """Paired ratios of every keep ratio below 1 to every higher one."""
    labels = {str(ratio): evaluations for ratio, evaluations in curve.items()}
    ratios = [str(ratio) for ratio in RATIOS]
    return paired_rows(labels, [(lower, higher) for higher, lower in combinations(ratios, 2)])
