"""The verdicts on published claims, at the end of a run that measured something they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table as RichTable

from knorm_core.claims import ClaimError, judge, load_claims
from knorm_core.plugin.tables import print_table
from knorm_core.report.solved import CAPTION, HEADINGS, NOTE, Solved, solved
from knorm_core.results.evidence import without_evidence
from knorm_core.results.records import VERDICTS, Results, Table, Verdict
from knorm_core.results.terminal import plain

_STYLES = dict(zip(VERDICTS, ("green", "yellow", "red", "cyan", "dim"), strict=True))


class Ledger(NamedTuple):
    """The verdicts, or what is wrong.

    Attributes:
        concerned: whether this run recorded a table that a verdict rests on.
        no_evidence: of each model of this run that has learned nothing, a sentence that says so.
        solved: how the report's figures came about, where a table of this run shows something of it.
    """

    verdicts: Sequence[Verdict]
    concerned: bool
    error: str = ""
    no_evidence: Sequence[str] = ()
    solved: Sequence[Solved] = ()

    @classmethod
    def of(cls, results: Results, recorded: Sequence[Table], root: Path) -> Ledger:
        """Judge the claims under ``root``, if any; ``recorded`` are the tables of this run among ``results``."""
        folder = root / "baselines" / "claims"
        if not folder.is_dir():
            return cls((), False, no_evidence=_without_evidence(recorded))
        try:
            verdicts = judge(load_claims(folder), results)
        except ClaimError as error:
            return cls((), False, str(error))
        names = {table.name for table in recorded}
        concerned = any(names.intersection(verdict.rests_on) for verdict in verdicts)
        return cls(
            verdicts, concerned, no_evidence=_without_evidence(recorded), solved=solved(Results(tables=recorded))
        )

    def show(self, terminalreporter: Any, *, untested: bool = False) -> None:
        """Print how the report's figures came about, then one table per source, if this run says anything of them.

        Claims that no table tests are one line, or with ``untested`` a table with what each of them needs.
        """
        if self.error:
            terminalreporter.line(f"no verdicts: {self.error}" if not self.verdicts else self.error, red=True)
        for sentence in self.no_evidence:
            terminalreporter.line(sentence, yellow=True)
        if not self.concerned:
            return
        if self.solved:
            print_table(terminalreporter, table_of_solved(self.solved))
        for source in dict.fromkeys(verdict.source for verdict in self.verdicts):
            tested = [verdict for verdict in self.verdicts if verdict.source == source and verdict.tables]
            counts = Counter(verdict.verdict for verdict in tested)
            summary = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
            if tested:
                print_table(terminalreporter, verdict_table(source, tested), f"The {source}: {summary}.")
        others = [verdict for verdict in self.verdicts if not verdict.tables]
        if others and untested:
            print_table(terminalreporter, needs_table(others))
        elif others:
            count = f"{len(others)} claim{'s' if len(others) > 1 else ''}"
            terminalreporter.line(f"{count} not testable here, for want of their tables: --knorm-claims lists them")


def _without_evidence(recorded: Sequence[Table]) -> list[str]:
    return [f"{model}: {why}." for model, why in without_evidence(Results(tables=recorded)).items()]


def table_of_solved(lines: Sequence[Solved]) -> RichTable:
    """One row per figure of the report: what it printed, the cause, and this run's numbers."""
    table = RichTable(title=CAPTION, title_justify="left", expand=True, caption=plain(NOTE), caption_justify="left")
    for heading, ratio in zip(HEADINGS, (3, 4, 4), strict=True):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for line in lines:
        table.add_row(*map(plain, line))
    return table


def verdict_table(source: str, verdicts: Sequence[Verdict]) -> RichTable:
    """One row per claim: what was claimed, what became of it, and the first number that it rests on."""
    table = RichTable(
        title=plain(f"What became of the {source}'s claims", "table.title"), title_justify="left", expand=True
    )
    table.add_column("claim", ratio=3, overflow="fold")
    table.add_column("verdict", ratio=1, overflow="fold")
    table.add_column("figure", ratio=2, overflow="fold")
    for verdict in verdicts:
        table.add_row(plain(verdict.claim), plain(verdict.verdict, _STYLES[verdict.verdict]), plain(figure(verdict)))
    return table


def needs_table(verdicts: Sequence[Verdict]) -> RichTable:
    """One row per claim that was not tested: what was claimed, and what it would take."""
    table = RichTable(title="Claims not testable here", title_justify="left", expand=True)
    for heading in ("claim", "needs"):
        table.add_column(heading, ratio=1, overflow="fold")
    for verdict in verdicts:
        table.add_row(plain(f"The {verdict.source}: {verdict.claim}"), plain(verdict.needs or verdict.why))
    return table


def figure(verdict: Verdict) -> str:
    """The number that a verdict rests on, with its interval: "0.5 over 1.0: 1.19 [1.15, 1.24]"; else what it needs."""
    if not verdict.numbers:
        return f"needs {verdict.needs}" if verdict.needs else ""
    number = verdict.numbers[0]
    known = number.low is not None and number.high is not None and number.low != number.high
    limits = f" [{number.low:.3g}, {number.high:.3g}]" if known else ""
    return f"{number.what}: {number.value:.3g}{limits}"
