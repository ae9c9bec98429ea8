"""The verdicts at the end of a run: in the terminal, in the results, with xdist, with and without colour."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
from types import SimpleNamespace

import pytest

from knorm_core.claims import judge, load_claims
from knorm_core.plugin.ledger import Ledger, figure
from knorm_core.results.file import read_results
from knorm_core.results.records import Results, Table
from suites.claims.recorded import BASELINES

pytest_plugins = ["pytester"]

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
MEASURES = """
    import pytest

    def test_measures(record_table, show_table):
        row = {"case": "512 tokens, prune_after 512 as given", "keep_ratio": 0.5}
        show_table("shown", [row])
        record_table("m/embedded-articles/faults", [row | {"evictions_per_layer": 0, "peak_cache": 511}], key=list(row))

    def test_measures_what_no_claim_uses(record_table):
        record_table("m/embedded-short/fast", [{"ppl": 1.0}], key=[])
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A repository with our ledger and two tests; call it to run some of them there."""
    monkeypatch.setenv("PYTHONPATH", str(BASELINES.parent))
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    pytester.makepyfile(MEASURES)
    shutil.copytree(BASELINES / "claims", pytester.path / "baselines" / "claims")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def printed(ledger, on_terminal, monkeypatch, columns, **options):
    monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    terminal = SimpleNamespace(
        isatty=on_terminal, _tw=SimpleNamespace(_file=file), line=lambda text, **_: print(text, file=file)
    )
    ledger.show(terminal, **options)
    return file.getvalue()


@pytest.fixture
def ledger(recorded):
    return Ledger.of(recorded, recorded.tables, BASELINES.parent)


@pytest.mark.fast
def test_verdicts_come_with_the_one_figure_by_source_within_80_columns(ledger, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed(ledger, True, monkeypatch, "80")).splitlines()
    assert max(map(len, lines)) == 80
    cells = [line.split("│")[1:4] for line in lines if "│" in line]
    claims, verdicts, figures = (re.sub(r"\s+", "", "".join(column)) for column in zip(*cells, strict=True))
    tested = [verdict for verdict in ledger.verdicts if verdict.tables]
    untested = len(ledger.verdicts) - len(tested)
    assert all(re.sub(r"\s+", "", verdict.claim) in claims for verdict in tested)
    assert all(re.sub(r"\s+", "", figure(verdict)) in figures for verdict in tested)
    assert all(re.sub(r"\s+", "", verdict.verdict) in verdicts for verdict in tested)
    text = " ".join(lines)
    assert f"{untested} claims not testable here, for want of their tables: --knorm-claims lists them" in text
    assert "with its weights and a GPU" not in text
    listed = re.sub(r"[\s│]+", "", printed(ledger, False, monkeypatch, "80", untested=True))
    assert "Claimsnottestablehere" in listed
    assert "tox-epythia" in listed
    sources = list(dict.fromkeys(verdict.source for verdict in tested))
    places = [text.index(f"What became of the {source}'s claims") for source in sources]
    assert places == sorted(places)
    for source in sources:
        count = sum(verdict.verdict == "refuted" and verdict.source == source for verdict in tested)
        assert count
        assert f"{count} refuted" in text


@pytest.mark.fast
def test_how_the_reports_figures_came_about_comes_before_the_verdicts_and_fits_a_screen(ledger, monkeypatch):
    lines = printed(ledger, False, monkeypatch, "120").splitlines()
    titles = [index for index, line in enumerate(lines) if line.startswith(("The report on", "What became of"))]
    assert "solved: what it printed, and how that came about" in lines[titles[0]]
    assert titles[1] - titles[0] <= 40
    cells = [line.split("│")[1:4] for line in lines[titles[0] : titles[1]] if "│" in line]
    columns = [re.sub(r"\s+", "", "".join(column)) for column in zip(*cells, strict=True)]
    assert len(ledger.solved) == 7
    assert columns == [re.sub(r"\s+", "", "".join(column)) for column in zip(*ledger.solved, strict=True)]


@pytest.mark.fast
def test_there_is_colour_on_a_terminal_and_none_elsewhere_or_with_no_color(ledger, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert COLOUR.search(printed(ledger, True, monkeypatch, "100"))
    assert "\x1b" not in printed(ledger, False, monkeypatch, "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(printed(ledger, True, monkeypatch, "100"))


@pytest.mark.fast
def test_a_name_in_square_brackets_is_shown_and_not_taken_for_markup(monkeypatch):
    row = {
        "case": "512 tokens, prune_after 512 as given",
        "keep_ratio": 0.5,
        "evictions_per_layer": 0,
        "peak_cache": 511,
    }
    tables = [Table("[red]m/embedded-articles/faults", list(row)[:2], [row])]
    ledger = Ledger.of(Results(tables=tables), tables, BASELINES.parent)
    claims = [dataclasses.replace(verdict, claim=f"[bold]{verdict.claim}") for verdict in ledger.verdicts]
    text = printed(ledger._replace(verdicts=claims), False, monkeypatch, "200")
    assert "[bold]" in text


@pytest.mark.fast
def test_a_run_that_measured_something_ends_with_the_verdicts_and_then_where_they_lie(project):
    result = project("--knorm-report", "out")
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if line.strip()]
    parts = ("What became of", "The report: ", "--knorm-claims lists them", "results.jsonl", "out/index.html", "shown")
    order = [next(i for i, line in enumerate(lines) if part in line) for part in parts]
    assert order == sorted(order)
    assert lines[order[-1]].strip() == "shown"  # the user's table comes last
    results = read_results("out")
    judged = judge(load_claims(BASELINES / "claims"), results)
    assert [verdict.verdict for verdict in results.verdicts] == [verdict.verdict for verdict in judged]
    assert [v.verdict for v in judged if v.id == "report-512-tops-out-at-511"] == ["reproduced"]


@pytest.mark.full  # a pytest run of its own, with workers
def test_verdicts_need_no_report_and_work_with_xdist(project):
    result = project("-n", "2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*What became of the report's claims*", "*reproduced*"])
    result.stdout.no_fnmatch_line("results: *")


@pytest.mark.fast
def test_a_run_that_measured_nothing_that_claims_use_ends_without_verdicts(project):
    result = project("-k", "no_claim_uses")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*What became of*")


@pytest.mark.fast
def test_one_folder_gathers_what_several_runs_measured(project):
    project("-k", "test_measures and not no_claim_uses", "--knorm-report", "out")
    second = project("-k", "no_claim_uses", "--knorm-report", "out")
    second.stdout.no_fnmatch_line("*What became of*")  # this run measured nothing of it
    results = read_results("out")
    assert len(results.tables) == 2
    assert any(verdict.verdict == "reproduced" for verdict in results.verdicts)


@pytest.mark.fast
def test_a_ledger_that_cannot_be_read_is_said_in_one_line(project, pytester):
    (pytester.path / "baselines" / "claims" / "paper.toml").write_text("source = 3\n")
    result = project()
    result.stdout.fnmatch_lines(["no verdicts: *paper.toml: key 'claim' is missing*"])
    result.assert_outcomes(passed=2)
