"""The cold-start experiment: could a cold baseline alone make the fall of the time to first token that is claimed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from knorm_core.report import axes, claimed
from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Figure, Panel, as_recorded, of_kind
from knorm_core.report.svg import draw, plain, short
from knorm_core.report.words import keep, listed, number
from knorm_core.results.interval import Interval, per_cent
from knorm_core.results.records import Results, Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INSIDE: Any = {"facecolor": LIGHT["blue"], "edgecolor": LIGHT["blue"]}
_BEFORE: Any = {"facecolor": LIGHT["paper"], "edgecolor": LIGHT["muted"], "hatch": "////"}
WHOLE, WITH_START = "whole first call", "first call, imports and loading"


def figures(results: Results) -> list[Figure]:
    """Per model of which both tables are there: the claim beside two ways to measure, and the parts of a first call."""
    first = {table.model: table for table in of_kind(results, "first-call")}
    claims = claimed.by_keep_ratio(results.verdicts, "ttft")
    drawn = []
    for index, table in enumerate(of_kind(results, "cold-start")):
        if table.model in first:
            drawn += [
                _claim(f"cold-{index}", table, first[table.model], claims),
                _parts(f"first-{index}", first[table.model]),
            ]
    return drawn


def finding(first_call: TableRow, rows: Sequence[TableRow], claims: Mapping[float, float]) -> str:
    """What a cold baseline alone makes, beside what is claimed and what honest timers show."""
    cold = Interval.of(first_call, "seconds_ratio")
    best = min(row["warm_ttft_ratio"] for row in rows if row["keep_ratio"] < 1)
    text = f"A cold first call takes {cold.multiple} a warm one: a cold baseline alone makes {cold.inverse.change}"
    if claims:
        smallest = 1 + max(claims.values()) / 100
        as_much = "which is as much as the" if cold.inverse.value <= smallest else "not the"
        text += f", {as_much} {per_cent(smallest)} claimed"
    return f"{text}; with honest timers the best keep ratio has {per_cent(best)}."


def parts_finding(calls: Sequence[TableRow]) -> str:
    """How long a first call takes, how much longer than a warm one, and what comes before it."""
    whole = _whole(calls)
    more = whole["seconds"] * (1 - 1 / whole["seconds_ratio"])
    against = f"{_seconds(abs(more))} {'more' if more >= 0 else 'less'} than a warm one"
    before = sum(row["seconds"] for row in calls if not row["inside"] and row["what"] != WITH_START)
    return (
        f"A first call takes {_seconds(whole['seconds'])}, {against}; imports and loading of the model, which no timer "
        f"of a call sees, take {_seconds(before)}."
    )


def _claim(name: str, table: Table, first: Table, claims: Mapping[float, float]) -> Figure:
    rows = [row for row in table.rows if row["keep_ratio"] < 1]
    series = {
        label: [Interval.of(row, f"{way}_ttft_ratio") for row in rows]
        for label, way in (("honest timers", "warm"), ("cold baseline", "cold"))
    }
    theirs = [(1 + claims[row["keep_ratio"]] / 100 if row["keep_ratio"] in claims else None) for row in rows]
    times = listed(
        f"{label} {values[at].multiple} at keep {keep(row['keep_ratio'])}"
        for at, row in enumerate(rows)
        for label, values in series.items()
    )
    svg = draw(
        name,
        lambda ax: axes.forest(
            ax,
            [f"keep {keep(row['keep_ratio'])}" for row in rows],
            series,
            "time to first token, multiple of keep 1.0",
            theirs,
        ),
        alt=f"Dot plot of the time to first token against keep 1.0, {table.model}: {times}.",
        height=1.4 + 0.6 * len(rows),
    )
    return Figure(
        f"{table.model}: could a cold start have made it?",
        finding(_whole(first.rows), rows, claims),
        [Panel("", svg)],
        as_recorded(table, f"Cold and honest timers by keep ratio, {table.model}"),
        note="Grey diamonds: what the report claims. Cold baseline: fresh process, keep 1.0 first, once.",
    )


def _parts(name: str, first: Table) -> Figure:
    calls = first.rows
    times = listed(f"{plain(row['what'])} {_seconds(row['seconds'])}" for row in calls)
    svg = draw(
        name,
        partial(_plot_parts, calls=calls),
        alt=f"Bars of seconds, {first.model}: {times}.",
        height=1.2 + 0.45 * len(calls),
    )
    return Figure(
        f"{first.model}: what a first call is made of",
        parts_finding(calls),
        [Panel("", svg)],
        as_recorded(first, f"A first call and its parts, {first.model}"),
        note="Parts are timed in processes of their own. Hatched: before the call.",
    )


def _whole(calls: Sequence[TableRow]) -> TableRow:
    return next(row for row in calls if row["what"] == WHOLE)


def _seconds(value: float) -> str:
    return f"{number(float(f'{value:.2g}'))} s"


def _plot_parts(ax: Axes, calls: Sequence[TableRow]) -> None:
    from matplotlib.patches import Patch

    for at, row in enumerate(calls):
        ax.barh(at, row["seconds"], height=0.62, **(_INSIDE if row["inside"] else _BEFORE))
        ax.annotate(
            _seconds(row["seconds"]),
            (max(0, row["seconds"]), at),
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            fontsize=10,
        )
    ax.set_yticks(range(len(calls)), [_wrapped(row["what"]) for row in calls])
    ax.set_ylim(len(calls) - 0.4, -0.6)
    # What only a first call takes is a difference of two times, so noise can make it negative.
    ax.set_xlim(1.05 * min(0, *(row["seconds"] for row in calls)), 1.25 * max(row["seconds"] for row in calls))
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds, median over processes")
    handles = [Patch(**_INSIDE, label="in the timer"), Patch(**_BEFORE, label="before it")]
    ax.figure.legend(handles=handles, loc="outside upper left", ncols=2)


def _wrapped(text: object) -> str:
    from textwrap import fill

    return fill(short(text, 40), 17)
