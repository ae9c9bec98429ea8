"""The README's table of verdicts, from the baselines: ``python -m suites.claims.readme [RESULTS]`` prints it.

Latencies have no baselines: with a results folder, its tables are added to those of the baselines.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence

from knorm_core.claims import judge, load_claims
from knorm_core.results import Results, Verdict, read_results
from suites.claims.recorded import BASELINES, recorded_tables
from suites.plugins.ledger import reason


def ledger(*folders: str) -> list[Verdict]:
    """The verdicts from the baselines' tables and those of results folders, which come first."""
    results = recorded_tables()
    for folder in folders:
        results = results.updated(Results(tables=read_results(folder).tables))
    return judge(load_claims(BASELINES / "claims"), results)


def table_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Markdown, one row per outcome: claims of one source of which the same is to be said share theirs."""
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for verdict in verdicts:
        rows[verdict.source, verdict.verdict, reason(verdict)].append(verdict.claim)
    cells = [(source, " ".join(claims), f"**{name}**{why}") for (source, name, why), claims in rows.items()]
    return ["| source | claim | what became of it |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]


if __name__ == "__main__":
    print("\n".join(table_lines(ledger(*sys.argv[1:]))))
