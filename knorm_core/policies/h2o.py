"""H2O: keep the heavy hitters, the keys that received most attention so far.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
arXiv 2306.14048, algorithm 1. Choices taken: the sum runs over all queries since the start of the text, not over the
prompt alone; query heads that share a KV head are averaged. The paper splits its budget evenly between heavy hitters
and the latest tokens: the latter are protection, ``recent=``, and not part of the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class H2O(Policy):
    """Attention received since the start, summed over queries."""

    reads = "attention"

    def observe(self, state: torch.Tensor, seen: Seen) -> torch.Tensor:
        return state + seen.received.mean(dim=2).sum(dim=2)

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.state
