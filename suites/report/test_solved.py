"""How the report's figures came about: each line follows from its tables, and is left out without them."""

from __future__ import annotations

import dataclasses

import pytest

from knorm_core.report.solved import CAPTION, solved, solved_table
from knorm_core.results.records import Results, Table
from suites.claims.recorded import recorded_tables

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def recorded():
    return recorded_tables()


def numbers_of(results, printed):
    [line] = [line for line in solved(results) if line.printed.startswith(printed)]
    return line.numbers


def with_other_rows(results, kind, change):
    """The same results, the rows of one table changed."""
    tables = [
        dataclasses.replace(table, rows=[change(dict(row)) for row in table.rows]) if table.kind == kind else table
        for table in results.tables
    ]
    return Results(tables=tables)


@pytest.mark.parametrize(
    ("printed", "kind", "change", "numbers"),
    [
        ("one perplexity", "trail", lambda row: row | {"evictions_per_layer": 1}, "24 evictions in three such stages"),
        ("a U curve", "u-curve-recent-pairs", lambda row: row | {"ratio": 2.0}, "protected: +100 %"),
        ("122.10", "order", lambda row: row | {"ratio": 0.89}, "−11 % at keep 0.9 and −11 % at keep 0.5"),
        ("the last table", "trail", lambda row: row | {"ratio": 3.0}, "its way prints +200 %"),
        ("time to first", "published-times", lambda row: row | {"tokens_to_first": 1.0}, "as 1, 1 and 1 tokens"),
        ("throughput", "published-throughput", lambda row: row | {"change": -50.0}, "−50 % where nothing fires"),
    ],
)  # fmt: skip
def test_a_line_follows_from_its_table(printed, kind, change, numbers, recorded):
    assert numbers not in numbers_of(recorded, printed)
    assert numbers in numbers_of(with_other_rows(recorded, kind, change), printed)


def test_a_line_without_its_table_or_without_a_row_of_it_is_left_out(recorded):
    assert len(solved(recorded)) == 7
    fewer = [table for table in recorded.tables if table.kind != "u-curve-recent-pairs"]
    assert [line.printed for line in solved(Results(tables=fewer)) if line.printed.startswith("a U curve")] == []
    no_labels = with_other_rows(recorded, "u-curve-pairs", lambda row: row | {"pair": "?"})
    assert len(solved(no_labels)) == 6
    assert solved(Results()) == []
    assert solved_table(Results()) == []


def test_what_is_open_is_said_until_the_final_table_was_made(recorded):
    assert solved(recorded)[-1].cause.startswith("open")
    made = Results(tables=[*recorded.tables, Table("pythia/report/final-table", ["class"], [{"class": "x"}])])
    assert not any(line.cause.startswith("open") for line in solved(made))


def test_the_page_has_the_same_lines(recorded):
    [table] = solved_table(recorded)
    assert table.caption == CAPTION
    assert list(table.rows) == solved(recorded)
    assert "smollm2-135m/report/trail" in table.sources
