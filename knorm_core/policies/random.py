"""Keep keys by chance: the control that says what any eviction of that size costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class Random(Policy):
    """A score fixed by seed, layer, head and position: the same keys go whatever else is evicted.

    Attributes:
        seed: at least 0.
    """

    seed: int = 0

    def score(self, seen: Seen) -> torch.Tensor:
        # Philox counts, so a key's score depends on (seed, layer, head, position) alone; NumPy guarantees
        # the raw stream of a bit generator, not what is derived from it.
        positions = seen.positions
        rows, heads, length = positions.shape
        if length == 0:
            return positions
        count = int(positions.max()) + 1
        streams = [
            np.random.Philox(key=[self.seed, (seen.layer << 32) | head]).random_raw(count) for head in range(heads)
        ]
        table = torch.from_numpy((np.stack(streams) >> np.uint64(1)).astype(np.int64)).to(positions.device)
        return -table.expand(rows, heads, count).gather(-1, positions)
