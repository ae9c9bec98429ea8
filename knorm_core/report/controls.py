"""Controls: is low norm better than chance, than the highest norms, than a window that looks at no key?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from knorm_core.report import axes
from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.svg import draw, short
from knorm_core.report.words import about, keep, listed
from knorm_core.results.interval import per_cent
from knorm_core.results.records import Results, Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POLICIES = {
    "low_norm": "low norm",
    "random": "random",
    "high_norm": "high norm",
    "newest": "most recent",
    "newest_4_sinks": "four sinks and most recent",
}
_COLOURS = tuple(SERIES)
# Tables beside the controls that have no figure of their own.
_FURTHER = {
    "breadth": "Low norm against what it must beat, on many texts",
    "breadth-further": "Further rows on many texts",
    "inversion": "Low norm at keep 0.9 against keep 0.5, with recent tokens protected",
    "inversion-further": "The same, with more numbers of recent tokens",
    "divergence": "Divergence from the uncompressed model (KL in nats)",
    "equal-memory": "Policies at equal mean and at equal peak cache",
    "position-modes": "True positions, positions from the cache length, and survivors rotated to the front",
    "layers-skipped": "With the first layers left alone",
    "layers-alone": "One layer compressed at a time",
}


def section(results: Results) -> Section:
    """A figure per text set, and the further experiments as tables."""
    tables = of_kind(results, "controls")
    return Section(
        "controls",
        "Controls",
        "Does the norm of a key tell which ones to keep, or would any other choice have done?",
        [_figure(f"controls-{index}", table) for index, table in enumerate(tables)],
        tables=[
            as_recorded(table, f"{title}: {table.where}")
            for what, title in _FURTHER.items()
            for table in of_kind(results, what)
        ],
        absent=[]
        if tables
        else [Absent("the controls in float64", "tox -e slow", "pytest -m slow suites/experiments/test_controls.py")],
    )


def finding(rows: Sequence[TableRow]) -> str:
    """At which keep ratios low norm has a lower perplexity than random, and than sinks with recent tokens."""
    ratios = sorted({row["keep_ratio"] for row in rows if row["keep_ratio"] < 1}, reverse=True)
    against = {}
    for policy in ("random", "newest_4_sinks"):
        pairs = [(ratio, _of(rows, "low_norm", ratio), _of(rows, policy, ratio)) for ratio in ratios]
        against[policy] = [
            (ratio, low["ppl"] < other["ppl"]) for ratio, low, other in pairs if low is not None and other is not None
        ]
    parts = [
        f"{_where(compared)} {phrase}"
        for policy, phrase in (
            ("random", "than random choice"),
            ("newest_4_sinks", "than four sinks and the most recent"),
        )
        if (compared := against[policy])
    ]
    return f"Low norm has the lower perplexity {', and '.join(parts)}." if parts else "Low norm has no control here."


def _where(compared: Sequence[tuple[float, bool]]) -> str:
    won = [keep(ratio) for ratio, better in compared if better]
    if len(won) == len(compared):
        return "at every keep ratio"
    return f"at keep {listed(won)}" if won else "at no keep ratio"


def _of(rows: Sequence[TableRow], policy: str, ratio: float, positions: str = "absolute") -> TableRow | None:
    """The policy's row; of a random policy the mean over its seeds."""
    for row in rows:
        if (row["policy"], row["keep_ratio"], row.get("positions", "absolute")) == (policy, ratio, positions) and (
            policy != "random" or row.get("seed") in ("mean", None)
        ):
            return row
    return None


def _figure(name: str, table: Table) -> Figure:
    rows = table.rows
    lines = [(policy, "absolute") for policy in dict.fromkeys(row["policy"] for row in rows)]
    lines.sort(key=lambda line: [*POLICIES].index(line[0]) if line[0] in POLICIES else len(POLICIES))
    lines += [("low_norm", "cache")] if any(row.get("positions") == "cache" for row in rows) else []
    ratios = sorted({row["keep_ratio"] for row in rows if row["keep_ratio"] < 1}, reverse=True)[: len(_COLOURS)]
    tokens = table.settings.get("tokens")
    height = 1.3 + 0.17 * len(lines) * (len(ratios) + 1)
    svg = draw(name, lambda ax: _plot(ax, rows, lines, ratios), alt=_alt(table, rows, lines, ratios), height=height)
    return Figure(
        f"{table.where}{f', {tokens} tokens' if tokens else ''}",
        finding(rows),
        [Panel("", svg)],
        as_recorded(table, f"Controls, {table.where}"),
        note="Bars: paired 95 % interval against keep 1.0. Small dots: single seeds of the random policy."
        + about(table.model, table.text_set),
    )


def _plot(ax: Axes, rows: Sequence[TableRow], lines: Sequence[tuple[str, str]], ratios: Sequence[float]) -> None:
    drawn = []
    for at, (policy, positions) in enumerate(lines):
        for step, ratio in enumerate(ratios):
            row, colour = _of(rows, policy, ratio, positions), _COLOURS[step]
            if row is None:
                continue
            y = at + (step - (len(ratios) - 1) / 2) * 0.24
            seeds = [
                other["ratio"]
                for other in rows
                if policy == "random" == other["policy"] and other["keep_ratio"] == ratio and other["seed"] != "mean"
            ]
            ax.plot(seeds, [y] * len(seeds), linestyle="", marker=".", markersize=4, color=LIGHT["muted"], zorder=2)
            low, high = (axes.finite(row.get(limit), row["ratio"]) for limit in ("ratio_low", "ratio_high"))
            ax.plot([low, high], [y, y], color=LIGHT[colour], linewidth=1.4, zorder=2.5)
            label = f"keep {keep(ratio)}" if at == 0 else None
            ax.plot(row["ratio"], y, linestyle="", marker=SERIES[colour][0], color=LIGHT[colour], label=label, zorder=3)
            drawn += [row["ratio"], low, high]
    ax.set_yticks(range(len(lines)), [_label(policy, positions) for policy, positions in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    axes.multiples_axis(ax, axes.log_limits(drawn), "perplexity, multiple of keep 1.0", axis="x")
    ax.figure.legend(loc="outside upper left", ncols=len(ratios), handletextpad=0.2, columnspacing=1.2)


def _label(policy: str, positions: str) -> str:
    name = POLICIES.get(policy, short(policy, 20))
    if positions == "cache":
        return f"{name},\npositions from\ncache length"
    return name.replace("sinks and ", "sinks and\n")


def _alt(table: Table, rows: Sequence[TableRow], lines: Sequence[tuple[str, str]], ratios: Sequence[float]) -> str:
    changes_by_line = []
    for policy, positions in lines:
        points = [(ratio, _of(rows, policy, ratio, positions)) for ratio in ratios]
        changes = listed(f"{per_cent(row['ratio'])} at keep {keep(ratio)}" for ratio, row in points if row is not None)
        changes_by_line.append(f"{_label(policy, positions)}: {changes}".replace("\n", " "))
    return f"Change of perplexity against keep 1.0, {table.where}. {'; '.join(changes_by_line)}."
