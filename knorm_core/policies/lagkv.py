"""LagKV: keep the keys and values that stand out against those that follow.

Liang et al., "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important", 2025, arXiv
2504.04704. Behind the sinks the cache is cut into partitions of ``lag`` keys. Each is normalised, channel by channel,
by the least and the largest value of the partition that follows it; a key scores the softmax, over its partition, of
its standard deviation over channels, and so does its value. Of every partition equally many stay. The last partition,
and what is too short to be one, have none to follow and stay as long as they can. Choices taken:

- Partitions are those of the keys alive, anew at every eviction; the paper never returns to a partition.
- A lag of 32: with 128, as in kvpress, a cache below 260 keys has no partition that another follows.
- Equally many of every partition: keys are ranked by their place in their partition, as in kvpress, and of keys with
  the same place the higher score stays.
- Where more must go than the partitions have, the latest tokens stay.
- A channel in which the following partition is constant counts as zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from knorm_core.counts import check_int
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class LagKV(Policy):
    """Place of a key in its partition, by how keys and values stand out against the next.

    Attributes:
        lag: keys of a partition, at least 2.
        sinks: first tokens of the text, which are protected and in no partition.
    """

    lag: int = 32
    sinks: int = 4

    reads = "cache"

    def __post_init__(self) -> None:
        check_int("lag", self.lag, 2)
        check_int("sinks", self.sinks, 0)

    def score(self, seen: Seen) -> torch.Tensor:
        *rows, length, _ = seen.keys.shape
        scored = max(0, (length - self.sinks) // self.lag - 1) * self.lag
        latest = 1 + torch.arange(length - self.sinks - scored, device=seen.keys.device).double()
        if scored:
            score = (self._stands_out(seen.keys, scored) + self._stands_out(seen.values, scored)) / 2
            places = (score.argsort(dim=-1).argsort(dim=-1) + score) / self.lag  # a score is in (0, 1)
            latest = torch.cat([places.flatten(-2), latest.expand(*rows, -1)], dim=-1)
        return pad(latest, (self.sinks, 0), value=torch.inf)

    def _stands_out(self, states: torch.Tensor, scored: int) -> torch.Tensor:
        """(rows, kv_heads, length, width) to float64 (rows, kv_heads, partitions, lag), of all that are followed."""
        cut = states[:, :, self.sinks : self.sinks + scored + self.lag].double()
        cut = cut.unflatten(2, (-1, self.lag))
        each, following = cut[:, :, :-1], cut[:, :, 1:]
        least, largest = following.aminmax(dim=3, keepdim=True)
        varies = largest > least
        relative = ((each - least) / (largest - least).where(varies, 1.0)).where(varies, 0.0)
        return relative.std(dim=-1).softmax(dim=-1)
