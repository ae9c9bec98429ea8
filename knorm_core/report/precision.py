"""Precision: how far float32 and bfloat16 move perplexity, and how often they evict other keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.svg import draw, plain, short
from knorm_core.report.words import keep, listed, number
from knorm_core.results.records import Results, Table, TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = tuple(SERIES)
_POLICIES = {"low_norm": "norms rounded", "low_norm_exact": "norms as they are"}


def section(results: Results) -> Section:
    """One figure per text set that was evaluated in several precisions."""
    dtypes, exact = of_kind(results, "precision-dtypes"), of_kind(results, "precision")
    return Section(
        "precision",
        "Precision",
        "What do float32 and bfloat16 change, and which tolerance can a continuous integration hold?",
        [_figure(f"precision-{index}", table) for index, table in enumerate(dtypes)],
        tables=[as_recorded(table, f"Perplexity in float64, {table.where}") for table in exact],
        absent=[]
        if dtypes
        else [Absent("float32 and bfloat16", "tox", "pytest -m repro suites/experiments/test_precision.py")],
    )


def finding(rows: TableRows) -> str:
    """Per precision, the largest change of perplexity and the largest share of evictions that chose otherwise."""
    parts: list[str] = []
    for dtype in _others(rows):
        own = [row for row in rows if row["dtype"] == dtype]
        shift, differ = (_per_cent(max(abs(row[column]) for row in own)) for column in ("shift", "differ"))
        first = (
            f"{plain(dtype)} moves perplexity by at most {shift} and evicts other keys in up to {differ} of evictions"
        )
        parts.append(f"{plain(dtype)} by {shift} and in {differ}" if parts else first)
    return f"Against float64, {'; '.join(parts)}." if parts else "Only float64 was measured."


def _others(rows: TableRows) -> list[str]:
    return [dtype for dtype in dict.fromkeys(row["dtype"] for row in rows) if dtype != "float64"]


def _per_cent(share: float) -> str:
    return f"{number(float(f'{100 * share:.2g}'))} %"


def _figure(name: str, table: Table) -> Figure:
    rows = [row for row in table.rows if row["dtype"] != "float64"]
    tokens = table.settings.get("tokens")
    compressed = [row for row in rows if row["keep_ratio"] < 1]
    columns = [
        ("shift", rows, "change of perplexity, %", "How far perplexity moves"),
        ("differ", compressed, "evictions that chose other keys, %", "How often other keys go"),
    ]
    panels = [
        Panel(
            title,
            draw(
                f"{name}-{column}",
                partial(_plot, rows=own, column=column, label=label),
                alt=f"Dot plot: {label}, {table.where}. "
                + listed(f"{plain(row['dtype'])}, {plain(_line(row))}: {_per_cent(abs(row[column]))}" for row in own)
                + ".",
                height=1.2 + 0.38 * len({_line(row) for row in own}),
            ),
        )
        for column, own, label, title in columns
        if own
    ]
    return Figure(
        f"{table.where}{f', {tokens} tokens' if tokens else ''}",
        finding(table.rows),
        panels,
        as_recorded(table, f"Precisions, {table.where}"),
        note="Logarithmic axes; what is nothing at all stands at the left edge.",
    )


def _line(row: Mapping[str, Any]) -> str:
    if row["keep_ratio"] == 1:
        return "keep 1.0"
    return f"keep {keep(row['keep_ratio'])},\n{_POLICIES.get(row['policy'], short(row['policy'], 20))}"


def _plot(ax: Axes, rows: TableRows, column: str, label: str) -> None:
    lines = list(dict.fromkeys(_line(row) for row in rows))
    shares = [100 * abs(row[column]) for row in rows]
    smallest = min((value for value in shares if value > 0), default=1e-3)
    ax.set_xscale("log")
    for colour, dtype in zip(_COLOURS, _others(rows), strict=False):
        own = [row for row in rows if row["dtype"] == dtype]
        # Nothing at all is drawn at the left end: a logarithmic axis has no zero.
        at = [max(100 * abs(row[column]), smallest / 3) for row in own]
        ax.plot(
            at,
            [lines.index(_line(row)) for row in own],
            linestyle="",
            marker=SERIES[colour][0],
            color=LIGHT[colour],
            label=short(dtype, 12),
        )
    ax.set_xlim(smallest / 4, max([*shares, smallest]) * 2)
    ax.set_yticks(range(len(lines)), lines)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(label)
    ax.figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
