"""Which evaluation printed the report's table? Every candidate is evaluated and compared with what was printed.

The report's final script is not public, so some of its choices are open (`OPEN`). Every combination of them is a
candidate. Some combinations are the same by definition, such as both position modes where layer 0 is left alone, so
that the answer is a class of combinations. Before the table is judged, anchors must come out: figures whose protocol
is known, so that they show whether model, rows and tokens are the report's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from knorm_core.experiments.report_bench import ReportBench
from knorm_core.experiments.report_figures import REPORT_FIGURES, Cell, Figures
from knorm_core.protocols import REPORT_PROTOCOL, ReportProtocol

#: What is open about the final table, and what each choice may be.
OPEN: Mapping[str, tuple[Any, ...]] = {
    "skip_layers": ((0,), (0, 1), ()),
    "positions": ("cache", "absolute"),
    "first_eviction_after": (1, 0),
    "baseline": ("whole", "phase2"),
    "baseline_tokens": (512, 1024),
    "book_characters": (2048, 4096),
}


class Noise(NamedTuple):
    """By what share float32 may move a perplexity against float64.

    It hangs on layer 0, not on positions: a token that comes twice has the same key norm there, and of equal exact
    norms the last bit decides which one stays.
    """

    layer_0_left_alone: float
    layer_0_compressed: float


#: By trial, on texts of the report's lengths.
NOISE = Noise(0.0015, 0.009)
ROUNDING = 0.005  # two decimals are printed


def combinations(
    protocol: ReportProtocol = REPORT_PROTOCOL, choices: Mapping[str, tuple[Any, ...]] = OPEN
) -> list[ReportProtocol]:
    """The protocol with every combination of the choices that are open."""
    return [
        dataclasses.replace(protocol, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]


def classes(bench: ReportBench, candidates: Iterable[ReportProtocol]) -> list[tuple[ReportProtocol, ...]]:
    """The combinations that cannot be told apart by definition, together."""
    together: dict[tuple[object, ...], list[ReportProtocol]] = {}
    for candidate in candidates:
        together.setdefault(bench.definition(candidate), []).append(candidate)
    return [tuple(members) for members in together.values()]


@dataclass(frozen=True)
class Judged:
    """A class of combinations, what it prints, and by how much that differs from what was printed."""

    members: tuple[ReportProtocol, ...]
    table: Mapping[Cell, float]
    off: Mapping[Cell, float]  # relative, signed
    within: Mapping[Cell, bool]  # rounding and noise

    @property
    def prints_all(self) -> bool:
        return all(self.within.values())

    @property
    def furthest(self) -> float:
        """The largest relative difference of a cell."""
        return max(map(abs, self.off.values()))


@dataclass(frozen=True)
class Identification:
    """What came of it: the anchors that were printed and measured, and every class, the nearest first."""

    anchors: Mapping[str, tuple[float, float]]
    whole_texts: frozenset[str]
    judged: Sequence[Judged]

    @property
    def failing(self) -> list[str]:
        """Anchors that do not come out."""
        return [
            name
            for name, (printed, measured) in self.anchors.items()
            if not _agree(printed, measured, NOISE.layer_0_left_alone)
        ]

    def sentence(self) -> str:
        """The answer in words."""
        first = [name for name in self.failing if name in self.whole_texts]
        if first:
            printed, measured = self.anchors[first[0]]
            return (
                f"{len(first)} of {len(self.whole_texts)} anchors of whole texts do not come out ({first[0]}: "
                f"{measured:.2f}, where {printed:.2f} was printed): model, rows or tokens are not the report's, so its "
                f"final table is not judged."
            )
        came_out = len(self.anchors) - len(self.failing)
        anchors = f"{came_out} of {len(self.anchors)} anchors come out"
        if self.failing:
            anchors += f" (not {'; '.join(self.failing)})"
        best, *others = self.judged
        printing = [candidate for candidate in self.judged if candidate.prints_all]
        if not printing:
            return (
                f"{anchors}. No combination prints all {len(best.table)} perplexities of the final table. Nearest, off "
                f"by up to {best.furthest:.1%} and within noise in {sum(best.within.values())} cells: "
                f"{described(best.members)}"
                + (f". Next, off by up to {others[0].furthest:.1%}: {described(others[0].members)}." if others else ".")
            )
        rest = [candidate for candidate in others if not candidate.prints_all]
        return (
            f"{anchors}. The final table is printed, all {len(best.table)} perplexities within rounding and noise, by: "
            + "; or by: ".join(described(candidate.members) for candidate in printing)
            + (f". Next, off by up to {rest[0].furthest:.1%}: {described(rest[0].members)}." if rest else ".")
        )


def identify(
    bench: ReportBench,
    printed: Figures | None = None,
    candidates: Iterable[ReportProtocol] | None = None,
    known: ReportProtocol = REPORT_PROTOCOL,
    noise: Noise = NOISE,
) -> Identification:
    """Evaluate every class of combinations and put them in the order of how near they come.

    Args:
        bench: model and texts.
        printed: figures to be explained; by default `REPORT_FIGURES`.
        candidates: by default every combination of `OPEN`.
        known: the protocol of the anchors.
        noise: beside rounding, what a perplexity may differ by.
    """
    printed = printed or REPORT_FIGURES
    measured = bench.figures(known).anchors()
    judged = [
        _judge(bench, members, printed.final, noise) for members in classes(bench, candidates or combinations(known))
    ]
    return Identification(
        {name: (ppl, measured[name]) for name, ppl in printed.anchors().items() if name in measured},
        frozenset(printed.whole_texts()),
        sorted(judged, key=lambda candidate: (not candidate.prints_all, candidate.furthest)),
    )


def _judge(
    bench: ReportBench, members: tuple[ReportProtocol, ...], printed: Mapping[Cell, float], noise: Noise
) -> Judged:
    table = bench.table(members[0])
    compressed = noise.layer_0_left_alone if 0 in members[0].skip_layers else noise.layer_0_compressed
    within = {
        (column, ratio): _agree(ppl, table[column, ratio], compressed if ratio < 1 else noise.layer_0_left_alone)
        for (column, ratio), ppl in printed.items()
    }
    return Judged(members, table, {cell: table[cell] / ppl - 1 for cell, ppl in printed.items()}, within)


def _agree(printed: float, measured: float, noise: float) -> bool:
    return abs(measured - printed) <= ROUNDING + noise * printed


def described(members: Sequence[ReportProtocol]) -> str:
    """A class in words: every open choice, and where its members differ, that they do."""
    return ", ".join(
        " or ".join(dict.fromkeys(_word(name, getattr(member, name)) for member in members)) for name in OPEN
    )


def _word(name: str, value: Any) -> str:
    if name == "skip_layers":
        return f"layers {' and '.join(map(str, value))} left alone" if value else "all layers compressed"
    return _WORDS[name, value] if (name, value) in _WORDS else f"{value} {_UNITS[name]}"


_WORDS = {
    ("positions", "cache"): "positions from the cache length",
    ("positions", "absolute"): "true positions",
    ("first_eviction_after", 0): "compress then feed",
    ("first_eviction_after", 1): "feed then compress",
    ("baseline", "whole"): "baseline on the whole text",
    ("baseline", "phase2"): "baseline on phase 2",
}
_UNITS = {"baseline_tokens": "tokens of it at most", "book_characters": "characters of a book"}
