"""Policies against what they must beat: the sentence, per policy and keep ratio, and the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from knorm_core.report import axes
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.svg import draw
from knorm_core.report.words import about, keep, listed
from knorm_core.results.interval import Interval, per_cent
from knorm_core.results.records import ITSELF, Results, Table, TableRow

#: The controls that the sentence is about.
_BEATEN = {
    "newest": "keeping the first {sinks} tokens and the newest",
    "random": "keeping the first {sinks} and random ones",
}
_NUMBERS = {4: "four"}


def section(results: Results) -> Section:
    """A figure per policy and text set, with its sentences above."""
    tables = of_kind(results, "policy-.+")
    return Section(
        "policies",
        "Policies",
        "How much better is a policy than the first four tokens and the newest, or random ones, at equal memory?",
        [_figure(f"policies-{index}", table) for index, table in enumerate(tables)],
        absent=[]
        if tables
        else [
            Absent("policies beside their controls", "tox -e policies", "pytest -m repro --knorm-policy NAME suites"),
        ],
    )


def _figure(name: str, table: Table) -> Figure:
    rows = [row for row in table.rows if row["control"] != ITSELF]
    label = policy_of(table.kind)
    against = [Interval.of(row, "against") for row in rows]
    alt = f"Perplexity of {label} over that of each control, {table.where}: " + listed(
        f"{_line(row)} {interval}" for row, interval in zip(rows, against, strict=True)
    )
    drawing = draw(
        name,
        lambda ax: axes.forest(ax, [*map(_line, rows)], {label: against}, "perplexity, multiple of the control's"),
        alt=f"{alt}.",
        height=1.1 + 0.26 * len(rows),
    )
    return Figure(
        f"{label}, {table.where}",
        " ".join(sentences(label, table.rows)),
        [Panel("", drawing)],
        as_recorded(table, f"{label} beside its controls, {table.where}"),
        note="Bars: paired 95 % interval. Left of 1 the policy is better. All rows have the same protections and "
        "cache lengths." + about(table.model, table.text_set),
    )


def _line(row: TableRow) -> str:
    return f"{row['control']}, keep {keep(row['keep_ratio'])}"


def policy_of(kind: str) -> str:
    """The policy's label in a table's kind."""
    return kind.removeprefix("policy-")


def sentences(label: str, rows: Sequence[TableRow]) -> list[str]:
    """One sentence per keep ratio: perplexity against the two controls, with intervals.

    Args:
        label: of the policy.
        rows: as `knorm_core.experiments.policy_controls.table` makes them.
    """
    lines = []
    for own in (row for row in rows if row["control"] == ITSELF):
        parts = [
            _against(row)
            for control in _BEATEN
            for row in rows
            if (row["control"], row["keep_ratio"]) == (control, own["keep_ratio"])
        ]
        if parts:
            lines.append(
                f"{label} at keep {keep(own['keep_ratio'])}: {', and '.join(parts)}, "
                f"at equal memory ({own['mean_cache']:.0f} keys on average)."
            )
    return lines


def verdict(row: TableRow) -> str:
    """Whether the policy is better or worse than this control, or what would have to differ for that to show."""
    against = Interval.of(row, "against")
    if against.excludes_no_change:
        return "better" if against.value < 1 else "worse"
    detectable = row["detectable"]
    return "not told apart" + (f" (from {per_cent(detectable)} on it would be)" if math.isfinite(detectable) else "")


def _against(row: TableRow) -> str:
    sinks = _NUMBERS.get(row["sinks"], row["sinks"])
    beaten = _BEATEN[row["control"]].format(sinks=sinks)
    return f"perplexity {Interval.of(row, 'against')} against {beaten}: {verdict(row)}"
