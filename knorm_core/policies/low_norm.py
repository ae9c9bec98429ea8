"""Keep the keys of smallest L2 norm: the method.

Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024, arXiv
2406.11430, section 3. Choice taken: norms are rounded to 16 significant bits (see `knorm_core.norms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.norms import key_norms, round_norms
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class LowNorm(Policy):
    """The paper's score, minus the norm; norms that agree to 16 bits tie."""

    def score(self, seen: Seen) -> torch.Tensor:
        return -round_norms(key_norms(seen.keys))
