"""A model with the rows and books that the report chose from: every figure of the report, as this model gives it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
        self._ids: dict[str, torch.Tensor] = {}
        self._evaluators: dict[tuple[int, ...], Evaluator] = {}
        self._definitions: dict[ReportProtocol, tuple[object, ...]] = {}

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

        def at(text: str, ratio: float) -> float:
            if ratio == 1:
                return self._ppl(self._run(text, whole.tokens(1.0), whole.arguments(1.0)))
            return self._ppl(self._run(text, EARLY_TOKENS, {**early, "keep_ratio": ratio}))

        def first(rows: int, books: int) -> list[str]:
            return self._texts(protocol, "Wikitext")[:rows] + self._texts(protocol, "PG-19")[:books]

        return Figures(
            final=self.table(protocol),
            rows=tuple(rows[:2]),
            columns={"Wikitext": protocol.average(rows), "PG-19": protocol.average(books)},
            mean=protocol.average([*rows, *books]),
            early={
                (column, ratio): protocol.average(at(text, ratio) for text in self._texts(protocol, column))
                for column, ratio in itertools.product(COLUMNS, EARLY_RATIOS)
            },
            mixtures={
                mixture: {ratio: protocol.average(at(text, ratio) for text in first(*mixture)) for ratio in ppls}
                for mixture, ppls in REPORT_FIGURES.mixtures.items()
            },
            long_books=None
            if not self._long
            else protocol.average(self._ppl(self._run(text, protocol.max_eval_tokens, phase_2)) for text in self._long),
        )

    def long_books(self) -> list[torch.Tensor]:
        """Token ids of the long books, cut as compressed rows are."""
        return [self._cut(book, REPORT_PROTOCOL.max_eval_tokens) for book in self._long]

    def table(self, protocol: ReportProtocol) -> dict[Cell, float]:
        """The perplexities that a combination prints, by column and keep ratio."""
        return {
            cell: protocol.average(self._ppl(run) for run in self._runs(protocol, cell))
            for cell in itertools.product(COLUMNS, RATIOS)
        }

    def definition(self, protocol: ReportProtocol) -> tuple[object, ...]:
        """What is evaluated, spelled out: combinations with the same one cannot be told apart."""
        if protocol not in self._definitions:
            runs = (run for cell in itertools.product(COLUMNS, RATIOS) for run in self._runs(protocol, cell))
            self._definitions[protocol] = tuple((ids, setting.plainest) for ids, setting in runs)
        return self._definitions[protocol]

    def _runs(self, protocol: ReportProtocol, cell: Cell) -> list[_Run]:
        column, ratio = cell
        arguments, tokens = protocol.arguments(ratio), protocol.tokens(ratio)
        return [self._run(text, tokens, arguments) for text in self._texts(protocol, column)]

    def _run(self, text: str, tokens: int, arguments: Mapping[str, Any]) -> _Run:
        ids = tuple(self._cut(text, tokens).tolist())
        if ids not in self._evaluators:
            self._evaluators[ids] = Evaluator(self._model, torch.tensor(ids))
        return ids, self._evaluators[ids].setting(arguments)

    def _cut(self, text: str, tokens: int) -> torch.Tensor:
        if text not in self._ids:
            ids = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
            self._ids[text] = torch.tensor(ids)
        return self._ids[text][:tokens]

    def _ppl(self, run: _Run) -> float:
        ids, setting = run
        return self._evaluators[ids].run_shared(setting).ppl

    def _texts(self, protocol: ReportProtocol, column: str) -> list[str]:
        return protocol.wikitext(self._rows) if column == "Wikitext" else protocol.pg19(self._books)
