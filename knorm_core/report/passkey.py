"""Pass keys: is what was said long ago still found, by context and keep ratio?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Absent, Figure, Panel, Section, merged, of_kind
from knorm_core.report.svg import draw, short
from knorm_core.report.words import keep, listed
from knorm_core.results.records import Results, Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Way = tuple[float, str]  # keep ratio, layers left alone


def section(results: Results) -> Section:
    """One grid per model: contexts down, ways to compress across."""
    models: dict[str, list[Table]] = {}
    for table in of_kind(results, r"(passkey|needle)-.*"):
        models.setdefault(table.model, []).append(table)
    long_form = any("depth" in table.kind for tables in models.values() for table in tables)
    absent = [] if models else [Absent("pass keys", "tox", "pytest -m repro suites/experiments/test_retrieval.py")]
    if not long_form:
        absent.append(Absent("50 pass keys in each of 20 cells of context and depth", "tox -e slow"))
    return Section(
        "passkey",
        "Pass keys",
        "Is a number that was hidden in a long text still found once the text's keys have been compressed?",
        [_figure(f"passkey-{index}", *each) for index, each in enumerate(models.items())],
        absent=absent,
    )


def finding(tables: Sequence[tuple[str, Sequence[TableRow]]]) -> str:
    """How many pass keys are found at each keep ratio; ``tables`` are (what, rows)."""
    once: dict[float, list[TableRow]] = {}
    always: dict[float, list[TableRow]] = {}
    for what, rows in tables:
        for row in rows:
            if what.startswith("passkey") and not _alone(row) and row["keep_ratio"] < 1:
                kind = always if row["when"] == "every_step" else once
                kind.setdefault(row["keep_ratio"], []).append(row)
    sentences = [
        f"compressed {how}, {_counts(by_ratio)}"
        for how, by_ratio in (("once after the prompt", once), ("at every step", always))
        if by_ratio
    ]
    text = "; ".join(sentences) or "no pass key was sought under compression"
    return f"{text[0].upper()}{text[1:]}."


def _counts(by_ratio: Mapping[float, list[TableRow]]) -> str:
    """``20 of 25 are found at keep 0.9, 5 at 0.7 and none at 0.5 and 0.1``: neighbours of one count together."""
    counted: list[tuple[tuple[int, int], list[float]]] = []
    for ratio, rows in sorted(by_ratio.items(), reverse=True):
        count = sum(row["matches"] for row in rows), sum(row["of"] for row in rows)
        if not counted or counted[-1][0] != count:
            counted.append((count, []))
        counted[-1][1].append(ratio)
    parts, before = [], 0
    for (matches, of), ratios in counted:
        count_ = f"{matches or 'none'}{f' of {of}' if of != before else ''}"
        parts.append(
            f"{count_} {'' if before else 'are found '}at {'' if before else 'keep '}{listed(map(keep, ratios))}"
        )
        before = of
    return ", ".join(parts)


def _alone(row: TableRow) -> str:
    """The layers left alone, as text, empty for none; read from lists and from their text alike."""
    return short(str(row.get("skip_layers", "")).strip("()[] ,"), 12)


def _figure(name: str, model: str, recorded: Sequence[Table]) -> Figure:
    recorded = sorted(recorded, key=_order)
    tables = [(table.kind, table.rows) for table in recorded]
    ways = sorted({_way(row) for _, rows in tables for row in rows}, key=lambda way: (bool(way[1]), -way[0], way[1]))
    cells = {(what, _way(row)): row for what, rows in tables for row in rows}
    lines = [what for what, _ in tables]
    alt = f"Grid of exact matches, {model}. " + " ".join(
        f"{_line(what)}: {listed(_matches(row) for row in rows)}." for what, rows in tables
    )
    svg = draw(
        name, lambda ax: _plot(ax, lines, ways, cells), alt=alt.replace("\n", " "), height=1.1 + 0.42 * len(lines)
    )
    return Figure(
        f"{model}: exact matches, of how many prompts",
        finding(tables),
        [Panel("", svg)],
        merged(f"Exact matches, {model}", "task and context", [(_line(table.kind), table) for table in recorded]),
        note="The more colour, the more found. Contexts are in tokens. In brackets: layers left alone, as the paper "
        "leaves 0 and 1.",
    )


def _order(table: Table) -> tuple[bool, list[float], str]:
    """Pass keys before needles, then by context and depth."""
    numbers = [float(digits) for digits in re.findall(r"[0-9]+(?:[.][0-9]+)?", table.kind)]
    return not table.kind.startswith("passkey"), numbers, table.kind


def _way(row: TableRow) -> Way:
    return row["keep_ratio"], _alone(row)


def _matches(row: TableRow) -> str:
    alone = f" with layers {_alone(row)} left alone" if _alone(row) else ""
    return f"{row['matches']} of {row['of']} at keep {keep(row['keep_ratio'])}{alone}"


def _line(what: str) -> str:
    return short(what.replace("-every-step", ", every step").replace("-", " "))


def _plot(ax: Axes, lines: Sequence[str], ways: Sequence[Way], cells: Mapping[tuple[str, Way], TableRow]) -> None:
    from matplotlib.patches import Rectangle

    for at, what in enumerate(lines):
        for across, way in enumerate(ways):
            row = cells.get((what, way))
            if row is None or not row["of"]:
                continue
            share = row["matches"] / row["of"]
            # The theme's blue: whole where all were found, else so pale that ink can be read on it.
            alpha = 1 if share == 1 else 0.06 + 0.44 * share
            ax.add_patch(Rectangle((across + 0.04, at + 0.05), 0.92, 0.9, facecolor=LIGHT["blue"], alpha=alpha, lw=0))
            colour = LIGHT["paper"] if share == 1 else LIGHT["ink"]
            text = f"{row['matches']}/{row['of']}"
            ax.text(across + 0.5, at + 0.5, text, ha="center", va="center", fontsize=9.5, color=colour)
    ax.set_xlim(0, len(ways))
    ax.set_ylim(len(lines), 0)
    ax.set_yticks([at + 0.5 for at in range(len(lines))], [_line(what).replace(", ", ",\n") for what in lines])
    ax.set_xticks(
        [across + 0.5 for across in range(len(ways))],
        [keep(ratio) + (f"\n({alone})" if alone else "") for ratio, alone in ways],
    )
    ax.set_xlabel("keep ratio")
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
