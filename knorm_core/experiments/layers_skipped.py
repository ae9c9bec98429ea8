"""Layers left uncompressed: what it does to the cache, told apart from what it does to positions.

The paper's scripts leave layers 0 and 1 alone. In a program that derives positions from the length of
layer 0's cache, as transformers does when nobody passes them, this has a second effect: that cache keeps
its length, so the positions stay true. With true positions passed, only the first effect is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple


class SkipRow(NamedTuple):
    """What tells one row of the table from another."""

    skip_layers: tuple[int, ...]
    keep_ratio: float
    positions: str = "absolute"

    def arguments(self) -> dict[str, Any]:
        """Arguments of `evaluate`."""
        return self._asdict()


def skip_rows(
    skipped: Iterable[tuple[int, ...]], keep_ratios: Iterable[float], positions: Iterable[str]
) -> list[SkipRow]:
    """Every combination."""
    return [SkipRow(*row) for row in itertools.product(skipped, keep_ratios, positions)]


def only(layer: int, layers: int) -> tuple[int, ...]:
    """The ``skip_layers`` that leaves one layer to compress.

    >>> only(1, 4)
    (0, 2, 3)
    """
    if not 0 <= layer < layers:
        raise ValueError(f"layer={layer} is not one of 0 … {layers - 1}")
    return tuple(other for other in range(layers) if other != layer)
