"""Keep the keys of largest L2 norm: the control that should be bad where low norm is good."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.norms import key_norms, round_norms
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class HighNorm(Policy):
    """The norm, rounded as `low_norm` rounds it."""

    def score(self, seen: Seen) -> torch.Tensor:
        return round_norms(key_norms(seen.keys))
