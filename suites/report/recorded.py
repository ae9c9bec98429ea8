"""Results to make pages from: the baselines of this repository, as a run would have recorded them."""

from __future__ import annotations

import dataclasses

from knorm_core.claims import judge, load_claims
from knorm_core.results.records import Baseline, Results, Run, Table, Test
from suites.claims.recorded import BASELINES, recorded_tables

RUN = Run(
    "a1",
    "2026-01-01T09:00:00+00:00",
    785.0,
    "pytest -m repro -n 2 --dist loadgroup -v --knorm-report results",
    0,
    {"knorm_model": "smollm2-135m", "knorm_keep_ratios": [1.0, 0.9, 0.5, 0.1], "knorm_text_dir": None},
    {"knorm": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "python": "3.11.7"},
    {"platform": "Linux-6.1", "processor": "AMD EPYC", "cores": 2, "workers": 2, "device": "cpu"},
)
TESTS = [
    *(Test(f"suites/reproduction/test_reproduction.py::test_{n}", "passed", 1.0, run="a1") for n in range(40)),
    Test("suites/x.py::test_skipped", "skipped", 0.0, "Skipped: wikitext needs a local mirror", "a1"),
]


def recorded(*further: Table, only: str = "") -> Results:
    """The tables of ``baselines/`` (of text sets whose name has ``only``) and ``further`` ones, judged."""
    same = Baseline("same", 1e-6, 0.0, [])
    tables = [
        dataclasses.replace(table, baseline=same, run=RUN.id)
        for table in recorded_tables().tables
        if only in table.name
    ]
    results = Results([RUN], [*tables, *further], TESTS)
    return dataclasses.replace(results, verdicts=judge(load_claims(BASELINES / "claims"), results))
