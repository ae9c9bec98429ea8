"""PyramidKV: SnapKV, with many keys in the first layers and few in the last.

Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", 2024, arXiv 2406.02069.
Beside its window, which every layer keeps, layer l keeps a number that falls evenly from the first layer to the last,
where it is the mean over ``beta``; the mean over all layers is that of SnapKV at the same keep ratio. Choices taken:

- No layer keeps more than the P keys that it is compressed at. Where the first would, it keeps P and the last as much
  more as preserves the mean, as in the authors' code. Where keys go at every eviction, P - 1 takes the place of P: a
  layer that keeps all of P keys would never be compressed, and grow.
- Counts are rounded such that the total is exact: the largest fractions go up, of equal ones the earlier layer's.
- Layers that are skipped, or slide, are no part of the pyramid.
- With a fixed budget the pyramid is one of budgets, and phase 1 fills the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from knorm_core.counts import check_int
from knorm_core.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's score; kept counts by layer.

    Attributes:
        window, kernel: as of `SnapKV`.
        beta: how many times the mean of all layers is what the last layer keeps beside its window, at least 1.
    """

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("beta", self.beta, 1)

    def kept_by_layer(self, kept: int, layers: int, most: int) -> Sequence[int]:
        """Kept counts from the first layer to the last.

        >>> PyramidKV(window=16, beta=20).kept_by_layer(kept=128, layers=5, most=256)
        [234, 181, 128, 75, 22]
        >>> PyramidKV(window=16, beta=20).kept_by_layer(kept=192, layers=5, most=255)
        [255, 224, 192, 160, 129]
        """
        if kept <= self.window or layers == 1:  # there is nothing beside the window to divide
            return [kept] * layers
        mean = Fraction(kept)
        last = self.window + (mean - self.window) / self.beta
        first = 2 * mean - last
        if first > most:
            first, last = Fraction(most), 2 * mean - most
        step = (first - last) / (layers - 1)
        exact = [first - layer * step for layer in range(layers)]
        counts = [int(count) for count in exact]
        by_fraction = sorted(range(layers), key=lambda layer: counts[layer] - exact[layer])
        for layer in by_fraction[: kept * layers - sum(counts)]:
            counts[layer] += 1
        return counts
