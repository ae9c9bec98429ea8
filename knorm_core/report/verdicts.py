"""The verdicts at a glance: how many of each, then claim by claim; what other models show is kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from knorm_core.report.section import Absent, Section
from knorm_core.report.words import counted, listed, number
from knorm_core.results.records import NOT_TESTABLE, VERDICTS, Number, Results, Verdict

MARKS = dict(zip(VERDICTS, "✓≈✗~?", strict=True))
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
            "kinds": [(kind, MARKS[kind], counts[kind], meaning) for kind, meaning in VERDICTS.items()],
            "sources": [(_SOURCES.get(source, source), each) for source, each in sources.items()],
            "marks": MARKS,
            "behind": behind,
        },
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    parts = [f"{counts[kind]} {'is' if counts[kind] == 1 else 'are'} {kind}" for kind in VERDICTS if counts[kind]]
    return f"Of {counted(len(verdicts), 'claim')}, {listed(parts)}." if verdicts else ""


def behind(numbers: Sequence[Number]) -> str:
    """The numbers behind a verdict, each with its interval unless it is exact."""
    return "; ".join(
        f"{each.what}: {number(each.value)}"
        + ("" if each.low == each.high else f" [{number(each.low)}, {number(each.high)}]")
        for each in numbers
    )
