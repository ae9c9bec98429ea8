"""The README's verdicts are those of the ledger, on the tables of the baselines."""

from __future__ import annotations

import pytest

from suites.claims.readme import README, VERDICT_HEAD, definitions, ledger, table_lines, updated

pytestmark = pytest.mark.fast


def test_the_readme_says_what_the_ledger_says():
    # Of latencies it says what one run showed, which is no baseline.
    lines = README.read_text(encoding="utf-8").split("\n")
    rows = [*table_lines(ledger()), *(row for rows in definitions().values() for row in rows)]
    missing = [row for row in rows if row not in lines and "tox -e latency" not in row]
    assert not missing, "to bring the README up to date: python -m suites.claims.readme [RESULTS ...]"


def test_only_the_rows_of_the_table_are_replaced():
    text = "before\n\n| source | claim | what became of it |\n|---|---|---|\n| old |\n| old |\n\n| another |\nafter\n"
    assert updated(text, VERDICT_HEAD, ["| new |"]) == (
        "before\n\n| source | claim | what became of it |\n|---|---|---|\n| new |\n\n| another |\nafter\n"
    )
