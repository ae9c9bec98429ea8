"""One pass held to a model's own forward, in every way that an evaluation uses it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import nn

from knorm_core.methods.language_model import text_config
from knorm_core.methods.onepass import feed_plainly
from knorm_core.methods.own_forward import OwnForward, distance, tolerance
from knorm_core.setting import Setting, UnsupportedModelError


def one_pass_differs(
    own: OwnForward, private: nn.Module, windows: Mapping[int, int], first: int, length: int, reach: int
) -> str:
    """What one pass gets wrong, in any way that an evaluation uses it; empty where it gets nothing wrong.

    Args:
        own: the model's own forward.
        private: a copy of the model with the attention of one pass.
        windows: window length of every layer that slides; first: what positions are counted from.
        length: of the text in tokens; reach: its furthest position and one, not counting ``first``.

    Raises:
        UnsupportedModelError: a token's logits depend on what is fed beside it.
    """
    tokens, half = own.ids.shape[1], own.ids.shape[1] // 2
    setting = _uncompressed(own, tokens, windows, first)
    near = setting.fed_positions()
    limit = getattr(text_config(own.model), "max_position_embeddings", None)
    furthest = first + max(reach - 1, tokens - 1)
    far_one = near.clone()
    far_one[-1] = min(furthest, limit - 1) if limit and limit > tokens + first else furthest
    beside, fed = feed_plainly(
        private, torch.cat([own.ids, own.other]), torch.stack([near, far_one]), setting, count=tokens
    )
    close, name = tolerance(own.logits), own.name
    if distance(beside[1, :half], beside[0, :half]) > close:
        raise UnsupportedModelError(
            f"{name} mixes tokens: where later ones change, earlier logits part by "
            f"{distance(beside[1, :half], beside[0, :half]):.1%}"
        )
    apart = distance(beside[0], own.logits)
    if apart > close:
        own.must_be_causal()
        alone, _ = feed_plainly(private, own.ids, near, setting, count=tokens)
        if distance(alone[0], own.logits) > close:
            return f"one pass parts from its own forward by {distance(alone[0], own.logits):.1%} in the logits"
        return _beside(private, own, setting, near, far_one, apart)
    prior = [(queries[:1, :, :half], keys[:1, :, :half], values[:1, :, :half]) for queries, keys, values in fed]
    continued, _ = feed_plainly(private, own.ids[:, half:], near[half:], setting, count=tokens - half, prior=prior)
    if (apart := distance(continued[0], own.logits[half:])) > close:
        return f"continued from a prefix, it parts from its own forward by {apart:.1%} in the logits"
    return _whole_text_differs(own, private, windows, first, length)


def _beside(
    private: nn.Module,
    own: OwnForward,
    setting: Setting,
    near: torch.Tensor,
    far_one: torch.Tensor,
    apart: float,
) -> str:
    """Whether the other text or its far position is what changes the logits of a text."""
    tokens = own.ids.shape[1]
    beside, _ = feed_plainly(private, torch.cat([own.ids, own.other]), near, setting, count=tokens)
    if distance(beside[0], own.logits) > tolerance(own.logits):
        raise UnsupportedModelError(
            f"{own.name} mixes texts: beside another in a batch, the logits of one part by {apart:.1%}"
        )
    return (
        f"its rotary table changes with the furthest position of a text: where that is {int(far_one[-1])}, logits of "
        f"earlier tokens part by {apart:.1%}, so keys cached before and after have different ones"
    )


def _whole_text_differs(
    own: OwnForward, private: nn.Module, windows: Mapping[int, int], first: int, length: int
) -> str:
    """What one pass gets wrong of a text longer than a window that is named; empty where there is none."""
    limit = getattr(text_config(own.model), "max_position_embeddings", None)
    tokens = min(length, limit - first) if limit and limit > first else length
    if not any(window < tokens for window in {*own.named_windows, *windows.values()}):
        return ""
    ids = own.ids.repeat(1, tokens // own.ids.shape[1] + 1)[:, :tokens]
    count = own.ids.shape[1]
    setting = _uncompressed(own, tokens, windows, first)
    ours, _ = feed_plainly(private, ids, setting.fed_positions(), setting, count=count)
    theirs = own.model(input_ids=ids, use_cache=False).logits[0, -count:]
    apart = distance(ours[0], theirs)
    if apart <= tolerance(theirs):
        return ""
    return f"of {tokens} tokens, more than a window, one pass parts from its own forward by {apart:.1%} in the logits"


def _uncompressed(own: OwnForward, tokens: int, windows: Mapping[int, int], first: int) -> Setting:
    """A setting of so many tokens fed and none evicted."""
    layers = len(own.pairs)
    return Setting(tokens + 1, layers, tokens, (Fraction(1),) * layers, sliding=windows, first_position=first)
