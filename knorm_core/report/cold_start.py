"""The cold-start experiment: could a cold baseline alone make the fall of the time to first token that is claimed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from knorm_core.report import axes, claimed
from knorm_core.report.named import Named, named
from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Figure, Panel, merged
from knorm_core.report.svg import draw, plain, short
from knorm_core.report.words import change, keep, listed, multiple, number
from knorm_core.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
WHOLE = "whole first call"


def figures(results: Results) -> list[Figure]:
    """One figure per model of which both tables are there."""
    first = {one.model: one for one in named(results, "first-call")}
    claims = claimed.by_keep_ratio(results.verdicts, "ttft")
    return [
        _figure(f"cold-{index}", one, first[one.model], claims)
        for index, one in enumerate(named(results, "cold-start"))
        if one.model in first
    ]


def finding(first_call: Row, rows: Sequence[Row], claims: Mapping[float, float]) -> str:
    """What a cold baseline alone makes, beside what is claimed and what honest timers show."""
    cold = first_call["seconds_ratio"]
    takes = multiple(cold, first_call["seconds_ratio_low"], first_call["seconds_ratio_high"])
    alone = change(1 / cold)
    best = min(row["warm_ttft_ratio"] for row in rows if row["keep_ratio"] < 1)
    text = f"A cold first call takes {takes} a warm one: a cold baseline alone makes {alone}"
    if claims:
        smallest = 1 + max(claims.values()) / 100
        told = "which is as much as the" if 1 / cold <= smallest else "not the"
        text += f", {told} {change(smallest)} claimed"
    return f"{text}; with honest timers the best keep ratio has {change(best)}."


def _figure(name: str, one: Named, first: Named, claims: Mapping[float, float]) -> Figure:
    rows = [row for row in one.table.rows if row["keep_ratio"] < 1]
    calls = first.table.rows
    whole = next(row for row in calls if row["what"] == WHOLE)
    series: dict[str, list[tuple[float, float | None, float | None]]] = {
        label: [(row[f"{way}_ttft_ratio"], row[f"{way}_ttft_ratio_low"], row[f"{way}_ttft_ratio_high"]) for row in rows]
        for label, way in (("honest timers", "warm"), ("cold baseline", "cold"))
    }
    theirs = [(1 + claims[row["keep_ratio"]] / 100 if row["keep_ratio"] in claims else None) for row in rows]
    told = listed(
        f"{label} {multiple(*values[at])} at keep {keep(row['keep_ratio'])}"
        for at, row in enumerate(rows)
        for label, values in series.items()
    )
    times = listed(f"{plain(row['what'])} {number(round(row['seconds'], 3))} s" for row in calls)
    return Figure(
        f"{one.model}: could a cold start have made it?",
        finding(whole, rows, claims),
        [
            Panel(
                "Time to first token, multiple of keep 1.0",
                draw(
                    f"{name}-ttft",
                    lambda ax: axes.forest(
                        ax, [f"keep {keep(row['keep_ratio'])}" for row in rows], series, "multiple of keep 1.0", theirs
                    ),
                    alt=f"Dot plot of the time to first token against keep 1.0, {one.model}: {told}.",
                    height=1.4 + 0.5 * len(rows),
                ),
            ),
            Panel(
                "A first call and what it is made of",
                draw(
                    f"{name}-parts",
                    partial(_plot_parts, calls=calls),
                    alt=f"Bars of seconds, {one.model}: {times}.",
                    height=1.2 + 0.45 * len(calls),
                ),
            ),
        ],
        merged(f"Cold start, {one.model}", "table", [("by keep ratio", one.table), ("first call", first.table)]),
        note="Grey diamonds: what the report claims. Cold baseline: fresh process, keep 1.0 first, once.",
    )


def _plot_parts(ax: Axes, calls: Sequence[Row]) -> None:
    for at, row in enumerate(calls):
        inside = bool(row["inside"])
        ax.barh(
            at,
            row["seconds"],
            height=0.62,
            color=LIGHT["blue"] if inside else LIGHT["paper"],
            edgecolor=LIGHT["blue"] if inside else LIGHT["muted"],
            hatch=None if inside else "////",
        )
        ax.annotate(
            f"{number(float(format(row['seconds'], '.2g')))} s",
            (row["seconds"], at),
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            fontsize=10,
        )
    ax.bar(0, 0, color=LIGHT["blue"], label="in the timer")
    ax.bar(0, 0, color=LIGHT["paper"], edgecolor=LIGHT["muted"], hatch="////", label="before it")
    ax.set_yticks(range(len(calls)), [_wrapped(row["what"]) for row in calls])
    ax.set_ylim(len(calls) - 0.4, -0.6)
    ax.set_xlim(0, 1.25 * max(row["seconds"] for row in calls))
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds, median over processes")
    ax.figure.legend(loc="outside upper left", ncols=2)


def _wrapped(text: object) -> str:
    from textwrap import fill

    return fill(short(text, 40), 17)
