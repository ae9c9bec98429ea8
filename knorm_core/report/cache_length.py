"""The cache's length: the sawtooth between evictions, and what a keep ratio leaves on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from knorm_core.report import axes, sawtooth
from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, merged, of_kind
from knorm_core.report.svg import draw, short
from knorm_core.report.words import keep, listed, number
from knorm_core.results.records import Results, Table, TableRow, TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Point = tuple[float, float, float]  # keep ratio, share of the mean cache, evictions per 1,000 tokens
Curve = tuple[str, tuple[Point, ...]]  # names of texts, their points


def section(results: Results) -> Section:
    """A figure of memory and evictions per model, the sawtooth per trace."""
    models: dict[str, dict[str, Table]] = {}
    for table in of_kind(results, "ppl-(absolute|cache)"):  # the same in both modes
        models.setdefault(table.model, {}).setdefault(f"{table.text_set}{table.variant}", table)
    traces = sawtooth.figures(results)
    memory = [_memory(f"memory-{index}", *each) for index, each in enumerate(models.items())]
    return Section(
        "cache-length",
        "Cache length and evictions",
        "Did compression fire, and how much memory does a keep ratio really save?",
        [*traces, *memory],
        tables=[
            as_recorded(table, f"The report's faults: did it fire, {table.where}")
            for table in of_kind(results, "faults")
        ],
        absent=[
            Absent(what, "tox", "pytest -m repro suites/reproduction")
            for what, figures in (("the cache's length step by step", traces), ("mean caches and evictions", memory))
            if not figures
        ],
    )


def memory_finding(tables: Mapping[str, TableRows]) -> str:
    """What the lowest keep ratio leaves on average, against what its name says; and where rows peak."""
    compressed = {name: [row for row in rows if row["keep_ratio"] < 1] for name, rows in tables.items()}
    silent = [name for name, rows in compressed.items() if rows and not any(row["evictions_per_layer"] for row in rows)]
    if not any(compressed.values()):
        return "Nothing was compressed."
    if silent:
        return f"Compression never fired on {listed(silent)}: these rows compare nothing with nothing."
    shares = []
    for name, rows in tables.items():
        lowest = min(rows, key=lambda row: row["keep_ratio"])
        shares.append(f"{_per_cent(_share(lowest, rows))} on {name}")
    kept = min(row["keep_ratio"] for rows in compressed.values() for row in rows)
    peaks = sorted({row["peak_cache"] for rows in compressed.values() for row in rows})
    peak = number(peaks[0]) if len(peaks) == 1 else f"{number(peaks[0])} to {number(peaks[-1])}"
    return (
        f"The keep ratio is not the memory left: keep {keep(kept)} holds on average, of what is held without "
        f"compression, {listed(shares)}, and compressed rows peak at {peak} entries."
    )


def _memory(name: str, model: str, tables: Mapping[str, Table]) -> Figure:
    curves = _curves_of(tables)

    def alt(what: str, which: int) -> str:
        lines = [
            f"{text}: " + listed(f"{number(round(point[which], 3))} at {keep(point[0])}" for point in points)
            for text, points in curves
        ]
        return f"{what} against keep ratio, {model}. {'; '.join(lines)}."

    mean, often = (
        "Mean cache as a share of what is held without compression",
        "Evictions per layer and 1,000 scored tokens",
    )
    return Figure(
        model,
        memory_finding({text: table.rows for text, table in tables.items()}),
        [
            Panel(mean, draw(f"{name}-mean", lambda ax: _plot_mean(ax, curves), alt=alt(mean, 1), height=3.6)),
            Panel(often, draw(f"{name}-often", lambda ax: _plot_often(ax, curves), alt=alt(often, 2), height=3.6)),
        ],
        merged(f"Cache and evictions by keep ratio, {model}", "texts", list(tables.items())),
        note="Both are means over the same texts and tokens. Dashed, grey: what would be left if the keep ratio were "
        "the memory; it is less where prune_after bounds a long text's cache.",
    )


def _share(row: TableRow, rows: TableRows) -> float:
    """A mean over texts, over the mean over the same texts at the highest keep ratio, which is 1 where it was run."""
    return row["mean_cache"] / max(rows, key=lambda each: each["keep_ratio"])["mean_cache"]


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _often(row: TableRow) -> float:
    return 1000 * row["evictions_per_layer"] / row["scored_tokens"]


def _curves_of(tables: Mapping[str, Table]) -> list[Curve]:
    """Compressed rows; texts that have the same cache and evictions (they are of one length) share a curve."""
    curves: dict[tuple[Point, ...], list[str]] = {}
    for text, table in tables.items():
        points = tuple(
            (row["keep_ratio"], round(_share(row, table.rows), 2), round(_often(row)))
            for row in table.rows
            if row["keep_ratio"] < 1
        )
        curves.setdefault(points, []).append(text)
    return [(", ".join(texts), points) for points, texts in curves.items()]


def _plot_mean(ax: Axes, curves: Sequence[Curve]) -> None:
    ax.plot([1, 0], [1, 0], color=LIGHT["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
    _plot(ax, curves, 1)
    ax.set_ylim(0, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("share of the uncompressed")


def _plot_often(ax: Axes, curves: Sequence[Curve]) -> None:
    _plot(ax, curves, 2)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("evictions per 1,000 tokens")


def _plot(ax: Axes, curves: Sequence[Curve], which: int) -> None:
    for (colour, (marker, line)), (text, points) in zip(cycle(SERIES.items()), curves, strict=False):
        ax.plot(
            [point[0] for point in points],
            [point[which] for point in points],
            color=LIGHT[colour],
            marker=marker,
            linestyle=line,
            label=short(text, 45),
        )
    axes.keep_ratio_axis(ax, [1.0, *(point[0] for _, points in curves for point in points)])
    ax.figure.legend(loc="outside upper left")
