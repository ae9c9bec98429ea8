"""Latency of the machine that it was measured on: what compression costs and buys along the context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from knorm_core.report import axes, cold_start
from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.svg import draw
from knorm_core.report.words import keep, listed, number
from knorm_core.results.interval import Interval
from knorm_core.results.records import Results, Table, TableRow, TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEBIBYTE = 2**20
_REPORTED = (
    "How the report timed, beside timers that treat all rows alike: a time to first token over the plain loop's, and "
    "over a tenth of the whole generation, which is what its baseline was; a throughput over that of model.generate, "
    "and over that of the loop in the row above"
)


def section(results: Results) -> Section:
    """Per model: gains along the context, honest times at a short one, and the cold-start experiment."""
    along, short = of_kind(results, "contexts"), of_kind(results, "ttft")
    cold = cold_start.figures(results)
    figures = [_contexts(f"contexts-{index}", table) for index, table in enumerate(along)]
    figures += [_short(f"ttft-{index}", table) for index, table in enumerate(short)]
    absent = [
        Absent(what, "tox -e latency")
        for what, tables in (("times of this machine", [*along, *short]), ("the cold-start experiment", cold))
        if not tables
    ]
    return Section(
        "latency",
        "Latency and cold start",
        "What does compression cost and buy in time, and how did the report come by its −88 % of time to first token?",
        [*figures, *cold],
        tables=[as_recorded(table, _REPORTED) for table in of_kind(results, "reported-timers.*")],
        absent=absent,
    )


def contexts_finding(rows: TableRows) -> str:
    """Whether the lowest keep ratio decodes faster at the longest context, and with how much cache."""
    longest = max(row["context"] for row in rows)
    there = {row["keep_ratio"]: row for row in rows if row["context"] == longest}
    lowest = there[min(there)]
    speed = _speed(lowest)
    if not math.isfinite(speed.high):
        how = f"at {speed.multiple} the speed of keep 1.0, without an interval,"
    elif speed.excludes_no_change:
        how = f"{'faster' if speed.value > 1 else 'slower'} than keep 1.0, {speed.multiple}"
    else:
        how = f"neither faster nor slower than keep 1.0 beyond the interval, {speed.multiple}"
    held = [number(round(_held(each), 1)) for each in (lowest, there[max(there)])]
    return (
        f"At {longest:,} tokens of context keep {keep(lowest['keep_ratio'])} decodes {how}, with {held[0]} in place of "
        f"{held[1]} MiB of cache."
    )


def short_finding(rows: TableRows) -> str:
    """What the mildest compression does to the time to first token and to throughput."""
    row = max((row for row in rows if row["keep_ratio"] < 1), key=lambda row: row["keep_ratio"])
    ttft, speed = (Interval.of(row, f"{what}_ratio").multiple for what in ("ttft_seconds", "tokens_per_second"))
    return (
        f"With honest timers keep {keep(row['keep_ratio'])} takes {ttft} the time to first token of keep 1.0, and "
        f"decodes at {speed} its speed."
    )


def circumstances(table: Table) -> str:
    """Machine and precision in a sentence, and a warning where it was busy."""
    environment = table.made_from.get("environment")
    sentences = ""
    if isinstance(environment, Mapping):
        sentences = f"{environment.get('cpu')}, {environment.get('dtype')}, threads: {environment.get('threads')}. "
    if table.made_from.get("busy"):
        sentences += "The machine was busy with other processes: read these times with care. "
    return sentences


def _contexts(name: str, table: Table) -> Figure:
    rows = table.rows
    speed = "Decoding speed, multiple of keep 1.0"
    held = "Cache once the prompt is compressed, MiB"
    return Figure(
        f"{table.model}, {table.settings.get('new_tokens')} tokens decoded",
        contexts_finding(rows),
        [
            Panel(
                speed,
                draw(
                    f"{name}-speed",
                    partial(_plot_speed, rows=rows),
                    alt=_alt(speed, rows, _estimate),
                    height=3.4,
                ),
            ),
            Panel(held, draw(f"{name}-held", partial(_plot_held, rows=rows), alt=_alt(held, rows, _held), height=3.4)),
        ],
        as_recorded(table, f"Latency by context, {table.model}"),
        note=f"{circumstances(table)}Bars: 95 % interval of paired ratios.",
    )


def _speed(row: TableRow) -> Interval:
    return Interval.of(row, "tokens_per_second_ratio")


def _estimate(row: TableRow) -> float:
    return _speed(row).value


def _held(row: TableRow) -> float:
    return row["cache_bytes_after_prefill"] / MEBIBYTE


def _alt(what: str, rows: TableRows, value: Any) -> str:
    lines = [
        f"keep {keep(ratio)}: "
        + listed(f"{number(round(value(row), 2))} at {row['context']:,}" for row in rows if row["keep_ratio"] == ratio)
        for ratio in _ratios(rows)
    ]
    return f"{what}, against tokens of context. {'; '.join(lines)}."


def _ratios(rows: TableRows) -> list[float]:
    return sorted({row["keep_ratio"] for row in rows}, reverse=True)


def _plot_speed(ax: Axes, rows: TableRows) -> None:
    ratios = [ratio for ratio in _ratios(rows) if ratio < 1]
    drawn: list[float | None] = []
    for at, (ratio, colour) in enumerate(zip(ratios, SERIES, strict=False)):
        own = [row for row in rows if row["keep_ratio"] == ratio]
        shift = 1 + 0.05 * (at - (len(ratios) - 1) / 2)  # side by side, so that bars do not hide each other
        points = [(row["context"] * shift, _speed(row)) for row in own]
        axes.with_intervals(ax, points, colour, label=f"keep {keep(ratio)}")
        drawn += [end for _, speed in points for end in (speed.value, speed.low, speed.high)]
    _context_axis(ax, rows)
    axes.multiples_axis(ax, axes.log_limits(drawn), "tokens per second, multiple")
    ax.figure.legend(loc="outside upper left", ncols=4, columnspacing=1)


def _plot_held(ax: Axes, rows: TableRows) -> None:
    for ratio, colour in zip(_ratios(rows), ["muted", *SERIES], strict=False):
        own = [row for row in rows if row["keep_ratio"] == ratio]
        marker, line = SERIES.get(colour, ("x", "-"))
        ax.plot(
            [row["context"] for row in own],
            [_held(row) for row in own],
            color=LIGHT[colour],
            marker=marker,
            linestyle=line,
            label=f"keep {keep(ratio)}",
        )
    _context_axis(ax, rows)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_locator(axes.fixed([]))
    ax.set_ylabel("cache, MiB")
    ax.figure.legend(loc="outside upper left", ncols=4, columnspacing=1)


def _context_axis(ax: Axes, rows: TableRows) -> None:
    contexts = sorted({row["context"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(axes.fixed([]))
    ax.set_xticks(contexts, [f"{context:,}" for context in contexts])
    ax.set_xlim(contexts[0] / 1.2, contexts[-1] * 1.2)
    ax.set_xlabel("context, tokens")


def _short(name: str, table: Table) -> Figure:
    rows = [row for row in table.rows if row["keep_ratio"] < 1]
    series = [("time to first token", "ttft_seconds"), ("tokens per second", "tokens_per_second")]
    lines = listed(
        f"{label} {Interval.of(row, f'{what}_ratio').multiple} at keep {keep(row['keep_ratio'])}"
        for row in rows
        for label, what in series
    )
    return Figure(
        f"{table.model}, prompt of {table.settings.get('prompt_tokens')} tokens",
        short_finding(rows),
        [
            Panel(
                "",
                draw(
                    name,
                    lambda ax: axes.forest(
                        ax,
                        [f"keep {keep(row['keep_ratio'])}" for row in rows],
                        {label: [Interval.of(row, f"{what}_ratio") for row in rows] for label, what in series},
                        "multiple of keep 1.0",
                    ),
                    alt=f"Dot plot, multiples of keep 1.0, {table.model}: {lines}.",
                    height=1.4 + 0.45 * len(rows),
                ),
            )
        ],
        as_recorded(table, f"Times, throughput and cache at a short context, {table.model}"),
        note=f"{circumstances(table)}Bars: 95 % interval of paired ratios.",
    )
