"""How many keys stay, when eviction starts, and the full timetable of evictions.

Everything here is arithmetic on lengths: no tensor, no model. The one fact that matters most: in
teacher-forced evaluation a layer's cache length depends on nothing but (text length, prune_after,
keep ratio), so every eviction of an evaluation is known before it starts.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

# The adjuster leaves at least this many tokens before the first eviction ...
SHORTEST_PHASE_1 = 32
# ... and a text has to be long enough to score at least one token after them.
SHORTEST_TEXT = SHORTEST_PHASE_1 + 2

WHEN = ("every_step", "after_prefill", "fixed_budget")


class Eviction(NamedTuple):
    """One eviction: before token ``step`` is fed, a cache of ``before`` keys shrinks to ``after``."""

    step: int
    before: int
    after: int


def kept_count(length: int, keep_ratio: float | Fraction) -> int:
    """How many of ``length`` keys an eviction keeps: ``ceil(keep_ratio * length)``, at least 1.

    The product is taken on the decimal number as written, not on its binary approximation.

    >>> kept_count(100, 0.55), kept_count(100, 0.07)
    (55, 7)
    >>> math.ceil(100 * 0.55), math.ceil(100 * 0.07)  # what binary floating point says
    (56, 8)

    Args:
        length: number of keys, at least 0 (0 keeps 0).
        keep_ratio: share to keep, in (0, 1].

    Raises:
        TypeError: an argument is not a number of the right kind.
        ValueError: ``keep_ratio`` is outside (0, 1] or NaN, or ``length`` is negative.
    """
    ratio = check_keep_ratio(keep_ratio)
    return math.ceil(ratio * check_int("length", length, 0))


def effective_prune_after(seq_len: int, prune_after: int) -> int:
    """The ``prune_after`` that leaves something to score: ``max(min(p, max(n - 50, n // 2)), 32)``.

    A text shorter than ``prune_after`` would never be compressed; the adjuster lowers the threshold
    so that it is, keeping at least half of the text (or all but 50 tokens) as uncompressed context.

    >>> effective_prune_after(1024, 256), effective_prune_after(512, 512), effective_prune_after(158, 256)
    (256, 462, 108)

    Raises:
        ValueError: ``seq_len`` is below 34 (32 tokens of context, one to feed, one to score), or
            ``prune_after`` is below 1.
    """
    check_int("prune_after", prune_after, 1)
    check_int("seq_len", seq_len, 0)
    if seq_len < SHORTEST_TEXT:
        raise ValueError(
            f"seq_len={seq_len} is too short to evaluate: a text needs at least {SHORTEST_TEXT} tokens "
            f"({SHORTEST_PHASE_1} of context, one to feed, one to score)"
        )
    return max(min(prune_after, max(seq_len - 50, seq_len // 2)), SHORTEST_PHASE_1)


def eviction_schedule(
    seq_len: int,
    effective_prune_after: int,
    keep_ratio: float | Fraction,
    *,
    when: str = "every_step",
    first_eviction_after: int = 0,
) -> tuple[Eviction, ...]:
    """Every eviction of a two-phase evaluation of ``seq_len`` tokens, in order.

    Phase 1 feeds tokens ``0 … P-1``; phase 2 feeds ``P … seq_len-2``, one at a time, compressing
    first whenever the cache holds at least ``P`` keys. An eviction that would keep everything
    (``kept_count(L) == L``) does not happen, and the cache grows until it would not.

    >>> for eviction in eviction_schedule(10, 4, 0.5):
    ...     print(eviction)
    Eviction(step=4, before=4, after=2)
    Eviction(step=6, before=4, after=2)
    Eviction(step=8, before=4, after=2)
    >>> eviction_schedule(12, 4, 0.5, when="after_prefill")
    (Eviction(step=4, before=4, after=2),)

    Args:
        seq_len: tokens in the text; the last one is only ever scored.
        effective_prune_after: ``P``, the cache length from which a layer is compressed.
        keep_ratio: in (0, 1]; 1 gives an empty schedule.
        when: ``"every_step"``, or ``"after_prefill"`` (once, before the first token of phase 2).
        first_eviction_after: tokens of phase 2 that are fed before anything may be evicted.
    """
    ratio = check_keep_ratio(keep_ratio)
    if when not in ("every_step", "after_prefill"):
        raise ValueError(f"when={when!r} is not one of 'every_step', 'after_prefill'")
    start = check_int("effective_prune_after", effective_prune_after, 1)
    first = start + check_int("first_eviction_after", first_eviction_after, 0)
    return timetable(
        check_int("seq_len", seq_len, 0),
        start,
        lambda length: math.ceil(ratio * length) if length >= start else length,
        first_step=first,
        last_step=None if when == "every_step" else first,
    )


def budget_schedule(
    seq_len: int, budget: int, start: int | None = None, first_eviction_after: int = 0
) -> tuple[Eviction, ...]:
    """The schedule of ``when="fixed_budget"``: a key goes before each token fed, so that ``budget`` is never exceeded.

    Phase 1 has ``start`` tokens, by default ``budget``; the first eviction takes all that are too many.
    """
    start = budget if start is None else start
    return timetable(seq_len, start, lambda length: min(length, budget - 1), first_step=start + first_eviction_after)


def timetable(
    seq_len: int, start: int, kept: Callable[[int], int], *, first_step: int, last_step: int | None = None
) -> tuple[Eviction, ...]:
    """Walk phase 2, which begins at token ``start``, and note every step at which ``kept`` shrinks the cache."""
    evictions = []
    length = start
    for step in range(start, seq_len - 1):
        if first_step <= step and (last_step is None or step <= last_step):
            after = kept(length)
            if after < length:
                evictions.append(Eviction(step, length, after))
                length = after
        length += 1
    return tuple(evictions)


def cache_lengths(seq_len: int, start: int, evictions: tuple[Eviction, ...]) -> list[int]:
    """Cache length right after each token of phase 2 (``start … seq_len-2``) has been fed."""
    at = {eviction.step: eviction.after for eviction in evictions}
    lengths = []
    length = start
    for step in range(start, seq_len - 1):
        length = at.get(step, length) + 1
        lengths.append(length)
    return lengths


def check_keep_ratio(keep_ratio: Any) -> Fraction:
    """The keep ratio as the exact decimal that the user wrote; raises unless it is in (0, 1]."""
    if isinstance(keep_ratio, Fraction) and 0 < keep_ratio <= 1:
        return keep_ratio
    if not isinstance(keep_ratio, numbers.Real) and getattr(keep_ratio, "shape", None) == ():  # a tensor of one number
        keep_ratio = np.asarray(keep_ratio.detach().cpu() if hasattr(keep_ratio, "detach") else keep_ratio)[()]
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, numbers.Real):
        raise TypeError(f"keep_ratio={keep_ratio!r} is not a number: give one in (0, 1]")
    if not 0 < float(keep_ratio) <= 1:  # False for NaN too
        raise ValueError(f"keep_ratio={keep_ratio!r} is outside (0, 1]")
    return Fraction(str(keep_ratio))


def check_int(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``; raises a TypeError or ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is not an integer: give one of at least {least}")
    if value < least:
        raise ValueError(f"{name}={value!r} is below {least}, the least that is allowed")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is True or False, NumPy's among them."""
    numpys = type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
    if not isinstance(value, bool) and not numpys:
        raise TypeError(f"{name}={value!r} is neither True nor False")


def check_path(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is a str or a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={value!r} is no name and no path: give a str or a Path")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is allowed unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
