"""A number with its 95 % interval: the one type for it, from an experiment to the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Below this many texts their spread cannot be estimated, and an interval speaks of these texts alone.
FEWEST_TEXTS = 8


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % confidence limits; where nothing is known of them they are infinite (0 below a ratio).

    Most are ratios to keep ratio 1, which ``str`` shows as the change that they are:

    >>> print(Interval(1.23, 1.142, 1.331)), print(Interval(0.978, 0.9, math.inf))
    +23 % [+14, +33]
    −2.2 % [−10, ∞]
    (None, None)
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Interval:
        """A number that is not a sample, such as a count."""
        return cls(value, value, value)

    @property
    def excludes_no_change(self) -> bool:
        """Whether a ratio is shown to differ from 1."""
        return not self.low <= 1 <= self.high

    @property
    def inverse(self) -> Interval:
        """Of a positive ratio, the same with its sides exchanged."""
        return Interval(*(1 / end if end else math.inf for end in (self.value, self.high, self.low)))

    @property
    def change(self) -> str:
        """A ratio as a change in per cent, without its limits."""
        return per_cent(self.value)

    @property
    def limits(self) -> str:
        """The limits of a ratio as changes in per cent."""
        ends = (per_cent(end).removesuffix(" %") if math.isfinite(end) else "∞" for end in (self.low, self.high))
        return f"[{', '.join(ends)}]"

    @property
    def multiple(self) -> str:
        """A ratio as a multiple.

        >>> Interval(0.985, 0.97, 1.01).multiple, Interval(1190.4, 0.0, math.inf).multiple
        ('×0.98 [0.97 … 1.01]', '×1,190')
        """
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"×{_short(self.value)}" + (f" [{_short(self.low)} … {_short(self.high)}]" if known else "")

    def columns(self, name: str) -> dict[str, float]:
        """The three columns that a table has for it: ``name``, ``name_low`` and ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> Interval:
        """The interval that `columns` made; limits that are missing or None are not known."""
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return cls(row[name], 0.0 if low is None else low, math.inf if high is None else high)

    def __str__(self) -> str:
        return f"{self.change} {self.limits}"


def per_cent(ratio: float) -> str:
    """A ratio as a change in per cent.

    >>> per_cent(1.393), per_cent(0.998), per_cent(12.9), per_cent(1.0)
    ('+39 %', '−0.2 %', '+1,190 %', '±0 %')
    """
    if not math.isfinite(ratio):
        return "no finite change"
    change = 100 * (ratio - 1)
    text = f"{abs(change):,.{0 if abs(change) >= 9.95 else 1}f}"
    if not float(text.replace(",", "")):
        return "±0 %"
    return f"{'−' if change < 0 else '+'}{text} %"


def _short(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
