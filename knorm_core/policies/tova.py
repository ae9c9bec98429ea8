"""TOVA: keep the keys to which the latest query attends most.

Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv 2401.06104, section 3.2. Choice taken: attention is
averaged over all heads of a layer, so that every head keeps the same tokens, as in the paper. kvpress also protects
the latest token: ``recent=1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class TOVA(Policy):
    """Attention of the latest query, averaged over all heads."""

    reads = "attention"

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0]
