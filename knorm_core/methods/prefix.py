"""Phase 1, fed once for all that share it: the rows of a table, and texts that begin alike."""

from __future__ import annotations

import torch
from torch import nn

from knorm_core.methods.fed import Prefix, after
from knorm_core.methods.forward import private_copy, token_nll
from knorm_core.methods.onepass import ATTENTION, feed_plainly
from knorm_core.setting import Setting


@torch.inference_mode()
def feed_prefix(model: nn.Module, input_ids: torch.Tensor, setting: Setting, known: Prefix | None = None) -> Prefix:
    """Feed phase 1 (the same for every keep ratio, policy and position mode) and keep what it leaves.

    Args:
        model, input_ids, setting: as for `knorm_core.methods.onepass.run`.
        known: the first tokens of this text, fed before, where scoring starts after phase 1.
    """
    length = min(setting.start, setting.seq_len - 1)
    ids, positions = input_ids[:length], setting.fed_positions()[:length]
    scored = setting.first_scored == 1
    count = length if scored else 1
    start = known.length if known else 0
    if known and start == length:
        return known
    model = known.model if known else private_copy(model, ATTENTION)
    logits, fed = feed_plainly(
        model,
        ids[None, start:],
        positions[start:],
        layers=setting.layers,
        windows=setting.sliding,
        count=count,
        prior=known.fed if known else None,
    )
    if known:
        fed = tuple(after(*both) for both in zip(known.fed, fed, strict=True))
    nll = token_nll(logits[0], input_ids[1 : length + 1]) if scored else torch.zeros(0, dtype=torch.float64)
    return Prefix(model, fed, ids, nll)


class Prefixes:
    """Phase 1 of one text after another: what a text begins with as the one before is not fed again.

    The numbers are those of feeding each text whole, but for rounding.

    Args:
        model: as for `evaluate`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._last: Prefix | None = None

    def feed(self, input_ids: torch.Tensor, setting: Setting) -> Prefix:
        """Phase 1 of a text (n,), of which no token is scored."""
        wanted = input_ids[: min(setting.start, setting.seq_len - 1)]
        known = None
        if self._last is not None and (alike := _alike(self._last.ids, wanted)):
            known = self._last.cut(alike)
        prefix = feed_prefix(self._model, input_ids, setting, known)
        if prefix is not known:  # else the last one goes further
            self._last = prefix
        return prefix


def _alike(ids: torch.Tensor, others: torch.Tensor) -> int:
    """How many first tokens two texts share."""
    length = min(len(ids), len(others))
    return int((ids[:length] == others[:length]).cumprod(0).sum())
