"""A token-by-token evaluation in float32 that shares nothing with `knorm_core`: it plants what is traced back."""

from __future__ import annotations

import copy
import math

import torch
from transformers import DynamicCache


def threshold(length, prune_after):
    """Where phase 1 ends in a text of ``length`` tokens."""
    return max(32, min(prune_after, max(length - 50, length // 2)))


def shrink(cache, keep, start, skip):
    """Drop the keys of highest norm in every layer that holds ``start`` keys."""
    for index, layer in enumerate(cache.layers):
        length = layer.keys.shape[2]
        if length < start or index in skip:
            continue
        count = math.ceil(round(keep * length, 9))
        order = layer.keys.norm(dim=-1).argsort(dim=-1)[..., :count].sort(dim=-1).values
        rows = order[..., None].expand(-1, -1, -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, rows), layer.values.gather(2, rows)


class Replay:
    """A text in a model, both as the report's scripts would have them; phase 1 is fed once."""

    def __init__(self, model, ids):
        self.model, self.ids = model, torch.as_tensor(ids)
        self.phase_1 = {}

    @torch.inference_mode()
    def plain(self):
        """Losses of every token but the first, from one plain forward."""
        logits = self.model(self.ids[None, :-1]).logits[0]
        return torch.nn.functional.cross_entropy(logits, self.ids[1:], reduction="none").double()

    @torch.inference_mode()
    def losses(self, keep, start, *, skip=(), true_positions=False, feed_first=False):
        """Losses of the tokens after ``start``, compressed from ``start`` keys on."""
        if start not in self.phase_1:
            self.phase_1[start] = DynamicCache()
            self.model(self.ids[None, :start], past_key_values=self.phase_1[start])
        cache, losses = copy.deepcopy(self.phase_1[start]), []
        for step in range(start, len(self.ids) - 1):
            if not feed_first:
                shrink(cache, keep, start, skip)
            position = step if true_positions else cache.layers[0].keys.shape[2]
            logits = self.model(
                self.ids[None, step : step + 1], past_key_values=cache, position_ids=torch.tensor([[position]])
            ).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, self.ids[step + 1 : step + 2]).double())
            if feed_first:
                shrink(cache, keep, start, skip)
        return torch.stack(losses)


def mean_perplexity(losses):
    """The arithmetic mean of texts' perplexities."""
    return sum(math.exp(loss.mean()) for loss in losses) / len(losses)
