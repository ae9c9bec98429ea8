"""Results as JSON Lines: what is written is what is read, and what cannot be read is refused with its line."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knorm_core.report import write_report
from knorm_core.results.file import FILE, ResultsError, read_results, write_results
from knorm_core.results.records import (
    TRANSFERS,
    VERDICTS,
    Baseline,
    ChangedCell,
    Number,
    Results,
    Run,
    Table,
    Test,
    Transfer,
    Verdict,
)

pytestmark = pytest.mark.fast

numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.booleans(), st.none())
words = st.text(st.characters(codec="utf-8"), max_size=8)
tables = st.builds(
    Table,
    name=words,
    key=st.just([]) | st.just(["row"]),
    rows=st.lists(st.dictionaries(words, numbers | words, max_size=3).map(lambda row: row | {"row": 1}), max_size=3),
    made_from=st.dictionaries(words, words, max_size=2),
    baseline=st.builds(
        Baseline,
        st.sampled_from(["same", "changed", "missing", "other source", "damaged", "none"]),
        st.just(1e-6),
        st.just(0.0),
        st.lists(st.builds(ChangedCell, words, words, numbers, numbers), max_size=2),
    ),
    run=words,
)
finite = st.floats(allow_nan=False)
figures = st.lists(st.builds(Number, finite, finite, finite, words), max_size=2)
verdicts = st.builds(
    Verdict,
    **dict.fromkeys(["id", "source", "claim", "where", "setting", "about", "expected", "tolerance", "why"], words),
    verdict=st.sampled_from([*VERDICTS]),
    numbers=figures,
    transfers=st.lists(
        st.builds(Transfer, words, st.sampled_from([*TRANSFERS]), words, figures, st.lists(words)), max_size=2
    ),
    tables=st.lists(words, max_size=2),
    own=st.dictionaries(words, st.sampled_from([*VERDICTS]), max_size=2),
    own_only=st.booleans(),
)


def run(name):
    return Run(name, "2026-01-01T00:00:00+00:00", 1.5, "pytest", 0, {}, {"torch": "2"}, {"cores": 2})


@given(st.lists(tables, max_size=3), st.lists(verdicts, max_size=2))
def test_what_is_written_is_what_is_read(tmp_path_factory, written, judged):
    folder = tmp_path_factory.mktemp("results")
    results = Results([run("a")], written, [Test("t.py::t", "failed", 0.5, "why", "a")], judged)
    write_results(folder, results)
    assert read_results(folder) == results


def test_numbers_that_json_does_not_have_come_back(tmp_path):
    row = {"high": math.inf, "low": -math.inf, "ratio": math.nan}
    write_results(tmp_path, Results(tables=[Table("m/t/x", [], [row])]))
    [read] = read_results(tmp_path).tables
    assert repr(read.rows) == repr([row])
    assert '"ratio": {"float": "nan"}' in (tmp_path / FILE).read_text()


def test_a_later_run_replaces_what_has_the_same_name_and_keeps_the_rest():
    first = Results([run("a")], [Table("x", [], [], run="a"), Table("y", [], [], run="a")])
    later = Results([run("b")], [Table("y", [], [{"v": 1}], run="b"), Table("z", [], [], run="b")])
    both = first.updated(later)
    assert [(table.name, table.run) for table in both.tables] == [("x", "a"), ("y", "b"), ("z", "b")]
    assert [each.id for each in both.runs] == ["a", "b"]
    assert [each.id for each in first.updated(Results([run("b")], [*later.tables, Table("x", [], [])])).runs] == ["b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no results at .*results\.jsonl"),
        (b"", "is empty"),
        (b'{"kind": "schema", "version": 99}\n', "has schema version 99; this knorm reads version 2"),
        (b'{"kind": "run"}\n', "has schema version None"),
        (b"\xff\xfe", "no results at"),
        (b'{"kind": "schema", "version": 2}\n{"kind": "table", "na', "line 2: not a record"),
        (b'{"kind": "schema", "version": 2}\n{"kind": "table", "name": NaN}', "line 2: not a record"),
        (b'{"kind": "schema", "version": 2}\n{"kind": "poem"}', "line 2: not a record"),
        (b'{"kind": "schema", "version": 2}\n' + b"[" * 100_000, "line 2: not a record"),
    ],
    ids=range(9),
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        read_results(tmp_path)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_results_and_page_have_the_mode_that_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        paths = [write_results(tmp_path, Results()), write_report(Results(), tmp_path)]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [mode, mode]
