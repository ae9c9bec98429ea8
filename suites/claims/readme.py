"""The table of verdicts in this folder's README, from the baselines.

``python -m suites.claims.readme [RESULTS ...]`` writes it there. Latencies have no baselines: the tables of
results folders are added to those of the baselines.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from knorm_core.claims import judge, load_claims
from knorm_core.plugin.ledger import reason
from knorm_core.results.file import read_results
from knorm_core.results.records import Results, Verdict
from suites.claims.recorded import BASELINES, recorded_tables

README = Path(__file__).with_name("README.md")
HEAD = ["| source | claim | what became of it |", "|---|---|---|"]


def ledger(*folders: str) -> list[Verdict]:
    """The verdicts from the baselines' tables and those of results folders."""
    results = recorded_tables()
    for folder in folders:
        results = results.updated(Results(tables=read_results(folder).tables))
    return judge(load_claims(BASELINES / "claims"), results)


def table_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Markdown, one row per outcome: claims of one source of which the same is to be said share theirs."""
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for verdict in verdicts:
        rows[verdict.source, verdict.verdict, reason(verdict)].append(verdict.claim)
    return [f"| {source} | {' '.join(claims)} | **{name}**{why} |" for (source, name, why), claims in rows.items()]


def updated(text: str, rows: Sequence[str]) -> str:
    """The README with these rows in place of the table's."""
    lines = text.split("\n")
    start = lines.index(HEAD[0]) + len(HEAD)
    length = len(list(takewhile(lambda line: line.startswith("|"), lines[start:])))
    return "\n".join([*lines[:start], *rows, *lines[start + length :]])


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8"), table_lines(ledger(*sys.argv[1:]))), encoding="utf-8")
