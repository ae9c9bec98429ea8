"""Norm against attention, head by head: do keys of low norm draw the attention of later tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.svg import draw
from knorm_core.report.words import counted, listed
from knorm_core.results.records import Results, Table, TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABSENT = Absent(
    "the correlation of norm and attention", "tox", "pytest -m repro suites/experiments/test_norm_attention.py"
)


def section(results: Results) -> Section:
    """A heat map of layers and heads per text set."""
    tables = of_kind(results, "norm-attention")
    return Section(
        "norm-attention",
        "Norm against attention",
        "Do keys of low norm draw high attention, in every layer and head?",
        [_figure(f"norm-{index}", table) for index, table in enumerate(tables)],
        absent=[] if tables else [_ABSENT],
    )


def finding(rows: TableRows) -> str:
    """In how many heads the correlation is negative, its mean, and the layers in which most heads disagree."""
    negative = [row["spearman"] < 0 for row in rows]
    against = [
        layer
        for layer in sorted({row["layer"] for row in rows})
        if fmean(row["spearman"] < 0 for row in rows if row["layer"] == layer) < 0.5
    ]
    where = f"; most heads disagree in {_layers(against)}" if against else "; in no layer do most heads disagree"
    return (
        f"Low norm goes with high attention in {sum(negative):,} of {counted(len(rows), 'head')} "
        f"(mean Spearman {_signed(fmean(row['spearman'] for row in rows))}){where}."
    )


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {listed(layers)}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _figure(name: str, table: Table) -> Figure:
    rows = table.rows
    tokens = table.settings.get("tokens")
    layers, heads = (max(row[what] for row in rows) + 1 for what in ("layer", "head"))
    height = min(8.0, 1.5 + 0.18 * heads)
    alt = (
        f"Heat map of {layers} layers and {heads} heads, {table.where}: rank correlation of a key's norm with the "
        "attention that it draws later. By layer, mean over heads: "
        + listed(
            f"{_signed(fmean(row['spearman'] for row in rows if row['layer'] == layer))} in {layer}"
            for layer in sorted({row["layer"] for row in rows})
        )
        + "."
    )
    return Figure(
        f"{table.where}{f', {tokens} tokens' if tokens else ''}",
        finding(rows),
        [Panel("", draw(name, lambda ax: _plot(ax, rows, layers, heads), alt=alt, height=height))],
        as_recorded(table, f"Norm against attention by head, {table.where}"),
        note="Purple: the lower the norm, the higher the attention, as the paper says. Orange, with a dot: the "
        "other way round.",
    )


def _plot(ax: Axes, rows: TableRows, layers: int, heads: int) -> None:
    import matplotlib

    grid: list[list[float]] = [[float("nan")] * layers for _ in range(heads)]
    for row in rows:
        grid[row["head"]][row["layer"]] = row["spearman"]
    # Twenty steps of 0.1: few enough that the colour bar is drawn, not an image.
    colours = matplotlib.colormaps["PuOr_r"].resampled(20)
    mesh = ax.pcolormesh(grid, cmap=colours, vmin=-1, vmax=1, edgecolors="face", linewidth=0.3)
    wrong = [(row["layer"] + 0.5, row["head"] + 0.5) for row in rows if row["spearman"] >= 0]
    ax.plot([x for x, _ in wrong], [y for _, y in wrong], linestyle="", marker=".", markersize=4, color="black")
    ax.set_ylim(heads, 0)
    ax.set_xlabel("layer")
    ax.set_ylabel("attention head")
    steps = max(1, round(layers / 10)), max(1, round(heads / 8))
    ax.set_xticks([at + 0.5 for at in range(0, layers, steps[0])], [str(at) for at in range(0, layers, steps[0])])
    ax.set_yticks([at + 0.5 for at in range(0, heads, steps[1])], [str(at) for at in range(0, heads, steps[1])])
    ax.grid(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(mesh, ax=ax, ticks=[-1, -0.5, 0, 0.5, 1], orientation="horizontal", aspect=35, pad=0.03)
    bar.ax.set_xticklabels(["−1", "−0.5", "0", "+0.5", "+1"])
    bar.set_label("rank correlation (Spearman) of norm and attention")
    bar.outline.set_visible(False)
