"""Deaths: the token before which each key of a layer is evicted, worked out in one go from the keys alone.

For a policy that looks at keys alone, ranks are fixed at birth and the schedule of lengths is known, so nothing
has to be played forward; for any other see `knorm_core.methods.replay`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import torch

from knorm_core.counts import Eviction
from knorm_core.methods.attention import NEVER
from knorm_core.selection import UNPROTECTED, Protection
from knorm_core.setting import Setting


def layer_deaths(setting: Setting, layer: int, keys: torch.Tensor) -> torch.Tensor | None:
    """Death of every key under a policy that reads "key", int64 (batch, kv_heads, length); None if all of them live."""
    if layer in setting.sliding:
        return window_deaths(setting.sliding[layer], keys)
    schedule = setting.schedule(layer)
    if not schedule:
        return None
    scores = setting.scores(layer, keys, torch.arange(keys.shape[2], device=keys.device))
    # Rank once for all: of the keys alive at an eviction, those of highest rank go.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(-1, order, places)
    rows = [death_row(row, schedule, setting.protection) for row in ranks.flatten(0, 1).tolist()]
    return torch.tensor(rows, device=keys.device).view(ranks.shape)


def death_row(ranks: Sequence[int], schedule: Sequence[Eviction], protection: Protection = UNPROTECTED) -> list[int]:
    """Death of each key of one head, given its rank among all keys of the text (lowest survive).

    Keys that are not protected are held in the order of their ranks, so an eviction cuts off an end, and a key
    costs one insertion however often the schedule evicts.

    >>> death_row([0, 3, 1, 2, 4], [Eviction(step=2, before=2, after=1), Eviction(4, 3, 2)])[:4]
    [9223372036854775807, 2, 9223372036854775807, 4]
    """
    deaths = [NEVER] * len(ranks)
    key_of = sorted(range(len(ranks)), key=ranks.__getitem__)
    free: list[int] = []  # ranks of those that may go, ascending
    born = protection.sinks
    for step, before, after in schedule:
        for rank in ranks[born : max(step - protection.recent, born)]:
            insort(free, rank)
        born = max(step - protection.recent, born)
        for rank in free[after - before :]:
            deaths[key_of[rank]] = step
        del free[after - before :]
    return deaths


def window_deaths(window: int | None, keys: torch.Tensor) -> torch.Tensor | None:
    """A sliding-window layer forgets each key after ``window`` queries; one without a window forgets none."""
    if window is None or window >= keys.shape[2]:
        return None
    return (torch.arange(keys.shape[2], device=keys.device) + window).expand(keys.shape[:3])
