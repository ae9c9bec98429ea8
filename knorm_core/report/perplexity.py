"""Perplexity against keep ratio: true positions and positions from the cache length side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from knorm_core.report import axes, claimed
from knorm_core.report.named import Named, named
from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Absent, Figure, Panel, Section, ShownTable, merged
from knorm_core.report.svg import draw
from knorm_core.report.words import change, keep, listed, number
from knorm_core.results.records import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REPORT_S_MODEL = Absent("the model that the report is about, EleutherAI/pythia-70m", "tox -e pythia")
MODES = {"absolute": "true positions", "cache": "positions from the cache length"}
Report = tuple[str, Sequence[tuple[float, float]]]  # its column, and (keep ratio, multiple of its keep 1.0)
_COLOURS = {"absolute": "blue", "cache": "vermillion"}


class Point(NamedTuple):
    """One row: its perplexity, and that over keep 1.0's with a 95 % interval where there is one."""

    keep: float
    ppl: float
    ratio: float
    low: float | None
    high: float | None


def section(results: Results) -> Section:
    """One figure per model, text set and setting."""
    groups: dict[tuple[str, str, str], dict[str, Named]] = {}
    for one in named(results, "ppl-(absolute|cache)(-[0-9a-f]{8})?"):
        groups.setdefault((one.model, one.text_set, one.found[2] or ""), {})[one.found[1]] = one
    theirs = {name: claimed.by_keep_ratio(results.verdicts, what) for name, what in claimed.COLUMNS.items()}
    report = {name: column for name, column in theirs.items() if 1.0 in column}
    figures = [_figure(f"ppl-{index}", modes, report) for index, modes in enumerate(groups.values())]
    modes = {mode for group in groups.values() for mode in group}
    absent = [
        Absent(f"perplexity with {told}", "tox", f"pytest -m repro suites/reproduction --knorm-positions {mode}")
        for mode, told in MODES.items()
        if mode not in modes
    ]
    if not any(model.endswith("pythia-70m") for model, _, _ in groups):
        absent.append(Absent("the model that the report is about, EleutherAI/pythia-70m", "tox -e pythia"))
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
        Point(
            row["keep_ratio"],
            row["ppl"],
            row.get("ratio", row["ppl"] / plain),
            row.get("ratio_low"),
            row.get("ratio_high"),
        )
        for row in rows
    ]


def finding(modes: Mapping[str, Sequence[Point]]) -> str:
    """What the mildest eviction costs in each mode, and which way the curve goes from there."""
    told, first = [], None
    for mode, curve in modes.items():
        first = next((point for point in curve if point.keep < 1), None)
        if first is not None:
            told.append(f"{_change(first)} with {MODES[mode]} ({course(curve)})")
    if first is None:
        return "Nothing was compressed here."
    return f"Keep {keep(first.keep)} changes perplexity by {' and by '.join(told)}."


def course(curve: Sequence[Point]) -> str:
    """Which way perplexity goes as the keep ratio falls below 1.

    >>> def of(*ppl): return [Point(k, p, p, None, None) for k, p in zip((1.0, 0.9, 0.5, 0.1), ppl)]
    >>> course(of(1, 2, 3, 4)), course(of(1, 4, 3, 2)), course(of(1, 3, 2, 4))
    ('rising at every step down', 'falling at every step down', 'worst at keep 0.1 and best at 0.5')
    """
    below = [point for point in curve if point.keep < 1]
    if len(below) == 1:
        return "the only ratio measured"
    if all(lower.ppl > higher.ppl for higher, lower in pairwise(below)):
        return "rising at every step down"
    if all(lower.ppl < higher.ppl for higher, lower in pairwise(below)):
        return "falling at every step down"
    worst, best = (choose(below, key=lambda point: point.ppl) for choose in (max, min))
    return f"worst at keep {keep(worst.keep)} and best at {keep(best.keep)}"


def _change(point: Point) -> str:
    beyond = point.low is None or point.high is None or not point.low <= 1 <= point.high
    return change(point.ratio) + ("" if beyond else ", which the interval does not tell from none,")


def _figure(name: str, modes: Mapping[str, Named], report: Mapping[str, Mapping[float, float]]) -> Figure:
    modes = {mode: modes[mode] for mode in MODES if mode in modes}
    curves = {mode: points(one.table) for mode, one in modes.items()}
    where = next(iter(modes.values()))
    column = claimed.column_for(where.text_set)
    theirs = report.get(column, {})
    beside = [(ratio, ppl / theirs[1.0]) for ratio, ppl in theirs.items()]
    drawn = [value for curve in curves.values() for point in curve for value in (point.ratio, point.low, point.high)]
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
    intervals = any(point.low is not None for curve in curves.values() for point in curve)
    return Figure(
        where.where,
        finding(curves),
        panels,
        merged(
            f"Perplexity, {where.where}",
            "positions",
            [({"absolute": "true", "cache": "from cache length"}[mode], one.table) for mode, one in modes.items()],
        ),
        note=f"Perplexity at keep {keep(plain.keep)}: {number(plain.ppl)}; the numbers at the points are perplexities."
        + (" Bars: paired 95 % intervals." if intervals else "")
        + (f" Dashed, grey: {claimed.MODEL} in the report, as a multiple of its own keep 1.0." if beside else ""),
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
    axes.with_intervals(ax, [(p.keep, p.ratio, p.low, p.high) for p in curve], _COLOURS[mode], label="measured")
    for before, point in pairwise(curve):
        falls = point.ratio < before.ratio  # the line comes from above: the number goes beside it
        ax.annotate(
            f"{point.ppl:,.1f}",
            (point.keep, axes.finite(point.high, point.ratio)),
            textcoords="offset points",
            xytext=(4, 3) if falls else (0, 4),
            ha="left" if falls else "center",
            fontsize=9,
        )
    axes.keep_ratio_axis(ax, [point.keep for point in curve])
    axes.multiples_axis(ax, limits, "perplexity, multiple of keep 1.0")
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2, columnspacing=1.2)


def _alt(where: Named, mode: str, curve: Sequence[Point], report: Report) -> str:
    column, beside = report
    measured = listed(f"{number(round(point.ratio, 3))} at {keep(point.keep)}" for point in curve)
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
