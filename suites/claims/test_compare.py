"""``python -m knorm_core.compare``: what moved, whether it matters, how it is shown, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from knorm_core.compare import compare
from knorm_core.compare.__main__ import main
from knorm_core.results.file import write_results
from knorm_core.results.records import Baseline, Results, Run, Table, Verdict

pytestmark = pytest.mark.fast

GOLDEN = Baseline("same", rtol=1e-6)


def run(**changes):
    versions = {"torch": "2.9", "transformers": "5.0"} | changes.pop("versions", {})
    machine = {"processor": "one", "cores": 2} | changes.pop("machine", {})
    options = {"knorm_report": "x"} | changes.pop("options", {})
    return Run("r", "2026-01-01T00:00:00+00:00", 1.0, "pytest", 0, options, versions, machine)


def row(keep, ppl, low=None, high=None):
    interval = {} if low is None else {"ratio": ppl / 40, "ratio_low": low, "ratio_high": high}
    return {"keep_ratio": keep, "ppl": ppl} | interval


def table(*rows, name="m/t/ppl", baseline=GOLDEN, **made_from):
    return Table(name, ["keep_ratio"], list(rows), made_from, baseline, "r")


def verdict(name, outcome):
    return Verdict(name, "report", f"Claim {name}.", "", "", "any model", "", "", outcome, "Why.")


@pytest.fixture
def folders(tmp_path):
    """``folders(A, B)``: two results, written; their paths as arguments."""

    def written(*results):
        for name, each in zip("ab", results, strict=True):
            write_results(tmp_path / name, each)
        return [str(tmp_path / "a"), str(tmp_path / "b")]

    return written


BEFORE = Results([run()], [table(row(1.0, 40.0), row(0.5, 48.0, 1.1, 1.3))])
SHARED = table(row(1.0, 40.0), name="m/t/shared")


def after(ppl, **changes):
    rows = (row(1.0, 40.0), row(0.5, ppl, 1.1 * ppl / 48, 1.3 * ppl / 48))
    return dataclasses.replace(BEFORE, tables=[table(*rows)], **changes)


@pytest.mark.parametrize(
    ("ppl", "status", "tolerance", "interval"),
    [
        (48.0, 0, None, None),
        (48.0 * (1 + 5e-7), 0, False, False),
        (48.1, 1, True, False),
        (80.0, 1, True, True),
        (math.nan, 1, True, None),
        (math.inf, 1, True, True),
    ],
)
def test_a_cell_is_held_against_its_golden_tolerance_and_its_interval(ppl, status, tolerance, interval, folders):
    moved = {cell.column: cell for cell in compare(BEFORE, after(ppl)).moved}
    if tolerance is None:
        assert not moved
    else:
        assert moved["ppl"].beyond_tolerance == tolerance
        assert moved["ratio"].beyond_interval == interval
        assert moved["ppl"].beyond_interval is None  # no interval of its own
    assert main(folders(BEFORE, after(ppl))) == status


@pytest.mark.parametrize(("value", "beyond"), [(1.2, False), (1.31, True), (1.09, True)])
def test_one_number_outside_the_others_interval_is_beyond_it(value, beyond):
    wide = {"keep_ratio": 0.5, "ratio": value, "ratio_low": 0.1, "ratio_high": 9.0}
    old = Results(tables=[table({"keep_ratio": 0.5, "ratio": 1.15, "ratio_low": 1.1, "ratio_high": 1.3})])
    for pair in ((old, Results(tables=[table(wide)])), (Results(tables=[table(wide)]), old)):
        [cell] = [cell for cell in compare(*pair).moved if cell.column == "ratio"]
        assert cell.beyond_interval == beyond


def test_a_cell_says_by_how_much_it_moved():
    [cell] = [cell for cell in compare(BEFORE, after(60.0)).moved if cell.column == "ppl"]
    assert (cell.table, cell.row, cell.before, cell.after) == ("m/t/ppl", "0.5", 48.0, 60.0)
    assert (cell.absolute, cell.relative) == (12.0, 0.25)


def test_what_matters_comes_first():
    moved = compare(
        Results(tables=[table(row(0.9, 40.0), row(0.5, 40.0, 0.9, 1.1), row(0.1, 40.0))]),
        Results(tables=[table(row(0.9, 40.0 * (1 + 1e-8)), row(0.5, 80.0, 1.9, 2.1), row(0.1, 400.0))]),
    ).moved
    assert [(cell.row, cell.column) for cell in moved[:3]] == [("0.5", "ratio"), ("0.1", "ppl"), ("0.5", "ratio_low")]
    assert moved[-1].row == "0.9"


def test_a_row_that_only_one_has_is_beyond_tolerance(folders):
    fewer = dataclasses.replace(BEFORE, tables=[table(row(1.0, 40.0))])
    assert main(folders(BEFORE, fewer)) == 1
    assert all(cell.after is None and cell.absolute is None for cell in compare(BEFORE, fewer).moved)


def test_tables_without_a_baseline_are_shown_and_not_counted(folders, capsys):
    latency = [table(row(1.0, value), name="m/latency/ttft", baseline=Baseline("none")) for value in (1.0, 2.0)]
    results = [dataclasses.replace(BEFORE, tables=[table]) for table in latency]
    assert main(folders(*results)) == 0
    assert "m/latency/ttft" in capsys.readouterr().out
    assert compare(*results).moved[0].beyond_tolerance is None


def test_versions_machine_lone_tables_and_flipped_verdicts_are_said(folders, capsys):
    old = dataclasses.replace(
        BEFORE, tables=[*BEFORE.tables, SHARED], verdicts=[verdict("x", "reproduced"), verdict("y", "refuted")]
    )
    new = Results(
        [run(options={"knorm_report": "y"}, versions={"torch": "2.10"}, machine={"device": "cuda"})],
        [table(row(1.0, 40.0), name="m/t/new"), SHARED],
        (),
        [verdict("x", "refuted"), verdict("y", "refuted"), verdict("z", "explained")],
    )
    comparison = compare(old, new)
    assert [(each.what, each.before, each.after) for each in comparison.differences] == [
        ("torch", "2.9", "2.10"),
        ("device", "", "cuda"),
    ]
    assert (comparison.only_before, comparison.only_after) == (("m/t/ppl",), ("m/t/new",))
    assert {(flip.id, flip.before, flip.after) for flip in comparison.flips} == {
        ("x", "reproduced", "refuted"),
        ("z", "", "explained"),
    }
    assert main(folders(old, new)) == 0
    text = capsys.readouterr().out
    assert text.index("2.10") < text.index("m/t/new") < text.index("Claim x.")
    assert text.rstrip().endswith("2 verdicts flipped.")
    assert "\x1b" not in text


def test_the_same_results_have_nothing_to_show(folders, capsys):
    assert main(folders(BEFORE, BEFORE)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Versions, machine, options, models and texts are the same.",
        "Both have the same tables.",
        "No verdict flipped.",
        "0 cells moved: 0 by more than the golden tolerance, 0 beyond a 95 % interval. 0 verdicts flipped.",
    ]


def test_it_is_written_as_json_lines_or_markdown_whole(folders, tmp_path, capsys):
    many = [table(*(row(keep, value) for keep in range(30))) for value in (1.0, 2.0)]
    paths = folders(*(dataclasses.replace(BEFORE, tables=[table]) for table in many))
    for name in ("moved.jsonl", "moved.md"):
        assert main([*paths, "--out", str(tmp_path / name)]) == 1
        assert "and 10 more" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "moved.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["moved"] * 30
    assert lines[0] | {"row": ""} == {
        "kind": "moved", "table": "m/t/ppl", "row": "", "column": "ppl", "before": 1.0, "after": 2.0,
        "absolute": 1.0, "relative": 1.0, "beyond_tolerance": True, "beyond_interval": None,
    }  # fmt: skip
    markdown = (tmp_path / "moved.md").read_text()
    assert markdown.count("| ppl | 1 | 2 | +1 | 1.0e+00 | beyond | – |") == 30


def test_names_cannot_inject_markup(folders, tmp_path, capsys):
    name = "[red]m|x/t<script>/ppl"
    results = [dataclasses.replace(BEFORE, tables=[table(row("[bold]", v), name=name)]) for v in (1.0, 2.0)]
    main([*folders(*results), "--out", str(tmp_path / "moved.md")])
    printed = capsys.readouterr().out
    assert name in printed
    assert "[bold]" in printed
    assert "## \\[red\\]m\\|x/t\\<script\\>/ppl" in (tmp_path / "moved.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "nowhere"], "no results at nowhere"),
        (["{a}", "{a}", "--out", "moved.txt"], "'moved.txt' ends neither in .jsonl (JSON Lines) nor in .md (Markdown)"),
        (["{a}", "{a}", "--out", "no/such/folder.md"], "No such file or directory"),
        (["{a}"], "the following arguments are required: RESULTS_B"),
    ],
)
def test_bad_input_is_said_in_a_sentence_with_status_2(arguments, message, folders, capsys):
    a, _ = folders(BEFORE, BEFORE)
    try:
        status = main([argument.format(a=a) for argument in arguments])
    except SystemExit as exit_:  # argparse's own
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_help_says_what_each_exit_status_means(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {status}  " in text for status in (0, 1, 2))


@pytest.mark.parametrize(("was", "now"), [(math.inf, 2.0), (2.0, math.inf), (math.inf, -math.inf), (1e300, math.inf)])
def test_what_was_or_becomes_infinite_is_beyond_every_tolerance(was, now, folders):
    results = [Results([run()], [table(row(1.0, value), baseline=Baseline("same", 0.5, 1e9))]) for value in (was, now)]
    assert main(folders(*results)) == 1
    assert main(folders(results[0], results[0])) == 0


@pytest.mark.parametrize(("factor", "status"), [(5e-6, 0), (2e-5, 1)])
def test_confidence_limits_have_the_tolerance_that_goldens_give_them(factor, status, folders):
    rows = [row(0.5, 48.0, 1.1, 1.3), row(0.5, 48.0, 1.1 * (1 + factor), 1.3)]
    assert main(folders(*(Results([run()], [table(each)]) for each in rows))) == status


def test_of_two_rows_with_one_label_both_are_compared(folders, capsys):
    results = [Results([run()], [table(row(0.5, first), row(0.5, 48.0))]) for first in (47.0, 50.0)]
    assert main(folders(*results)) == 1
    [cell] = compare(*results).moved
    assert (cell.row, cell.before, cell.after) == ("0.5", 47.0, 50.0)
    results = [Results([run()], [table(row(0.5, 48.0), row(0.5, second))]) for second in (47.0, 50.0)]
    [cell] = compare(*results).moved
    assert (cell.row, cell.before, cell.after) == ("0.5 (row 2 of this label)", 47.0, 50.0)


def test_what_tables_were_made_from_is_said_where_it_differs(folders, capsys):
    def made(text, name="m/t/ppl"):
        return table(row(0.5, 48.0), name=name, model="m sha256:1", text=text, settings={"prune_after": 256})

    old, new = ([made(text), made(text, "m/t/controls")] for text in ("sha256:aa", "sha256:bb"))
    results = [Results([run()], tables) for tables in (old, new)]
    [difference] = compare(*results).differences
    assert difference.what == "text of m/t/ppl and 1 more"
    assert (difference.before, difference.after) == ("sha256:aa", "sha256:bb")
    assert main(folders(*results)) == 0
    assert "sha256:bb" in capsys.readouterr().out


def test_tables_of_one_setting_are_compared_whatever_their_names_end_in(folders):
    def made(name, prune_after, ppl):
        return table(row(0.5, ppl), name=name, settings={"prune_after": prune_after})

    old = [made("m/t/ppl", 256, 48.0), made("m/t/ppl-0123abcd", 128, 50.0)]
    new = [made("m/t/ppl", 128, 50.0), made("m/t/ppl-89abcdef", 256, 48.0)]
    comparison = compare(*(Results([run()], tables) for tables in (old, new)))
    assert comparison.common == ("m/t/ppl", "m/t/ppl-0123abcd")
    assert (comparison.moved, comparison.differences) == ((), ())
    assert main(folders(Results([run()], old), Results([run()], new))) == 0


def test_results_without_a_common_table_are_not_the_same(folders, capsys):
    results = [Results([run()], [table(row(0.5, 48.0), name=name)]) for name in ("m/t/ppl", "n/t/ppl")]
    assert main(folders(*results)) == 2
    assert "no table is in both, so nothing was compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    ['[{"ppl": 1.0}]', "[[1.0]]", "[null]", '{"a": 1}', '[{"keep_ratio": 0.5, "ppl": 1%s}]' % ("0" * 400)],
    ids=["no label", "a list", "null", "no list", "too large"],
)  # fmt: skip
def test_malformed_rows_are_a_sentence_with_status_2(rows, folders, capsys):
    a, b = folders(BEFORE, BEFORE)
    file = Path(b) / "results.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    content = json.loads(lines[2]) | {"rows": "ROWS"}
    file.write_text("\n".join([*lines[:2], json.dumps(content).replace('"ROWS"', rows)]) + "\n", encoding="utf-8")
    assert main([a, b]) == 2
    assert "line 3: not a record of results" in capsys.readouterr().err


def test_a_terminal_of_few_letters_gets_a_replacement_for_the_others(folders):
    tables = [table(row(0.5, value), name="m/文/ppl") for value in (1.0, 2.0)]
    for encoding in ("latin-1", "ascii"):
        ran = subprocess.run(
            [sys.executable, "-m", "knorm_core.compare", *folders(*(Results([run()], [each]) for each in tables))],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert (ran.returncode, ran.stderr) == (1, b"")
        assert b"m/?/ppl" in ran.stdout


def test_what_is_no_regular_file_is_refused_and_not_read_for_ever(tmp_path, capsys):
    os.mkfifo(tmp_path / "results.jsonl")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "results.jsonl").symlink_to("/dev/zero")
    for place in (tmp_path, tmp_path / "device", "a\0b"):
        assert main([str(place), str(place)]) == 2
        error = capsys.readouterr().err
        assert "no results at" in error
        assert error.count("\n") == 1


def test_a_second_table_of_one_name_is_not_passed_over(folders, capsys):
    twice = Results([run()], [*BEFORE.tables, table(row(1.0, 40.0), row(0.5, 99.0))])
    main(folders(BEFORE, twice))
    assert "Both have the same tables" not in capsys.readouterr().out
    assert compare(BEFORE, twice).only_after == ("m/t/ppl",)
    assert not compare(twice, twice).only_after


def test_a_list_that_holds_nan_is_the_same_as_itself(folders):
    listed = Results([run()], [table({"keep_ratio": 1.0, "ppl": [1.0, math.nan]})])
    again = Results([run()], [table({"keep_ratio": 1.0, "ppl": [1.0, math.nan]})])
    assert not compare(listed, again).moved
    assert compare(listed, Results([run()], [table({"keep_ratio": 1.0, "ppl": [2.0, math.nan]})])).moved


def test_a_value_without_end_is_cut_in_the_terminal_and_whole_in_the_file(folders, tmp_path, capsys):
    long = Results([run(options={"knorm_text": "x" * 3_000_000})], BEFORE.tables)
    assert main([*folders(BEFORE, long), "--out", str(tmp_path / "all.jsonl")]) == 0
    assert "…" in (screen := capsys.readouterr().out)
    assert len(screen) < 10_000
    assert (tmp_path / "all.jsonl").stat().st_size > 3_000_000
