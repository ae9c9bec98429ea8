"""Who survives an eviction: the highest scores, and the keys that are protected whatever their score."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Protection(NamedTuple):
    """Keys that no eviction takes: the first ``sinks`` tokens of the text and the latest ``recent`` ones.

    They count towards the kept number. An eviction's kept count is at least ``sinks + recent``, so the first
    eviction already spares all of them, and they are the first and the last of the keys alive at every later one.
    """

    sinks: int = 0
    recent: int = 0


UNPROTECTED = Protection()


def survivors(scores: torch.Tensor, kept: int, protection: Protection = UNPROTECTED) -> torch.Tensor:
    """Indices of the ``kept`` survivors along the last axis, in temporal order: the highest scores stay.

    Of equal scores the earlier position stays. Protected keys stay whatever their score.

    >>> survivors(torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0]), 2)
    tensor([0, 2])
    >>> survivors(torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0]), 3, Protection(sinks=1, recent=1))
    tensor([0, 2, 4])

    Args:
        scores: (..., length), in temporal order.
        kept: how many stay, ``sum(protection)`` … length.

    Returns:
        (..., kept), int64, ascending.
    """
    sinks, recent = protection
    length = scores.shape[-1]
    free = scores[..., sinks : length - recent]
    place = torch.arange(kept, device=scores.device)
    if kept == length - 1:  # the case of a fixed budget, once per token and layer: no need to sort
        gone = length - 1 - recent - free.flip(-1).argmin(dim=-1, keepdim=True)
        return place + (place >= gone)
    order = free.argsort(dim=-1, descending=True, stable=True)
    chosen = order[..., : kept - sinks - recent].sort(dim=-1).values + sinks
    if not sinks and not recent:
        return chosen
    every = (*chosen.shape[:-1], -1)
    latest = torch.arange(length - recent, length, device=scores.device)
    return torch.cat([place[:sinks].expand(every), chosen, latest.expand(every)], dim=-1)
