"""What a pass has fed: queries, keys and values of every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

#: Queries, keys and values of one layer, each (batch, heads or kv_heads, length, head_dim).
Fed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Prefix:
    """Phase 1, fed: queries, keys and values per layer, and the losses within."""

    model: nn.Module  # the private copy that fed it, for the rows to share
    fed: tuple[Fed, ...]
    ids: torch.Tensor  # (length,), int64
    nll: torch.Tensor  # of tokens 1 … length where scoring starts there, shape (length,), else (0,)

    @property
    def length(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Prefix:
        """Its first tokens, of which no loss is known."""
        fed = tuple((q[:, :, :length], k[:, :, :length], v[:, :, :length]) for q, k, v in self.fed)
        return Prefix(self.model, fed, self.ids[:length], self.nll[:0])


def after(prior: Fed, fed: Fed) -> Fed:
    """What was fed of one layer, and what was fed next."""
    query, key, value = (torch.cat(both, dim=2) for both in zip(prior, fed, strict=True))
    return query, key, value
