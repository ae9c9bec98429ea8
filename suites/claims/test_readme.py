"""The README's verdicts are those of the ledger, on the tables of the baselines."""

from __future__ import annotations

import shutil

import pytest

from knorm_core.results.families import FAMILIES, NO_MODEL
from suites.claims.readme import README, VERDICT_HEAD, definitions, ledger, table_lines, updated
from suites.claims.recorded import BASELINES, recorded_tables

pytestmark = pytest.mark.fast


def test_the_readme_says_what_the_ledger_says():
    # Of latencies it says what one run showed, which is no baseline.
    lines = README.read_text(encoding="utf-8").split("\n")
    rows = [*table_lines(ledger()), *(row for rows in definitions().values() for row in rows)]
    missing = [row for row in rows if row not in lines and "tox -e latency" not in row]
    assert not missing, "to bring the README up to date: python -m suites.claims.readme [RESULTS ...]"


def test_baselines_of_another_model_or_setting_change_nothing_of_it(tmp_path):
    for family in (*FAMILIES, NO_MODEL):
        if (BASELINES / family).exists():
            shutil.copytree(BASELINES / family, tmp_path / family)
    table = "smollm2-135m/embedded-articles/ppl-absolute"
    for name in ("pythia-70m-0123abcd/embedded-articles/ppl-absolute", f"{table}-0123abcd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".csv", ".yml"):
            shutil.copy((BASELINES / table).with_suffix(suffix), tmp_path / f"{name}{suffix}")
    assert recorded_tables(tmp_path) == recorded_tables()


def test_only_the_rows_of_the_table_are_replaced():
    head = f"before\n\n{VERDICT_HEAD}\n|---|---|---|---|---|\n"
    text = f"{head}| old |\n| old |\n\n| another |\nafter\n"
    assert updated(text, VERDICT_HEAD, ["| new |"]) == f"{head}| new |\n\n| another |\nafter\n"
