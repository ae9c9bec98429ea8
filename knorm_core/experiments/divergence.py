"""How far compression moves the distribution over the next token, not only the probability of the right one.

Perplexity looks at one number of each distribution, and there errors of both signs cancel. The
Kullback-Leibler divergence from the uncompressed model looks at all of it; llama.cpp asks it of every
new quantisation. Both distributions are made from final hidden states, a block of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from knorm_core.evaluation import Evaluation
from knorm_core.evaluator import Evaluator, Key
from knorm_core.methods import onepass
from knorm_core.methods.head import Head

BLOCK = 64  # tokens at a time: 25 MB of float64 logits each for a vocabulary of 49,152


@dataclass(frozen=True, eq=False)
class Divergence:
    """One row of a table against the uncompressed model, token by token.

    Attributes:
        evaluation: the row itself.
        kl: KL(uncompressed || row) in nats of every scored token, float64 (scored,).
        same_top: whether both rank the same token first, bool (scored,).
    """

    evaluation: Evaluation
    kl: torch.Tensor
    same_top: torch.Tensor


def divergence(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, Divergence]:
    """Divergence of every row from the uncompressed model on the tokens that the row scores.

    Args:
        model, input_ids: as for `evaluate`.
        rows: keyword arguments of `evaluate` by any key, with ``score_from="phase2"`` and one pass. All
            of them share one effective prune_after, so that all score the same tokens.

    Raises:
        ValueError: the rows do not score the same tokens, or an argument is wrong.
        UnsupportedModelError: (a ValueError) the model's head cannot be run on its own.
    """
    for row in rows.values():
        for name, only in {"compressor": None, "method": "onepass", "score_from": "phase2"}.items():
            if row.get(name, only) != only:
                raise ValueError(f"{name}={row[name]!r}: divergence is measured with {name}={only!r} alone")
    evaluator = Evaluator(model, input_ids)
    settings, ids = evaluator.settings(rows, one_pass=True), evaluator.ids
    starts = sorted({setting.start for setting in settings.values()})
    if len(starts) > 1:
        raise ValueError(f"the rows have effective prune_after of {starts}: give rows that score the same tokens")
    plain = evaluator.setting({"keep_ratio": 1.0, "prune_after": starts[0], "adjust": False})
    prefix = evaluator.prefix(plain)
    uncompressed = onepass.final_states(model, ids, plain, prefix)
    states = {key: onepass.final_states(model, ids, setting, prefix) for key, setting in settings.items()}
    compared = compare(Head(model), uncompressed, states, ids[starts[0] + 1 :])
    return {key: Divergence(Evaluation.of(settings[key], nll), *rest) for key, (nll, *rest) in compared.items()}


@torch.inference_mode()
def compare(
    head: Head, uncompressed: torch.Tensor, states: Mapping[Key, torch.Tensor], targets: torch.Tensor
) -> dict[Key, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per row: loss of ``targets``, KL(uncompressed || row), and whether the top token is the same.

    Args:
        uncompressed: final hidden states (tokens, hidden).
        states: of every row, shaped alike.
        targets: token ids (tokens,).

    Returns:
        float64, float64, bool, each (tokens,), on the CPU.
    """
    compared: dict[Key, list[tuple[torch.Tensor, ...]]] = {key: [] for key in states}
    for first in range(0, len(targets), BLOCK):
        block = slice(first, first + BLOCK)
        log_p = _log_probabilities(head, uncompressed[block])
        p, top = log_p.exp(), log_p.argmax(-1)
        for key, row in states.items():
            log_q = _log_probabilities(head, row[block])
            nll = -log_q.gather(-1, targets[block].unsqueeze(-1)).squeeze(-1)
            same = log_q.argmax(-1) == top
            # p · (log p - log q), in place of log q; where p underflows to 0 both logs are finite
            kl = log_q.neg_().add_(log_p).mul_(p).sum(-1)
            compared[key].append((nll.double().cpu(), kl.double().cpu(), same.cpu()))
    return {key: tuple(map(torch.cat, zip(*blocks, strict=True))) for key, blocks in compared.items()}  # type: ignore[misc]


def _log_probabilities(head: Head, states: torch.Tensor) -> torch.Tensor:
    logits = head(states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@dataclass(frozen=True)
class Summary:
    """Over all scored tokens of all texts: KL in nats, and the share of tokens whose top choice stays."""

    mean: float
    median: float
    p99: float
    top1_agreement: float


def summary(divergences: Iterable[Divergence]) -> Summary:
    """Pool the tokens of several texts."""
    pooled = list(divergences)
    if not pooled:
        raise ValueError("no divergences: nothing to summarise")
    kl = torch.cat([each.kl for each in pooled])
    same = torch.cat([each.same_top for each in pooled])
    median, p99 = torch.quantile(kl, torch.tensor([0.5, 0.99], dtype=kl.dtype)).tolist()
    return Summary(float(kl.mean()), median, p99, float(same.double().mean()))
