"""Keep the latest tokens: a sliding window, and with four sinks StreamingLLM.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453, keeps the
first four tokens beside the latest: ``policy="newest", sinks=4``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class Newest(Policy):
    """The position itself."""

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.positions
