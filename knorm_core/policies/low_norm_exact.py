"""`low_norm` without its rounding, for comparison with other implementations such as kvpress's KnormPress."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.norms import key_norms
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class LowNormExact(Policy):
    """Minus the norm, to the last bit."""

    def score(self, seen: Seen) -> torch.Tensor:
        return -key_norms(seen.keys).double()
