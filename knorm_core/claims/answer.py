"""What a check answers, and how numbers are put into its sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from knorm_core.claims.tables import Interval
from knorm_core.results.records import Number

MORE_TOKENS = "more scored tokens, for a narrower interval"
MORE_PROMPTS = "more prompts, for a narrower interval"


@dataclass(frozen=True)
class Outcome:
    """What the data say of a claim.

    Attributes:
        holds: whether it holds; None where the data leave it open.
        why: a clause with the numbers.
        numbers: those numbers.
        needs: what would settle it, where it is open.
    """

    holds: bool | None
    why: str
    numbers: tuple[Number, ...]
    needs: str = ""


Check = Callable[..., Outcome]


def all_of(holds: Sequence[bool | None]) -> bool | None:
    """Whether all hold: no if any does not, else open if any is open."""
    return False if False in holds else None if None in holds else True


def shown(ratio: Interval) -> str:
    """A ratio as the change that it is.

    >>> shown(Interval(1.23, 1.142, 1.331))
    '+23.0 % [+14, +33]'
    """
    low, high = (f"{(end - 1) * 100:+.0f}" if math.isfinite(end) else "∞" for end in ratio[1:])
    return f"{(ratio.value - 1) * 100:+.1f} % [{low}, {high}]"


def figure(what: str, ratio: Interval) -> Number:
    """A ratio as a number that a verdict rests on."""
    return Number(what, *ratio)
