"""The verdicts on published claims, at the end of a run that measured something they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table as RichTable
from rich.text import Text

from knorm_core.claims import ClaimError, judge, load_claims
from knorm_core.plugin.tables import print_table
from knorm_core.results.records import VERDICTS, Results, Table, Verdict

_STYLES = dict(zip(VERDICTS, ("green", "yellow", "red", "cyan", "dim"), strict=True))


class Ledger(NamedTuple):
    """The verdicts; ``concerned``: whether this run recorded a table that one of them rests on; or what is wrong."""

    verdicts: Sequence[Verdict]
    concerned: bool
    error: str = ""

    @classmethod
    def of(cls, results: Results, recorded: Sequence[Table], root: Path) -> Ledger:
        """Judge the claims under ``root``, if any; ``recorded`` are the tables of this run among ``results``."""
        folder = root / "baselines" / "claims"
        if not folder.is_dir():
            return cls((), False)
        try:
            verdicts = judge(load_claims(folder), results)
        except ClaimError as error:
            return cls((), False, str(error))
        names = {table.name for table in recorded}
        return cls(verdicts, any(names.intersection(verdict.rests_on) for verdict in verdicts))

    def show(self, terminalreporter: Any) -> None:
        """Print one table per source, if this run says anything about the claims."""
        if self.error:
            terminalreporter.line(f"no verdicts: {self.error}", red=True)
        if not self.concerned:
            return
        for source in dict.fromkeys(verdict.source for verdict in self.verdicts):
            of_source = [verdict for verdict in self.verdicts if verdict.source == source]
            counts = Counter(verdict.verdict for verdict in of_source)
            summary = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
            print_table(terminalreporter, verdict_table(source, of_source), f"The {source}: {summary}.")


def verdict_table(source: str, verdicts: Sequence[Verdict]) -> RichTable:
    """One row per claim: what was claimed, and what became of it and why."""
    table = RichTable(title=f"What became of the {source}'s claims", title_justify="left", expand=True)
    table.add_column("claim", ratio=1, overflow="fold")
    table.add_column("verdict", ratio=2, overflow="fold")
    for verdict in verdicts:
        # Text, not markup: a model's name may hold square brackets.
        table.add_row(Text(verdict.claim), Text.assemble((verdict.verdict, _STYLES[verdict.verdict]), verdict.reason))
    return table
