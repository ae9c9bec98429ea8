"""Axes and marks that several figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.words import keep
from knorm_core.results.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

# Steps of a decade, from the finest that an axis has room for.
_STEPS: tuple[tuple[float, ...], ...] = (
    (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 3, 5, 7),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1,),
)
_MOST_TICKS = 7


def log_limits(values: Iterable[float | None], around: float = 1.08) -> tuple[float, float]:
    """Limits of a logarithmic axis that holds every finite positive value, and 1."""
    drawn = [1.0, *(value for value in values if value is not None and math.isfinite(value) and value > 0)]
    return min(drawn) / around, max(drawn) * around**2


def multiples_axis(ax: Axes, limits: tuple[float, float], label: str, *, axis: str = "y") -> None:
    """A logarithmic axis of multiples, with ticks that people read: ×1, ×1.5, ×2, …; a line at ×1."""
    ticks = log_ticks(limits)
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": limits, f"{axis}label": label})
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_minor_locator(fixed([]))
    which.set_ticks(ticks, [f"×{tick:g}" for tick in ticks])
    line = ax.axhline if axis == "y" else ax.axvline
    line(1, color=LIGHT["muted"], linewidth=1, zorder=1.5)


def log_ticks(limits: tuple[float, float]) -> list[float]:
    """
    >>> log_ticks((0.9, 2.4)), log_ticks((0.9, 8))
    ([1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0], [1.0, 1.5, 2.0, 3.0, 5.0, 7.0])
    >>> log_ticks((0.9, 30)), log_ticks((0.9, 1e9))
    ([1.0, 2.0, 5.0, 10.0, 20.0], [1.0, 100.0, 10000.0, 1000000.0, 100000000.0])
    """
    low, high = limits
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [round(step * 10.0**decade, 12) for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]


def keep_ratio_axis(ax: Axes, ratios: Sequence[float]) -> None:
    """Keep ratios from 1.0 on the left down, so that to the right is to evict more."""
    ax.set_xlim(max(ratios) + 0.07, min(ratios) - 0.07)
    spaced: list[float] = []
    for ratio in sorted(ratios, reverse=True):
        if not spaced or spaced[-1] - ratio >= 0.08:
            spaced.append(ratio)
    ax.set_xticks(spaced, [keep(ratio) for ratio in spaced])
    ax.set_xlabel("keep ratio (to the right: more evicted)")


def with_intervals(
    ax: Axes,
    points: Sequence[tuple[float, Interval]],
    colour: str,
    *,
    label: str | None = None,
) -> None:
    """A line through the numbers at each x, with a bar from low to high where both are finite."""
    marker, line = SERIES[colour]
    ax.plot(
        [x for x, _ in points],
        [number.value for _, number in points],
        color=LIGHT[colour],
        marker=marker,
        linestyle=line,
        label=label,
        zorder=3,
    )
    for x, number in points:
        if math.isfinite(number.low) and math.isfinite(number.high) and number.low < number.high:
            ax.plot(
                [x, x],
                [number.low, number.high],
                color=LIGHT[colour],
                linewidth=1.3,
                marker="_",
                markersize=6,
                zorder=2.5,
            )


def forest(
    ax: Axes,
    lines: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    label: str,
    claimed: Sequence[float | None] = (),
) -> None:
    """Dots with intervals: a line of text down the side for each, the series within it a little apart; ×1 marked.

    Args:
        lines: from the top down.
        series: name -> a number per line.
        claimed: per line, what somebody else says, or None.
    """
    drawn = [1.0]
    if any(claim is not None for claim in claimed):
        ax.plot(
            [math.nan if claim is None else claim for claim in claimed],
            range(len(lines)),
            linestyle="",
            marker="D",
            markersize=5,
            color=LIGHT["muted"],
            markerfacecolor=LIGHT["paper"],
            label="claimed",
        )
        drawn += [claim for claim in claimed if claim is not None]
    for step, ((name, points), (colour, (marker, _))) in enumerate(zip(series.items(), SERIES.items(), strict=False)):
        at = [line + (step - (len(series) - 1) / 2) * 0.28 for line in range(len(lines))]
        for y, number in zip(at, points, strict=True):
            ends = [finite(number.low, number.value), finite(number.high, number.value)]
            ax.plot(ends, [y, y], color=LIGHT[colour], linewidth=1.4, zorder=2.5)
            drawn += [number.value, *ends]
        values = [number.value for number in points]
        ax.plot(values, at, linestyle="", marker=marker, color=LIGHT[colour], label=name, zorder=3)
    drawn = [value for value in drawn if math.isfinite(value)]
    around = 0.06 * (max(drawn) - min(drawn) or 1)
    ax.set_xlim(min(drawn) - around, max(drawn) + around)
    ax.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    ax.locator_params(axis="x", nbins=6)
    ax.axvline(1, color=LIGHT["muted"], linewidth=1, zorder=1.5)
    ax.set_yticks(range(len(lines)), lines)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(label)
    ax.figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1)


def fixed(ticks: Sequence[float]) -> Locator:
    """Ticks at these places, and nowhere else."""
    from matplotlib.ticker import FixedLocator

    return FixedLocator(ticks)


def finite(value: float | None, otherwise: float) -> float:
    """A limit that can be drawn."""
    return value if value is not None and math.isfinite(value) else otherwise
