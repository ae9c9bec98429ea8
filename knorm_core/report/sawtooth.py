"""The cache's length step by step: it grows by one a token and falls at every eviction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from knorm_core.report.palette import LIGHT
from knorm_core.report.section import Figure, Panel, as_recorded, of_kind
from knorm_core.report.svg import draw
from knorm_core.report.words import counted, keep, listed
from knorm_core.results.records import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Corners = Sequence[tuple[int, int]]  # (step, cache length) wherever the line changes direction
MOST_PANELS = 3


def figures(results: Results) -> list[Figure]:
    """One per trace, of the highest, the middle and the lowest keep ratio below 1."""
    return [_figure(f"trace-{index}", table) for index, table in enumerate(of_kind(results, "cache-trace"))]


def traces(table: Table) -> dict[float, Corners]:
    """Keep ratio, falling -> its corners, from the first token on."""
    corners: dict[float, list[tuple[int, int]]] = {}
    for row in table.rows:
        corners.setdefault(row["keep_ratio"], []).append((row["step"], row["cache_length"]))
    return {ratio: sorted(corners[ratio]) for ratio in sorted(corners, reverse=True)}


def evictions(corners: Corners) -> int:
    """How often the line falls."""
    return sum(after < before for (_, before), (_, after) in pairwise(corners))


def finding(by_ratio: dict[float, Corners]) -> str:
    """How often the mildest and the harshest keep ratio evict, and where the cache peaks."""
    compressed = {ratio: corners for ratio, corners in by_ratio.items() if ratio < 1}
    if not compressed:
        return "Nothing was compressed here."
    tokens = max(step for corners in by_ratio.values() for step, _ in corners) + 1
    counts = []
    for ratio in dict.fromkeys((max(compressed), min(compressed))):
        count = evictions(compressed[ratio])
        counts.append(f"keep {keep(ratio)} {f'evicts {_times(count)}' if count else 'never evicts'}")
    peaks = sorted({max(length for _, length in corners) for corners in compressed.values()})
    peak = f"{peaks[0]:,}" if len(peaks) == 1 else f"{peaks[0]:,} to {peaks[-1]:,}"
    return f"Over {counted(tokens, 'token')} {listed(counts)}, and the cache peaks at {peak} entries."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _figure(name: str, table: Table) -> Figure:
    by_ratio = traces(table)
    ratios = [ratio for ratio in by_ratio if ratio < 1]
    if len(ratios) > MOST_PANELS:
        ratios = [ratios[0], ratios[len(ratios) // 2], ratios[-1]]
    highest = max((length for ratio in ratios for _, length in by_ratio[ratio]), default=1)
    panels = [
        Panel(
            f"Keep {keep(ratio)}",
            draw(
                f"{name}-{index}",
                partial(_plot, corners=by_ratio[ratio], highest=highest),
                alt=f"Line chart of cache length against token, {table.where}, keep {keep(ratio)}: it grows to "
                f"{max(length for _, length in by_ratio[ratio])} entries and falls "
                f"{_times(evictions(by_ratio[ratio]))}.",
                height=2.1,
            ),
        )
        for index, ratio in enumerate(ratios)
    ]
    return Figure(
        f"{table.where}, first text",
        finding(by_ratio),
        panels,
        as_recorded(table, f"Corners of the cache length, {table.where}"),
        note="Entries per layer and KV head. Grey: as many entries as tokens, which is keep 1.0.",
    )


def _plot(ax: Axes, corners: Corners, highest: int) -> None:
    steps, lengths = [step for step, _ in corners], [length for _, length in corners]
    ax.plot([0, 1.15 * highest], [0, 1.15 * highest], color=LIGHT["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
    ax.fill_between(steps, lengths, color=LIGHT["blue"], alpha=0.15, linewidth=0)
    ax.plot(steps, lengths, color=LIGHT["blue"], linewidth=1.4)
    ax.set_xlim(0, steps[-1] * 1.02)
    ax.set_ylim(0, 1.15 * highest)
    ax.set_xlabel("token")
    ax.set_ylabel("cache, entries")
