"""What a few forward passes show of a model: its layers, windows and positions, and what one pass would get wrong.

Nothing that a model says of itself is believed. A few tokens are fed

- through the model's own forward, whose logits and cached keys are the measure of all else;
- the last of them once more, on a cache that says it is as long as the text: what the mask hides in each layer,
  and whether anything but keys (a position, a temperature) is read off the cache;
- in one pass, beside another text that has a position as far as the text reaches, and continued from a prefix.

All of them have to agree. Together they take about the time of four forward passes of a few tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from knorm_core.methods import cached_attention, far
from knorm_core.methods.against_own import one_pass_differs
from knorm_core.methods.far import LOOK, Observed
from knorm_core.methods.forward import private_copy
from knorm_core.methods.language_model import text_config, token_table
from knorm_core.methods.onepass import ATTENTION
from knorm_core.methods.own_forward import OwnForward, distance, own_forward
from knorm_core.setting import UnsupportedModelError

# Tokens. A longer window is that of no text, and a mask that looks beyond it would fill the memory.
_LONGEST_WINDOW = 1 << 22


@dataclass(frozen=True)
class Anatomy:
    """What was seen of a model, for texts up to some length.

    Attributes:
        layers: how many layers keep keys.
        windows: window length in tokens of every layer that slides.
        first_position: what it counts positions from when nobody passes any.
        obstacle: why one pass cannot serve it; empty where it can.
        attention: the attention implementation of the stepwise evaluation; None for the model's own.
        refusal: why neither method can serve it; empty where one can.
    """

    layers: int
    windows: Mapping[int, int] = field(default_factory=dict)
    first_position: int = 0
    obstacle: str = ""
    attention: str | None = None
    refusal: str = ""


_looked: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], Anatomy]] = weakref.WeakKeyDictionary()


def anatomy(model: nn.Module, length: int, reach: int | None = None) -> Anatomy:
    """A model as it is seen at texts of ``length`` tokens whose positions stay below ``reach``.

    It is looked at once; a text longer than any before is looked at as if it were as long as the next power of
    two, and only where that shows an obstacle at its own length. A refusal is not remembered: what it is for, another
    thread's default dtype perhaps, may pass.
    """
    reach = length if reach is None else reach
    known = _looked.setdefault(model, {})
    for (at_length, at_reach), seen in list(known.items()):  # another thread may add to it
        if at_length >= length and at_reach >= reach and not (seen.obstacle or seen.refusal):
            return seen
    rounded = 1 << (length - 1).bit_length()
    for key in ((rounded, rounded), (length, reach)):
        seen = known.get(key) or _look(model, *key)
        if not seen.refusal:
            known[key] = seen
        if not (seen.obstacle or seen.refusal):
            break
    return seen


@torch.inference_mode()
def _look(model: nn.Module, length: int, reach: int) -> Anatomy:
    cached_attention.register()
    far.register()
    name = type(model).__name__
    kind = _device(model).type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        try:
            own = own_forward(model)
            return _judge(model, own, length, reach)
        except UnsupportedModelError as refusal:
            return Anatomy(_configured_layers(model), refusal=str(refusal))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a family's own code makes of a cache
            reason = f"{name} cannot be fed on a DynamicCache ({type(error).__name__}: {error})"
            return Anatomy(_configured_layers(model), refusal=reason)


def _judge(model: nn.Module, own: OwnForward, length: int, reach: int) -> Anatomy:
    """Choose one pass if it agrees with the model's own forward, else a real cache if that agrees, else refuse."""
    layers = len(own.pairs)
    looking = private_copy(model, LOOK)
    try:
        seen, first = _far_token(own, looking, length)
    except _OwnCode as by_own_code:
        return _by_own_code(own, str(by_own_code), length)
    windows = _windows(own, looking, seen, length, first)
    obstacle = _received_keys(own, seen) or seen.difference or ""
    if not seen.eager:
        return replace(_by_own_code(own, obstacle, length), windows=windows)
    made = Anatomy(
        layers, windows, first, attention=cached_attention.OWN if seen.difference else cached_attention.PLAIN
    )
    looking.config._attn_implementation = ATTENTION  # type: ignore[union-attr]
    obstacle = obstacle or one_pass_differs(own, looking, windows, first, length, reach)
    if obstacle:
        own.must_be_sound()
    return replace(made, obstacle=obstacle)


class _OwnCode(Exception):
    """Only the model's own code can attend as it does; the message says why."""


def _far_token(own: OwnForward, looking: nn.Module, length: int) -> tuple[Observed, int]:
    """What a token at position ``length`` - 1 shows of the model, and what positions are counted from."""
    layers = list(range(len(own.pairs)))
    apart = []
    for first in _first_positions(own):
        try:
            logits, seen = far.feed_last(own, looking, length - 1, first)
        except Exception as error:
            if error.seen.layers != layers:  # type: ignore[attr-defined]
                raise _OwnCode(_not_through(error.seen, layers)) from error  # type: ignore[attr-defined]
            raise
        if seen.layers != layers:
            raise _OwnCode(_not_through(seen, layers))
        apart.append(distance(logits, own.logits[-1:]))
        if apart[-1] <= own.tolerance:
            return seen, first
    _windows(own, looking, seen, length, first)  # says it where a mask hides some of the few keys
    near, _ = far.feed_last(own, looking, own.ids.shape[1] - 1, first)
    if distance(near, own.logits[-1:]) > own.tolerance:
        raise _OwnCode(f"attention without a mask parts from its own by {min(apart):.1%} in the logits")
    raise UnsupportedModelError(
        f"{own.name} reads positions off the length of its cache, which an eviction shortens: where a cache says that "
        f"it holds {length - 1} keys, the logits of a token part by {min(apart):.1%}, at the same position"
    )


def _not_through(seen: Observed, layers: list[int]) -> str:
    if len(seen.layers) >= len(layers):
        calls = f"{len(seen.layers)} calls come from {len(set(seen.layers))} layers"
        return f"its {len(layers)} cached layers do not attend once each: {calls}"
    calls = f"; {len(seen.layers)} calls for its {len(layers)} layers do" if seen.layers else ""
    return f"its attention does not go through transformers' AttentionInterface{calls}"


def _first_positions(own: OwnForward) -> list[int]:
    """What a model may count from: 0, or what follows the padding's position, where the table is long enough."""
    config = text_config(own.model)
    padding, limit = (getattr(config, name, None) for name in ("pad_token_id", "max_position_embeddings"))
    if padding is None or not limit or padding + own.ids.shape[1] >= limit:
        return [0]
    return [0, int(padding) + 1]


def _windows(own: OwnForward, looking: nn.Module, seen: Observed, length: int, first: int) -> dict[int, int]:
    """Window length of every layer whose mask leaves only the latest keys, as seen beyond the longest that is named.

    Raises:
        UnsupportedModelError: a mask leaves other keys than the latest, or not always as many of them.
    """
    named = {window for window in own.named_windows | seen.windows if window <= _LONGEST_WINDOW}
    hides = again = seen.hides
    at = max(length - 1, *named, 0) + 2
    if named or any(left is not None for left in hides.values()):
        hides, again = (far.feed_last(own, looking, each, first)[1].hides for each in (at, at + 1))
    windows = {layer: left for layer, left in hides.items() if left is not None}
    if hides != again or -1 in windows.values():
        if all(left is None for left in seen.hides.values()):
            return {}  # whatever it hides, it hides beyond the text
        layer = next(layer for layer in hides if hides[layer] != again[layer] or hides[layer] == -1)
        raise UnsupportedModelError(
            f"layer {layer} of {own.name} hides keys in another way than a sliding window does: of {at + 1} and "
            f"{at + 2} keys it leaves {_count(hides[layer])} and {_count(again[layer])}. Only layers that attend to "
            f"the whole text or to a sliding window can be evaluated exactly"
        )
    return windows


def _count(left: int | None) -> str:
    return {None: "all", -1: "others than the latest"}.get(left, f"the latest {left}")


def _received_keys(own: OwnForward, seen: Observed) -> str:
    """Why the keys that attention receives are not those in the cache; empty where they are.

    Raises:
        UnsupportedModelError: they are so different that the norm of what is cached says nothing of what attends.
    """
    for layer, (received, (cached, _)) in enumerate(zip(seen.keys, own.pairs, strict=True)):
        if not bool(cached.isfinite().all()):
            raise UnsupportedModelError(
                f"{own.name} makes keys in layer {layer} that are not finite: its weights hold NaN or infinity, or "
                f"numbers that {cached.dtype} cannot hold"
            )
        tokens = min(received.shape[2], cached.shape[2])
        received, cached = received[:, :, -tokens:].double(), cached[:, :, -tokens:].double()
        close = own.tolerance * cached.norm()
        if received.shape == cached.shape:
            if (received - cached).norm() <= close:
                continue
            if (received.norm(dim=-1) - cached.norm(dim=-1)).norm() <= close:
                return f"attention of layer {layer} receives other keys than those in its cache, of the same norm"
        times = received.shape[1] // cached.shape[1]
        if received.shape[1:] == (times * cached.shape[1], *cached.shape[2:]) and times > 1:
            copies = (cached.repeat(1, times, 1, 1), cached.repeat_interleave(times, dim=1))
            if any((received - each).norm() <= times * close for each in copies):
                return f"attention of layer {layer} receives each key of its cache {times} times"
        raise UnsupportedModelError(
            f"the cache of {own.name} does not hold the keys that attend: in layer {layer} it holds "
            f"{_shape(cached)} (batch, heads, tokens, width), while attention receives {_shape(received)} of other "
            f"norms, so a key's norm has no meaning there"
        )
    return ""


def _shape(keys: torch.Tensor) -> str:
    return "(" + ", ".join(map(str, keys.shape)) + ")"


def _by_own_code(own: OwnForward, obstacle: str, length: int) -> Anatomy:
    """The model's own attention on a real cache, where an eviction changes nothing but which keys there are.

    Raises:
        UnsupportedModelError: it would take an eviction for something else.
    """
    own.must_be_sound()
    apart = []
    for first in _first_positions(own):
        logits = far.feed_last_repeated(own, length - 1, first)
        apart.append(distance(logits, own.logits[-1:]))
        if apart[-1] <= own.tolerance:
            _must_take_far_positions(own, length, first)
            return Anatomy(len(own.pairs), {}, first, obstacle, None)
    raise UnsupportedModelError(
        f"{own.name} reads the distance of a key off its place in the cache, or a position off the cache's length (a "
        f"local window, a bias, ALiBi), and an eviction changes both: with each key there several times, in another "
        f"order, the logits of a token part by {min(apart):.1%}"
    )


def _must_take_far_positions(own: OwnForward, length: int, first: int) -> None:
    """Refuse a model that places a token by the keys before it, of which evictions leave few."""
    limit = getattr(text_config(own.model), "max_position_embeddings", None)
    far_one = first + length - 1
    position = min(far_one, limit - 1) if limit and limit > first + own.ids.shape[1] else far_one
    keys = own.ids.shape[1] - 1
    try:
        few, many = far.feed_last_far(own, position)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{own.name} cannot place a token at position {position} after {keys} keys, which evictions leave: its own "
            f"forward fails with {type(error).__name__}: {error}"
        ) from error
    if (apart := distance(few, many)) > own.tolerance:
        raise UnsupportedModelError(
            f"{own.name} reads positions off the length of its cache, which an eviction shortens: at position "
            f"{position}, after {keys} keys and after each of them several times, the logits of a token part by "
            f"{apart:.1%}"
        )


def _configured_layers(model: nn.Module) -> int:
    return int(getattr(text_config(model), "num_hidden_layers", 1))


def _device(model: nn.Module) -> torch.device:
    return token_table(model).weight.device
