"""A token far out in a text: which keys each layer's mask hides from it, and what it depends on besides keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from knorm_core.methods.cached_attention import eager_form, own_attention, plain_attention
from knorm_core.methods.forward import feed_on_cache
from knorm_core.methods.own_forward import OwnForward
from knorm_core.methods.pretended import pretended_cache, repeated_cache

LOOK = "knorm_look"


@dataclass
class Observed:
    """What the attention calls of a model receive while one token is fed, far out in a text.

    Attributes:
        count: keys that the cache says it holds, the token's own included.
        layers: index of the layer of every call, in order.
        keys: keys that each layer receives.
        hides: by layer, how many of the latest keys its mask leaves; None where it leaves all, -1 where
            it leaves others than the latest.
        windows: what calls name a sliding window.
        difference: why the first layer that is not plain attention is not.
        eager: whether every layer's family has an eager form of its attention.
    """

    count: int
    layers: list[int] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)
    hides: dict[int, int | None] = field(default_factory=dict)
    windows: set[int] = field(default_factory=set)
    difference: str | None = None
    eager: bool = True


_seen: ContextVar[Observed] = ContextVar("knorm_seen")


def register() -> None:
    """Register the attention that looks with transformers, together with the masks that a model's own code makes."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if LOOK not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(LOOK, _look)
        ALL_MASK_ATTENTION_FUNCTIONS.register(LOOK, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def feed_last(own: OwnForward, looking: nn.Module, length: int, first_position: int) -> tuple[torch.Tensor, Observed]:
    """Feed the last of a few tokens again, on a cache of the others that claims to hold ``length`` keys.

    Returns:
        Its logits (1, vocabulary), and what was seen.

    Raises:
        Whatever the model's own code raises, ``seen`` being an attribute of the error.
    """
    seen = Observed(length + 1)
    cache = pretended_cache([(keys[:, :, :-1], values[:, :, :-1]) for keys, values in own.pairs], length)
    token = _seen.set(seen)
    try:
        return _last(own, looking, cache, first_position), seen
    except Exception as error:
        error.seen = seen  # type: ignore[attr-defined]
        raise
    finally:
        _seen.reset(token)


def feed_last_repeated(own: OwnForward, length: int, first_position: int) -> torch.Tensor:
    """The last token once more, on a real cache of ``length`` keys or some fewer that holds every key equally often."""
    return _last(own, own.model, repeated_cache(own.pairs, length), first_position)


def feed_last_far(own: OwnForward, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last token at a far position, on the few keys that evictions might have left, and on all of these repeated.

    Returns:
        Its logits (1, vocabulary) on either, which are the same where nothing is read off the length of a cache.
    """
    cache, last = repeated_cache(own.pairs, 0), own.ids[:, -1:]
    few = feed_on_cache(own.model, last, position, cache)
    left = [(layer.keys, layer.values) for layer in cache.layers]
    return few, feed_on_cache(own.model, last, position, repeated_cache(left, position))


def _last(own: OwnForward, model: nn.Module, cache: Any, first_position: int) -> torch.Tensor:
    return feed_on_cache(model, own.ids[:, -1:], own.ids.shape[1] - 1 + first_position, cache)


def _look(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention that records its inputs, and compares a layer's own attention with one pass's on random tensors."""
    seen, layer = _seen.get(), int(module.layer_idx)  # type: ignore[arg-type]
    seen.layers.append(layer)
    seen.keys.append(key)
    seen.windows |= {int(given) for name, given in arguments.items() if name == "sliding_window" and given}
    left = _left(attention_mask, seen.count)
    seen.hides[layer] = left
    if eager_form(module) is None:
        seen.eager = False
        seen.difference = seen.difference or f"layer {layer} has no eager attention to hold one pass against"
    elif seen.difference is None:
        seen.difference = _difference(module, query, key, value, arguments)
    if left is not None and left > 0:
        key, value = key[:, :, -left:], value[:, :, -left:]
    form = plain_attention if seen.difference is None or not seen.eager else own_attention
    return form(module, query, key, value, None, **arguments)


def _left(mask: torch.Tensor | None, count: int) -> int | None:
    """How many of the latest keys a mask (…, 1, keys) leaves; None for all of them, -1 for others than the latest.

    Where there are fewer keys than a mask has columns, attention takes the first of these (transformers 4.57).
    """
    if mask is None or not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        return None
    row = mask[0, 0, -1, :count]
    leaves = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
    count = int(leaves.sum())
    if count == len(leaves):
        return None
    return count if count and bool(leaves[-count:].all()) else -1


def _difference(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, arguments: Mapping[str, Any]
) -> str | None:
    """Why a layer's own attention is not plain, or None if it is: both are asked with random queries and keys."""
    generator = torch.Generator().manual_seed(0)
    # Queries large enough for soft-capping to show, and several keys, which a sink or a bias would share with.
    query, key, value = (
        (torch.randn(1, each.shape[1], count, each.shape[3], generator=generator, dtype=torch.float32) * size).to(each)
        for each, count, size in ((query, 1, 4.0), (key, 8, 1.0), (value, 8, 1.0))
    )
    plain, _ = plain_attention(module, query, key, value, None, **arguments)
    own, _ = own_attention(module, query, key, value, None, **arguments)
    close = 1e-4 if torch.finfo(plain.dtype).eps < 1e-6 else 2e-2
    apart = float((plain - own).abs().max())
    if apart <= close * max(1.0, float(plain.abs().max())):
        return None
    layer = module.layer_idx
    extras = sorted(
        name
        for name, given in arguments.items()
        if isinstance(given, torch.Tensor) and name not in ("position_ids", "cache_position")
    )
    return f"layer {layer} attends with {', '.join(extras)}" if extras else f"layer {layer} is not plain attention"
