"""The report's own control: is low norm better than keeping the latest tokens, "direct truncation"?

Its figure says that truncation is better down to keep 0.6 (`knorm_core.protocols.REPORT`, compare_methods.py). Where
a model pays much attention to the first tokens, truncation loses them; so it is tried with these protected, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from knorm_core.evaluation import Evaluation
from knorm_core.evaluator import evaluate_rows
from knorm_core.experiments.breadth import SINKS
from knorm_core.experiments.controls import pooled
from knorm_core.experiments.intervals import paired_rows
from knorm_core.protocols import REPORT_PROTOCOL

TEXTS = 8
RATIOS = (0.9, 0.6)


class TruncationRow(NamedTuple):
    """What tells one row of the table from another."""

    policy: str
    keep_ratio: float
    sinks: int = 0


UNCOMPRESSED = TruncationRow("low_norm_exact", 1.0)
LOW_NORM = [TruncationRow("low_norm_exact", ratio) for ratio in RATIOS]
TRUNCATED = [TruncationRow("newest", ratio, sinks) for ratio in RATIOS for sinks in (0, SINKS)]

Evaluations = Mapping[TruncationRow, Sequence[Evaluation]]


def truncation_arguments() -> dict[TruncationRow, dict[str, Any]]:
    """Arguments of `evaluate` by row: the report's loop, both policies scored on the same tokens."""
    return {UNCOMPRESSED: {"keep_ratio": 1.0, "prune_after": REPORT_PROTOCOL.prune_after}} | {
        row: REPORT_PROTOCOL.arguments(row.keep_ratio) | row._asdict() for row in [*LOW_NORM, *TRUNCATED]
    }


def truncation(model: nn.Module, texts: Iterable[torch.Tensor]) -> dict[TruncationRow, list[Evaluation]]:
    """{row: one evaluation per text}, of token ids (n,) each."""
    rows = truncation_arguments()
    tables = [evaluate_rows(model, ids, rows) for ids in texts]
    return {row: [table[row] for table in tables] for row in rows}


def truncation_rows(evaluations: Evaluations) -> list[dict[str, Any]]:
    """A row each: texts, perplexity over all of them, and its paired ratio to the uncompressed one."""
    plain = evaluations[UNCOMPRESSED]
    return [{**row._asdict(), "texts": len(each), **pooled(each, plain)} for row, each in evaluations.items()]


def truncation_pairs(evaluations: Evaluations) -> list[dict[str, Any]]:
    """Paired ratios of low norm to truncation at the same keep ratio."""
    labels = {row: " ".join(map(str, row)) for row in evaluations}
    pairs = [(labels[low], labels[row]) for row in TRUNCATED for low in LOW_NORM if low.keep_ratio == row.keep_ratio]
    return paired_rows({labels[row]: each for row, each in evaluations.items()}, pairs)
