"""The report's trail: six stages, the fault that made each one's curve, and the check that notices it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from knorm_core.report.axes import keep_ratio_axis, log_limits, multiples_axis
from knorm_core.report.palette import LIGHT, SERIES
from knorm_core.report.section import Absent, Figure, Panel, Section, as_recorded, of_kind
from knorm_core.report.solved import solved_table
from knorm_core.report.svg import draw, plain, short
from knorm_core.report.words import keep, listed
from knorm_core.results.interval import per_cent
from knorm_core.results.records import Results, Table, TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def section(results: Results) -> Section:
    """One figure per model whose stages were run, and a table of what made each curve."""
    runs, stages = of_kind(results, "trail"), of_kind(results, "trail-stages")
    return Section(
        "trail",
        "The report's trail",
        "How did the report's numbers come about, stage by stage?",
        [_figure(f"trail-{index}", run) for index, run in enumerate(runs)],
        tables=[*solved_table(results),
                *(as_recorded(table, "Stages of the report: fault, the check that notices it, what was printed")
                  for table in stages[:1])],
        absent=[]
        if runs
        else [Absent("the report's stages", "tox", "pytest -m repro suites/experiments/test_trail.py")],
    )  # fmt: skip


def finding(rows: TableRows) -> str:
    """Which stages print one number whatever is kept, and what keep 0.9 does in the others."""
    flat, bent = [], []
    for stage in _stages(rows):
        own = [row for row in rows if row["stage"] == stage and row["keep_ratio"] < 1]
        number = plain(stage).partition(":")[0]
        if all(abs(row["ratio"] - 1) < 1e-9 for row in own):
            flat.append(number)
        else:
            worst = max(own, key=lambda row: row["ratio"])
            bent.append(f"{number} is worst at keep {keep(worst['keep_ratio'])} ({per_cent(worst['ratio'])})")
    sentences = []
    if flat:
        sentences.append(f"Stages {listed(flat)} print one perplexity at every keep ratio: nothing is evicted.")
    if bent:
        sentences.append(f"Of the others {listed(bent)}.")
    return " ".join(sentences)


def _stages(rows: TableRows) -> list[str]:
    return list(dict.fromkeys(row["stage"] for row in rows))


def _figure(name: str, run: Table) -> Figure:
    rows = run.rows
    panels = [
        Panel(
            f"Averaged over the {plain(column)}" if column.endswith("s") else f"On the {plain(column)}",
            draw(
                f"{name}-{index}",
                partial(_plot, rows=[row for row in rows if row["texts"] == column]),
                alt=f"Line chart of perplexity against keep ratio on {plain(column)}, a line per stage. "
                + listed(
                    f"{plain(row['stage'])}, keep {keep(row['keep_ratio'])}: {per_cent(row['ratio'])}"
                    for row in rows
                    if row["texts"] == column and row["keep_ratio"] < 1
                )
                + ".",
                height=3.6,
            ),
        )
        for index, column in enumerate(dict.fromkeys(row["texts"] for row in rows))
    ]
    return Figure(
        f"The six stages on {run.model}",
        finding(rows),
        panels,
        as_recorded(run, f"The report's stages on {run.model}"),
        note="Perplexity against what the same stage prints at keep 1.0. Stages 2 and 3 lie on one line: the order of "
        "survivors changes nothing.",
    )


def _plot(ax: Axes, rows: TableRows) -> None:
    multiples_axis(ax, log_limits(row["ratio"] for row in rows), "PPL, × keep 1.0 of the stage")
    for index, stage in enumerate(_stages(rows)):
        own = [row for row in rows if row["stage"] == stage]
        colour = tuple(SERIES)[index % len(SERIES)]
        marker, line = SERIES[colour]
        ax.plot(
            [row["keep_ratio"] for row in own],
            [row["ratio"] for row in own],
            color=LIGHT[colour],
            marker=marker,
            linestyle=line,
            fillstyle="full" if index < len(SERIES) else "none",
            markersize=8 - index,
            label=short(stage, 24),
        )
    keep_ratio_axis(ax, sorted({row["keep_ratio"] for row in rows}))
    ax.figure.legend(loc="outside upper left", ncols=2, handletextpad=0.4, columnspacing=1)
