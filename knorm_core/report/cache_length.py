"""The cache's length: the sawtooth between evictions, and what a keep ratio leaves on average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from knorm_core.report import axes, sawtooth
from knorm_core.report.named import Named, named
from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, merged, shown
from knorm_core.report.svg import draw, short
from knorm_core.report.words import keep, listed, number
from knorm_core.results.records import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Rows = Sequence[Row]


def section(results: Results) -> Section:
    """A figure of memory and evictions per model, the sawtooth per trace."""
    models: dict[str, list[Named]] = {}
    for one in named(results, "ppl-(absolute|cache)"):  # the same in both modes
        if not any(one.text_set == other.text_set for other in models.get(one.model, [])):
            models.setdefault(one.model, []).append(one)
    traces = sawtooth.figures(results)
    memory = [_memory(f"memory-{index}", *one) for index, one in enumerate(models.items())]
    return Section(
        "cache-length",
        "Cache length and evictions",
        "Did compression fire, and how much memory does a keep ratio really save?",
        [*traces, *memory],
        tables=[shown(one.table, f"The report's faults: did it fire, {one.where}") for one in named(results, "faults")],
        absent=[
            Absent(what, "tox", "pytest -m repro suites/reproduction")
            for what, found in (("the cache's length step by step", traces), ("mean caches and evictions", memory))
            if not found
        ],
    )


def memory_finding(tables: Sequence[tuple[str, Rows]]) -> str:
    """What the lowest keep ratio leaves on average, against what its name says; and where every row peaks."""
    name, rows = tables[0]
    compressed = [row for row in rows if row["keep_ratio"] < 1]
    if not compressed:
        return "Nothing was compressed."
    if not any(row["evictions_per_layer"] for row in compressed):
        return f"Compression never fired on {name}: these rows compare nothing with nothing."
    lowest = min(compressed, key=lambda row: row["keep_ratio"])
    share = f"{_mean(lowest):.0%}".replace("%", " %")
    peaks = {row["peak_cache"] for row in compressed}
    peak = f"every keep ratio peaks at {number(peaks.pop())} entries" if len(peaks) == 1 else "peaks differ"
    return (
        f"The keep ratio is not the memory left: on {name} keep {keep(lowest['keep_ratio'])} holds {share} of its "
        f"peak on average, and {peak}."
    )


def _memory(name: str, model: str, found: Sequence[Named]) -> Figure:
    curves = _curves_of([(one.text_set, one.table.rows) for one in found])

    def alt(what: str, value: Callable[[Row], float]) -> str:
        told = [
            f"{text}: " + listed(f"{number(round(value(row), 3))} at {keep(row['keep_ratio'])}" for row in rows)
            for text, rows in curves
        ]
        return f"{what} against keep ratio, {model}. {'; '.join(told)}."

    mean, often = "Mean cache as a share of its peak", "Evictions per layer and 1,000 scored tokens"
    return Figure(
        model,
        memory_finding([(one.text_set, one.table.rows) for one in found]),
        [
            Panel(mean, draw(f"{name}-mean", lambda ax: _plot_mean(ax, curves), alt=alt(mean, _mean), height=3.6)),
            Panel(often, draw(f"{name}-often", lambda ax: _plot_often(ax, curves), alt=alt(often, _often), height=3.6)),
        ],
        merged(f"Cache and evictions by keep ratio, {model}", "texts", [(one.text_set, one.table) for one in found]),
        note="Dashed, grey: what would be left if the keep ratio were the memory.",
    )


def _mean(row: Row) -> float:
    return row["mean_cache"] / row["peak_cache"]


def _often(row: Row) -> float:
    return 1000 * row["evictions_per_layer"] / row["scored_tokens"]


def _curves_of(tables: Sequence[tuple[str, Rows]]) -> list[tuple[str, Rows]]:
    """Compressed rows; texts that have the same cache and evictions (they are of one length) share a curve."""
    curves: dict[tuple[tuple[float, ...], ...], tuple[list[str], Rows]] = {}
    for text, rows in tables:
        compressed = [row for row in rows if row["keep_ratio"] < 1]
        drawn = tuple((row["keep_ratio"], round(_mean(row), 2), round(_often(row))) for row in compressed)
        curves.setdefault(drawn, ([], compressed))[0].append(text)
    return [(", ".join(texts), rows) for texts, rows in curves.values()]


def _plot_mean(ax: Axes, curves: Sequence[tuple[str, Rows]]) -> None:
    ax.plot([1, 0], [1, 0], color=LIGHT["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
    _plot(ax, curves, _mean)
    ax.set_ylim(0, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("share of the peak")


def _plot_often(ax: Axes, curves: Sequence[tuple[str, Rows]]) -> None:
    _plot(ax, curves, _often)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("evictions per 1,000 tokens")


def _plot(ax: Axes, curves: Sequence[tuple[str, Rows]], value: Callable[[Row], float]) -> None:
    for (colour, (marker, line)), (text, rows) in zip(cycle(SERIES.items()), curves, strict=False):
        ax.plot(
            [row["keep_ratio"] for row in rows],
            [value(row) for row in rows],
            color=LIGHT[colour],
            marker=marker,
            linestyle=line,
            label=short(text, 45),
        )
    axes.keep_ratio_axis(ax, [1.0, *(row["keep_ratio"] for _, rows in curves for row in rows)])
    ax.figure.legend(loc="outside upper left")
