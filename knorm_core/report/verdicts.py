"""The verdicts at a glance: how many of each, then claim by claim; what a stand-in shows is kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from knorm_core.report.section import Absent, Section
from knorm_core.report.words import counted, listed, number
from knorm_core.results.records import VERDICTS, Number, Results, Verdict

NOT_TESTABLE = "not testable here"
MARKS = {"reproduced": "✓", "explained": "≈", "refuted": "✗", NOT_TESTABLE: "?"}
_MEANINGS = {
    "reproduced": "the number or direction came out",
    "explained": "it comes out under a named fault, and not without",
    "refuted": "it was measured and did not come out",
    NOT_TESTABLE: "it needs a model or data that is absent",
}
_SOURCES = {"report": "Claims of the report", "paper": "Claims of the paper"}


def section(results: Results) -> Section:
    """Counts, and one entry per claim in the order of the ledger, those that cannot be tested here last."""
    counts = Counter(verdict.verdict for verdict in results.verdicts)
    sources: dict[str, list[Verdict]] = {}
    for verdict in sorted(
        results.verdicts, key=lambda verdict: verdict.verdict == NOT_TESTABLE
    ):  # what was judged first
        sources.setdefault(verdict.source, []).append(verdict)
    return Section(
        "verdicts",
        "Verdicts at a glance",
        "What became of each published claim? Every verdict is computed from the tables below.",
        absent=[] if results.verdicts else [Absent("verdicts on the published claims", "tox")],
        template="verdicts.html",
        content={
            "summary": summary(results.verdicts),
            "kinds": [(kind, MARKS[kind], counts[kind], _MEANINGS[kind]) for kind in VERDICTS],
            "sources": [(_SOURCES.get(source, source), found) for source, found in sources.items()],
            "marks": MARKS,
            "told": told,
        },
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    told = [f"{counts[kind]} {'is' if counts[kind] == 1 else 'are'} {kind}" for kind in VERDICTS if counts[kind]]
    return f"Of {counted(len(verdicts), 'claim')}, {listed(told)}." if verdicts else ""


def told(numbers: Sequence[Number]) -> str:
    """The numbers behind a verdict, each with its interval where it has one."""
    parts = []
    for one in numbers:
        limits = "" if one.low is None or one.high is None else f" [{number(one.low)}, {number(one.high)}]"
        parts.append(f"{one.what}: {number(one.value)}{limits}")
    return "; ".join(parts)
