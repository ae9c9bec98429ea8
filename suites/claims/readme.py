"""The tables in this folder's README: what a verdict means, the rules, and the verdicts from the baselines.

``python -m suites.claims.readme [RESULTS ...]`` writes them there. Latencies have no baselines: the tables of
results folders are added to those of the baselines.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from knorm_core.claims import judge, load_claims
from knorm_core.claims.rules import RULES
from knorm_core.results.families import FAMILIES, NOT_RUN, OF_NO_MODEL, OWN_ONLY, answer_of, why_of
from knorm_core.results.file import read_results
from knorm_core.results.records import TRANSFERS, VERDICTS, Results, Verdict
from suites.claims.recorded import BASELINES, recorded_tables

README = Path(__file__).with_name("README.md")
VERDICT_HEAD = f"| source | claim | what became of it | {' | '.join(FAMILIES.values())} |"


def ledger(*folders: str) -> list[Verdict]:
    """The verdicts from the baselines' tables and those of results folders."""
    results = recorded_tables()
    for folder in folders:
        results = results.updated(Results(tables=read_results(folder).tables))
    return judge(load_claims(BASELINES / "claims"), results)


def table_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Markdown, one row per verdict and reason: claims of one source of which the same is to be said share theirs."""
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for verdict in verdicts:
        said = (f"**{verdict.verdict}**{verdict.reason}", *(_shown(verdict, model) for model in FAMILIES))
        rows[verdict.source, *said].append(verdict.claim)
    return [f"| {' | '.join([source, ' '.join(claims), *said])} |" for (source, *said), claims in rows.items()]


def _shown(verdict: Verdict, model: str) -> str:
    """A family's cell: its answer, and the numbers where they do not stand in the verdict's own."""
    answer, why = answer_of(verdict, model), why_of(verdict, model)
    return f"**{answer}**. {why}" if why else answer


def definitions() -> dict[str, list[str]]:
    """Rows by the head of their table: the words, as they are defined in the code, and the rules of the checks."""
    rules = {name.replace("_", " "): str(rule.__doc__).split("\n")[0] for name, rule in RULES.items()}
    return {
        "| verdict | meaning |": [f"| **{word}** | {meaning} |" for word, meaning in VERDICTS.items()],
        "| another model | meaning |": [
            *(f"| **{word}** | {meaning} |" for word, meaning in TRANSFERS.items()),
            f"| {NOT_RUN} | no table of that family tests it, so nothing is said of it |",
            f"| {OWN_ONLY} | a number of the claim's own model, of which no other says anything |",
            f"| {OF_NO_MODEL} | arithmetic, or times that do not depend on weights |",
        ],
        "| rule | what it says |": [f"| {name} | {text} |" for name, text in rules.items()],
    }


def updated(text: str, head: str, rows: Sequence[str]) -> str:
    """The README with these rows in place of those of the table with this head."""
    lines = text.split("\n")
    start = lines.index(head) + 2
    length = len(list(takewhile(lambda line: line.startswith("|"), lines[start:])))
    return "\n".join([*lines[:start], *rows, *lines[start + length :]])


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for head, rows in (definitions() | {VERDICT_HEAD: table_lines(ledger(*sys.argv[1:]))}).items():
        text = updated(text, head, rows)
    README.write_text(text, encoding="utf-8")
