"""``--knorm-report DIR``: the page of a run, written beside its results; and a folder or a disk that takes none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from knorm_core.plugin.report_files import unwritable, write
from knorm_core.report import FILE
from knorm_core.results.file import FILE as RESULTS
from knorm_core.results.file import read_results
from knorm_core.results.records import Results

ROOT = Path(__file__).parents[2]
TEST = """
def test_records(record_table):
    record_table("m/t/x", [{"keep_ratio": 0.5, "ppl": 2.0}], key=["keep_ratio"])

def test_fails():
    assert "<script>" == ""
"""


@pytest.mark.fast
def test_a_folder_that_takes_nothing_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    assert unwritable(None) == unwritable(tmp_path / "new" / "folder") == ""
    sentence = unwritable(tmp_path / "file")
    assert (
        sentence
        == f"--knorm-report {tmp_path / 'file'}: nothing can be written there (File exists); name another folder"
    )


@pytest.mark.fast
def test_a_full_disk_is_a_sentence_and_an_earlier_page_stays(tmp_path):
    write(Results(), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a disk with so much left
    try:
        [(results, first), (report, second)] = write(Results(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (results, first) == (f"results: {tmp_path / RESULTS}", False)
    assert report.startswith("report: not written, OSError: ")
    assert report.endswith("; the tests' outcome stands")
    assert second
    assert (tmp_path / FILE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {FILE, RESULTS}


@pytest.fixture
def run(tmp_path):
    """``run(*arguments)``: pytest in a little project of its own that uses our plugins."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["knorm_core.plugin"]', encoding="utf-8")
    (tmp_path / "test_it.py").write_text(TEST, encoding="utf-8")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.full  # a pytest run of its own
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_run_writes_results_and_page_and_says_where(run, tmp_path, workers):
    result = run(*workers, "--knorm-report", "results")
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed" in result.stdout
    assert f"results: results/{RESULTS}\nreport: results/{FILE}\n" in result.stdout
    page = (tmp_path / "results" / FILE).read_text(encoding="utf-8")
    assert "1 of 2 tests failed" in page
    assert "&lt;script&gt;" in page
    assert [table.name for table in read_results(tmp_path / "results").tables] == ["m/t/x"]


@pytest.mark.full
def test_a_folder_that_takes_nothing_ends_the_run_before_a_test_has_run(run, tmp_path):
    result = run("--knorm-report", str(tmp_path / "test_it.py"))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "nothing can be written there (File exists); name another folder" in result.stderr
    assert "passed" not in result.stdout
