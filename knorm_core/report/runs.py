"""What was run: models, texts, software, machine, how long it took, and what passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from knorm_core.report.section import Absent, Section, ShownTable
from knorm_core.report.words import counted, lasted, listed
from knorm_core.results.records import Results, Run, Test

MOST_FAILURES = 50  # shown with their messages, each cut to its end
MOST_CHARACTERS = 4000


def section(results: Results) -> Section:
    """A sentence on what passed, the runs, and where every table came from."""
    failed = [test for test in results.tests if test.outcome == "failed"]
    return Section(
        "run",
        "What was run",
        "Which model, texts, software and machine made these numbers, and did every test pass?",
        tables=[table for table in (_sources(results), _options(results), _skipped(results)) if table.rows],
        absent=[] if results.runs else [Absent("any run", "tox")],
        template="runs.html",
        content={
            "outcome": outcome(results.tests, results.runs),
            "passed": not failed,
            "made_of": _made_of(results),
            "runs": [(run, _facts(run, results)) for run in results.runs],
            "failed": failed[:MOST_FAILURES],
            "failed_more": len(failed) - MOST_FAILURES,
            "most": MOST_CHARACTERS,
        },
    )


def outcome(tests: Sequence[Test], runs: Sequence[Run]) -> str:
    """How many tests passed, failed and were skipped, and how long all runs took together."""
    if not tests:
        return "No test is recorded here."
    counts = Counter(test.outcome for test in tests)
    ran = counts["passed"] + counts["failed"]
    if counts["failed"]:
        head = f"{counts['failed']:,} of {counted(ran, 'test')} failed"
    else:
        head = f"All {counted(ran, 'test')} passed" if ran != 1 else "The one test passed"
    skipped = f", {counts['skipped']:,} skipped" if counts["skipped"] else ""
    return f"{head}{skipped}; together {lasted(sum(run.seconds for run in runs))}."


def _made_of(results: Results) -> list[tuple[str, str]]:
    """Models with the start of their hashes, and text sets."""
    models: dict[str, str] = {}
    texts: dict[str, None] = {}
    for table in results.tables:
        models.setdefault(table.model, _hash(str(table.made_from.get("model", "")))[:12])
        if table.made_from.get("text"):
            texts.setdefault(table.text_set)
    hashed = [f"{model} (sha256 {digest}…)" if digest else model for model, digest in models.items()]
    return [(what, ", ".join(names)) for what, names in (("models", hashed), ("texts", [*texts])) if names]


def _facts(run: Run, results: Results) -> list[tuple[str, str]]:
    counts = Counter(test.outcome for test in results.tests if test.run == run.id)
    outcomes = listed(f"{count:,} {what}" for what, count in sorted(counts.items()))
    return [
        ("when", f"{run.started}, for {lasted(run.seconds)}"),
        ("ended", f"{'tests: ' + outcomes + '; ' if counts else ''}exit status {run.exit_status}"),
        ("machine", ", ".join(f"{name} {value}" for name, value in run.machine.items())),
        ("software", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    ]


def _sources(results: Results) -> ShownTable:
    """One row per model and text set with the same hashes: what decides the numbers."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for table in results.tables:
        made = [str(table.made_from.get(what, "")) for what in ("model", "tokenizer", "text")]
        rows.setdefault((table.model, table.text_set, *made), []).append(table.kind + table.variant)
    return ShownTable(
        "Models and texts by SHA-256, and the tables made from them",
        ["model", "texts", "weights", "tokenizer", "text", "tables"],
        [[*key[:2], *map(_hash, key[2:]), ", ".join(names)] for key, names in rows.items()],
    )


def _options(results: Results) -> ShownTable:
    names = dict.fromkeys(name for run in results.runs for name in run.options)
    return ShownTable(
        "Options of each run",
        ["option", *(run.started for run in results.runs)],
        [[f"--{name.replace('_', '-')}", *(_option(run.options, name) for run in results.runs)] for name in names],
    )


def _skipped(results: Results) -> ShownTable:
    reasons = Counter(test.message.removeprefix("Skipped: ") for test in results.tests if test.outcome == "skipped")
    return ShownTable("Tests that were skipped, by reason", ["reason", "tests"], [[*each] for each in reasons.items()])


def _option(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name)
    if value is None:
        return "default"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _hash(text: str) -> str:
    """``slug sha256:…`` without the slug, which has a column of its own."""
    return text.rpartition("sha256:")[2]
