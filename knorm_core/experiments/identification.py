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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from knorm_core.evaluator import Evaluator
from knorm_core.experiments.report_figures import (
    COLUMNS,
    EARLY,
    EARLY_RATIOS,
    EARLY_TOKENS,
    RATIOS,
    REPORT_FIGURES,
    Cell,
    Figures,
)
from knorm_core.protocols import REPORT_PROTOCOL, ReportProtocol
from knorm_core.setting import Setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


_Run = tuple[tuple[int, ...], Setting]  # token ids, and what is evaluated on them


class ReportBench:
    """A model with the rows and books that the report chose from; each evaluation is computed once.

    Args:
        model, tokenizer: that are to be the report's.
        rows: of wikitext-2-raw-v1's test split, in order.
        books: texts of PG-19's test split, in order.
        long_book: characters that a book has more than, to be one of the ``long_books``.
        long_books: how many of them are evaluated.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[str],
        books: Sequence[str],
        *,
        long_book: int = 50_000,
        long_books: int = 5,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._rows, self._books = rows, books
        self._long = [book for book in books if len(book) > long_book][:long_books]
        self._ids: dict[str, tuple[int, ...]] = {}
        self._evaluators: dict[tuple[int, ...], Evaluator] = {}

    def figures(self, protocol: ReportProtocol = REPORT_PROTOCOL) -> Figures:
        """What this model prints where the report printed `REPORT_FIGURES`, with the protocol's choices."""
        whole = dataclasses.replace(protocol, baseline="whole")
        rows = [self._ppl(run) for run in self._runs(whole, ("Wikitext", 1.0))]
        books = [self._ppl(run) for run in self._runs(whole, ("PG-19", 1.0))]
        early = {
            "policy": protocol.policy,
            "skip_layers": protocol.skip_layers,
            "positions": protocol.positions,
            **EARLY,
        }
        phase_2 = dataclasses.replace(protocol, baseline="phase2").arguments(1.0)
        return Figures(
            final=self.table(protocol),
            rows=tuple(rows[:2]),
            columns={"Wikitext": protocol.average(rows), "PG-19": protocol.average(books)},
            mean=protocol.average([*rows, *books]),
            early={
                (column, ratio): protocol.average(
                    self._ppl(self._run(text, EARLY_TOKENS, {**early, "keep_ratio": ratio}))
                    for text in self._texts(protocol, column)
                )
                for column, ratio in itertools.product(COLUMNS, EARLY_RATIOS)
            },
            long_books=None
            if not self._long
            else protocol.average(self._ppl(self._run(text, protocol.max_eval_tokens, phase_2)) for text in self._long),
        )

    def table(self, protocol: ReportProtocol) -> dict[Cell, float]:
        """The perplexities that a combination prints, by column and keep ratio."""
        return {
            cell: protocol.average(self._ppl(run) for run in self._runs(protocol, cell))
            for cell in itertools.product(COLUMNS, RATIOS)
        }

    def definition(self, protocol: ReportProtocol) -> tuple[object, ...]:
        """What is evaluated, spelled out: combinations with the same one cannot be told apart."""
        cells = itertools.product(COLUMNS, RATIOS)
        return tuple((ids, setting.plainest) for cell in cells for ids, setting in self._runs(protocol, cell))

    def _runs(self, protocol: ReportProtocol, cell: Cell) -> list[_Run]:
        column, ratio = cell
        arguments, tokens = protocol.arguments(ratio), protocol.tokens(ratio)
        return [self._run(text, tokens, arguments) for text in self._texts(protocol, column)]

    def _run(self, text: str, tokens: int, arguments: Mapping[str, Any]) -> _Run:
        if text not in self._ids:
            ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
            self._ids[text] = tuple(ids)
        ids = self._ids[text][:tokens]
        if ids not in self._evaluators:
            self._evaluators[ids] = Evaluator(self._model, torch.tensor(ids))
        return ids, self._evaluators[ids].setting(arguments)

    def _ppl(self, run: _Run) -> float:
        ids, setting = run
        return self._evaluators[ids].run_shared(setting).ppl

    def _texts(self, protocol: ReportProtocol, column: str) -> list[str]:
        return protocol.wikitext(self._rows) if column == "Wikitext" else protocol.pg19(self._books)


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
