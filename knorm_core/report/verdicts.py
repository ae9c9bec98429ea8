"""The verdicts at a glance: how many of each, then claim by claim, with a column for what each family shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from knorm_core.report.section import Absent, Section
from knorm_core.report.words import counted, listed, number
from knorm_core.results.families import NOT_RUN, OF_NO_MODEL, OWN_ONLY, answer_of, columns
from knorm_core.results.records import NOT_TESTABLE, VERDICTS, Number, Results, Verdict

MARKS = dict(zip(VERDICTS, "✓≈✗~?", strict=True))
_SOURCES = {
    "report": "Claims of the report (od-liu/CS3602-LLM-Inference-Acceleration, commit ae583008)",
    "paper": "Claims of the paper (Devoto et al., EMNLP 2024, arXiv 2406.11430)",
}


def section(results: Results) -> Section:
    """Counts, and one entry per claim in the order of the ledger, those of which nothing is known here folded away."""
    counts = Counter(verdict.verdict for verdict in results.verdicts)
    sources = [
        (
            _SOURCES.get(source, source),
            [verdict for verdict in results.verdicts if verdict.source == source and not _untested(verdict)],
            [verdict for verdict in results.verdicts if verdict.source == source and _untested(verdict)],
        )
        for source in dict.fromkeys(verdict.source for verdict in results.verdicts)
    ]
    return Section(
        "verdicts",
        "Verdicts at a glance",
        "What became of each published claim? Every verdict is computed from tables of this page.",
        absent=[] if results.verdicts else [Absent("verdicts on the published claims", "tox")],
        template="verdicts.html",
        content={
            "summary": summary(results.verdicts),
            "kinds": [(kind, MARKS[kind], counts[kind], meaning) for kind, meaning in VERDICTS.items()],
            "sources": sources,
            "marks": MARKS,
            "families": columns(results.verdicts),
            "answer_of": answer_of,
            "idle": (NOT_RUN, OWN_ONLY, OF_NO_MODEL),
            "behind": behind,
        },
    )


def _untested(verdict: Verdict) -> bool:
    """Whether neither the claim's own model nor any other says something of it."""
    return verdict.verdict == NOT_TESTABLE and not verdict.transfers


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
