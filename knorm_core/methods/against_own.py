"""One pass compared with a model's own forward, in every way that an evaluation uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from knorm_core.methods.language_model import text_config
from knorm_core.methods.onepass import feed_plainly
from knorm_core.methods.own_forward import OwnForward, distance
from knorm_core.setting import UnsupportedModelError

Feed = Callable[..., Any]


def one_pass_differs(
    own: OwnForward, private: nn.Module, windows: Mapping[int, int], first: int, length: int, reach: int
) -> str:
    """What one pass gets wrong, in any way that an evaluation uses it; empty if it is right.

    Args:
        own: the model's own forward.
        private: a copy of the model with the attention of one pass.
        windows: window length of every layer that slides; first: what positions are counted from.
        length: of the text in tokens; reach: its furthest position and one, not counting ``first``.

    Raises:
        UnsupportedModelError: a token's logits depend on what is fed beside it.
    """
    tokens, half = own.ids.shape[1], own.ids.shape[1] // 2
    feed = partial(feed_plainly, private, layers=len(own.pairs), windows=windows)
    near = first + torch.arange(tokens)
    limit = getattr(text_config(own.model), "max_position_embeddings", None)
    furthest = first + max(reach - 1, tokens - 1)
    far_one = near.clone()
    far_one[-1] = min(furthest, limit - 1) if limit and limit > tokens + first else furthest
    beside, fed = feed(torch.cat([own.ids, own.other]), torch.stack([near, far_one]), count=tokens)
    if (apart := distance(beside[1, :half], beside[0, :half])) > own.tolerance:
        raise UnsupportedModelError(
            f"{own.name} mixes tokens: where later ones change, earlier logits part by {apart:.1%}"
        )
    apart = distance(beside[0], own.logits)
    if apart > own.tolerance:
        own.must_be_sound()
        alone, _ = feed(own.ids, near, count=tokens)
        if (alone_apart := distance(alone[0], own.logits)) > own.tolerance:
            return f"one pass parts from its own forward by {alone_apart:.1%} in the logits"
        return _beside(own, feed, near, int(far_one[-1]), apart)
    prior = [(queries[:1, :, :half], keys[:1, :, :half], values[:1, :, :half]) for queries, keys, values in fed]
    continued, _ = feed(own.ids[:, half:], near[half:], count=tokens - half, prior=prior)
    if (apart := distance(continued[0], own.logits[half:])) > own.tolerance:
        return f"continued from a prefix, it parts from its own forward by {apart:.1%} in the logits"
    return _whole_text_differs(own, feed, windows, first, length)


def _beside(own: OwnForward, feed: Feed, near: torch.Tensor, furthest: int, apart: float) -> str:
    """Whether the other text or its far position is what changes the logits of a text."""
    beside, _ = feed(torch.cat([own.ids, own.other]), near, count=own.ids.shape[1])
    if distance(beside[0], own.logits) > own.tolerance:
        raise UnsupportedModelError(
            f"{own.name} mixes texts: beside another in a batch, the logits of one part by {apart:.1%}"
        )
    return (
        f"its rotary table changes with the furthest position of a text: where that is {furthest}, logits of "
        f"earlier tokens part by {apart:.1%}, so keys cached before and after have different ones"
    )


def _whole_text_differs(own: OwnForward, feed: Feed, windows: Mapping[int, int], first: int, length: int) -> str:
    """What one pass gets wrong of a text longer than a window that is named; empty where there is none."""
    limit = getattr(text_config(own.model), "max_position_embeddings", None)
    tokens = min(length, limit - first) if limit and limit > first else length
    if not any(window < tokens for window in {*own.named_windows, *windows.values()}):
        return ""
    ids = own.ids.repeat(1, tokens // own.ids.shape[1] + 1)[:, :tokens]
    count = own.ids.shape[1]
    ours, _ = feed(ids, first + torch.arange(tokens), count=count)
    theirs = own.model(input_ids=ids, use_cache=False).logits[0, -count:]
    apart = distance(ours[0], theirs)
    if apart <= own.tolerance:
        return ""
    return f"of {tokens} tokens, more than a window, one pass parts from its own forward by {apart:.1%} in the logits"
