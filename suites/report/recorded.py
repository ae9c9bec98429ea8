"""Results to make pages from: the baselines of this repository, as a run would have recorded them."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from knorm_core.claims import judge, load_claims
from knorm_core.results import Baseline, Results, Run, Table, Test

ROOT = Path(__file__).parents[2] / "baselines"


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


def recorded(*further: Table) -> Results:
    """Every table of ``baselines/`` and ``further`` ones as one run's, with the verdicts that follow from them."""
    same = Baseline("same", 1e-6, 0.0, [])
    tables = [*(dataclasses.replace(table, baseline=same) for table in read_tables()), *further]
    tests = [Test(f"suites/reproduction/test_reproduction.py::test_{n}", "passed", 1.0, run="a1") for n in range(40)]
    tests.append(Test("suites/x.py::test_skipped", "skipped", 0.0, "Skipped: wikitext needs a local mirror", "a1"))
    results = Results([RUN], tables, tests)
    return dataclasses.replace(results, verdicts=judge(load_claims(ROOT / "claims"), results))


def read_tables() -> Iterator[Table]:
    """The golden files with the columns of their keys taken apart again."""
    for path in sorted(ROOT.glob("*/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = [*csv.reader(file)]
        key = head[0].split(" ")
        rows = [dict(zip(key, _labels(line[0], key), strict=True)) for line in lines]
        for row, line in zip(rows, lines, strict=True):
            row |= {column: _value(cell) for column, cell in zip(head[1:], line[1:], strict=True)}
        source = yaml.safe_load(path.with_suffix(".yml").read_text(encoding="utf-8"))
        yield Table(str(path.relative_to(ROOT).with_suffix("")), key, rows, source, run="a1")


def _labels(label: str, key: list[str]) -> Iterable[Any]:
    """A label's words, one per column of its key; a case and a cache are phrases, and layers stand in brackets."""
    if key[0] == "case":
        return map(_value, label.rsplit(" ", len(key) - 1))
    words = re.findall(r"\([^)]*\)|\S+", label)
    return map(_value, [*words[: len(key) - 1], " ".join(words[len(key) - 1 :])])


def _value(text: str) -> Any:
    try:
        return float(text) if re.search(r"[.en]", text) else int(text)
    except ValueError:
        return text
