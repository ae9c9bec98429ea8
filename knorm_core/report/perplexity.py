"""Perplexity against keep ratio: true positions and positions from the cache length side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from knorm_core.report import axes, claimed
from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Absent, Figure, Panel, Section, ShownTable, merged, of_kind
from knorm_core.report.svg import draw
from knorm_core.report.words import about, keep, listed, number
from knorm_core.results.interval import Interval
from knorm_core.results.records import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODES = {"absolute": "true positions", "cache": "positions from the cache length"}
Report = tuple[str, Sequence[tuple[float, float]]]  # its column, and (keep ratio, multiple of its keep 1.0)
# What tox -e pythia gives its run.
_OF_PYTHIA = ("--knorm-model", "--knorm-text", "--knorm-max-eval-tokens", "--knorm-missing-baseline")
_COLOURS = {"absolute": "blue", "cache": "vermillion"}


class Point(NamedTuple):
    """One row: its perplexity, and that over keep 1.0's."""

    keep: float
    ppl: float
    ratio: Interval


def section(results: Results) -> Section:
    """One figure per model, text set and setting."""
    groups: dict[tuple[str, str, str], dict[str, Table]] = {}
    for table in of_kind(results, "ppl-(absolute|cache)"):
        mode = table.kind.removeprefix("ppl-")
        groups.setdefault((table.model, table.text_set, table.variant), {})[mode] = table
    theirs = {name: claimed.by_keep_ratio(results.verdicts, what) for name, what in claimed.COLUMNS.items()}
    report = {name: column for name, column in theirs.items() if 1.0 in column}
    figures = [_figure(f"ppl-{index}", modes, report) for index, modes in enumerate(groups.values())]
    modes = {mode for group in groups.values() for mode in group}
    absent = [
        Absent(f"perplexity with {words}", "tox", f"pytest -m repro suites/reproduction --knorm-positions {mode}")
        for mode, words in MODES.items()
        if mode not in modes
    ]
    if not any(model.endswith("pythia-70m-deduped") for model, _, _ in groups):
        absent.append(
            Absent("the model that the report is about, EleutherAI/pythia-70m-deduped", "tox -e pythia", own=_OF_PYTHIA)
        )
    return Section(
        "perplexity",
        "Perplexity against keep ratio",
        "What does eviction cost, and how much of that is the fault of positions taken from the cache length?",
        figures,
        tables=[_claimed_table(report)] if report else [],
        absent=absent,
    )


def points(table: Table) -> list[Point]:
    """A table's rows from the highest keep ratio down."""
    rows = sorted(table.rows, key=lambda row: -row["keep_ratio"])
    plain = rows[0]["ppl"]
    return [
        Point(row["keep_ratio"], row["ppl"], Interval.of({"ratio": row["ppl"] / plain, **row}, "ratio")) for row in rows
    ]


def finding(modes: Mapping[str, Sequence[Point]]) -> str:
    """What the mildest eviction costs in each mode, and which way the curve goes from there."""
    changes, first = [], None
    for mode, curve in modes.items():
        first = next((point for point in curve if point.keep < 1), None)
        if first is not None:
            way = course(curve)
            changes.append(f"{_change(first)} with {MODES[mode]}{f' (the estimates {way})' if way else ''}")
    if first is None:
        return "Nothing was compressed here."
    return f"Keep {keep(first.keep)} changes perplexity by {' and by '.join(changes)}."


def course(curve: Sequence[Point]) -> str:
    """Which way the estimates go as the keep ratio falls below 1; empty where there is only one.

    >>> def of(*ppl): return [Point(k, p, Interval.exact(p)) for k, p in zip((1.0, 0.9, 0.5, 0.1), ppl)]
    >>> course(of(1, 2, 3, 4)), course(of(1, 4, 3, 2)), course(of(1, 3, 2, 4))
    ('rise at every step down', 'fall at every step down', 'are worst at keep 0.1 and best at 0.5')
    """
    below = [point for point in curve if point.keep < 1]
    if len(below) < 2:
        return ""
    if all(lower.ppl > higher.ppl for higher, lower in pairwise(below)):
        return "rise at every step down"
    if all(lower.ppl < higher.ppl for higher, lower in pairwise(below)):
        return "fall at every step down"
    worst, best = (choose(below, key=lambda point: point.ppl) for choose in (max, min))
    return f"are worst at keep {keep(worst.keep)} and best at {keep(best.keep)}"


def _change(point: Point) -> str:
    known = math.isfinite(point.ratio.high)
    text = str(point.ratio) if known else point.ratio.change
    return text if point.ratio.excludes_no_change or not known else f"{text}, an interval that holds no change,"


def _figure(name: str, modes: Mapping[str, Table], report: Mapping[str, Mapping[float, float]]) -> Figure:
    modes = {mode: modes[mode] for mode in MODES if mode in modes}
    curves = {mode: points(table) for mode, table in modes.items()}
    where = next(iter(modes.values()))
    column = claimed.column_for(where.text_set)
    theirs = report.get(column, {})
    beside = [(ratio, ppl / theirs[1.0]) for ratio, ppl in theirs.items()]
    ratios = [point.ratio for curve in curves.values() for point in curve]
    drawn = [end for ratio in ratios for end in (ratio.value, ratio.low, ratio.high)]
    limits = axes.log_limits([*drawn, *(multiple for _, multiple in beside)])
    panels = [
        Panel(
            MODES[mode].capitalize(),
            draw(
                f"{name}-{mode}",
                partial(_plot, curve=curves[mode], mode=mode, report=(column, beside), limits=limits),
                alt=_alt(where, mode, curves[mode], (column, beside)),
                height=3.3,
            ),
        )
        for mode in modes
    ]
    plain = next(iter(curves.values()))[0]
    intervals = any(math.isfinite(ratio.high) for ratio in ratios)
    return Figure(
        where.where,
        finding(curves),
        panels,
        merged(
            f"Perplexity, {where.where}",
            "positions",
            [({"absolute": "true", "cache": "from cache length"}[mode], table) for mode, table in modes.items()],
        ),
        note=f"Perplexity at keep {keep(plain.keep)}: {number(plain.ppl)}; the numbers at the points are perplexities."
        + (" Bars: paired 95 % intervals." if intervals else "")
        + (f" Dashed, grey: {claimed.MODEL} in the report, as a multiple of its own keep 1.0." if beside else "")
        + about(where.model, where.text_set),
    )


def _plot(ax: Axes, curve: Sequence[Point], mode: str, report: Report, limits: tuple[float, float]) -> None:
    column, beside = report
    if beside:
        ax.plot(
            [ratio for ratio, _ in beside],
            [multiple for _, multiple in beside],
            color=LIGHT["muted"],
            linestyle=(0, (4, 3)),
            linewidth=1.2,
            marker="D",
            markersize=4.5,
            markerfacecolor=LIGHT["paper"],
            label=f"the report's {column} column",
        )
    axes.with_intervals(ax, [(point.keep, point.ratio) for point in curve], _COLOURS[mode], label="measured")
    for before, point, after in zip(curve, curve[1:], [*curve[2:], None], strict=False):
        # The number goes where the line does not: below a valley, beside a slope, above everything else.
        comes_down = point.ppl < before.ppl
        goes_up = after is not None and after.ppl > point.ppl
        goes_down = after is not None and after.ppl < point.ppl
        valley = comes_down and not goes_down
        end = point.ratio.low if valley else point.ratio.high
        ax.annotate(
            f"{point.ppl:,.1f}",
            (point.keep, axes.finite(end or math.inf, point.ratio.value)),
            textcoords="offset points",
            xytext=(0, -5) if valley else (4, 3) if comes_down else (-4, 3) if goes_up else (0, 4),
            ha="center" if valley else "left" if comes_down else "right" if goes_up else "center",
            va="top" if valley else "bottom",
            fontsize=9,
            bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )
    axes.keep_ratio_axis(ax, [point.keep for point in curve])
    axes.multiples_axis(ax, limits, "perplexity, multiple of keep 1.0")
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2, columnspacing=1.2)


def _alt(where: Table, mode: str, curve: Sequence[Point], report: Report) -> str:
    column, beside = report
    measured = listed(f"{number(round(point.ratio.value, 3))} at {keep(point.keep)}" for point in curve)
    theirs = listed(f"{number(round(multiple, 2))} at {keep(ratio)}" for ratio, multiple in beside)
    return (
        f"Line chart of perplexity against keep ratio for {where.where}, {MODES[mode]}. "
        f"As a multiple of keep 1.0 it is {measured}."
        + (f" The report's {column} column, as a multiple of its own keep 1.0: {theirs}." if beside else "")
    )


def _claimed_table(report: Mapping[str, Mapping[float, float]]) -> ShownTable:
    ratios = sorted({ratio for column in report.values() for ratio in column}, reverse=True)
    return ShownTable(
        f"What the report claims: perplexity of {claimed.MODEL}",
        ["keep ratio", *report],
        [[ratio, *(column.get(ratio) for column in report.values())] for ratio in ratios],
    )
