"""The golden files' own promises: nothing written without the flag, staged with it, whole whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from knorm_core.plugin.baseline import Stored, as_stored, decide, read_table

PYTEST_RUNS = pytest.mark.full  # a pytest run of its own per step
pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

TEST = """
    import os, time

    def rows(value):
        table = [{"keep_ratio": 1.0, "ppl": 12.5, "mean": 3.0}, {"keep_ratio": 0.5, "ppl": value, "mean": 4.0}]
        without = os.environ.get("WITHOUT")
        return [{name: number for name, number in row.items() if name != without} for row in table
                if str(row["keep_ratio"]) != without]

    def test_numbers(golden):
        golden.check("m/t/ppl", rows(float(os.environ["VALUE"])), key=("keep_ratio",),
                     made_from={"model": "m", "text": os.environ.get("TEXT", "sha256:1")})

    def test_text(text_snapshot):
        assert "value " + os.environ["VALUE"] == text_snapshot

    def test_other():
        assert os.environ.get("OTHER") != "fails"
        time.sleep(float(os.environ.get("SLEEP", "0")))
"""


@pytest.fixture
def project(pytester):
    """A little repository that uses our plugins; call it to run pytest there."""
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    pytester.makepyfile(TEST)

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments],
            cwd=pytester.path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    run.path = pytester.path
    return run


def files(project):
    folder = project.path / "baselines"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@PYTEST_RUNS
def test_a_missing_baseline_fails_and_names_the_command_that_makes_it(project):
    result = project(VALUE="20")
    assert result.returncode == 1
    assert "no baseline" in result.stdout
    assert "pytest -p no:cacheprovider -p no:randomly --force-regen" in result.stdout
    assert files(project) == {}


@PYTEST_RUNS
def test_a_missing_baseline_is_skipped_where_that_was_asked_for(project):
    result = project("-k", "numbers", "-rs", "--knorm-missing-baseline", "skip", VALUE="20")
    assert result.returncode == 0
    assert "so nothing was compared: the same command with --force-regen makes it" in result.stdout
    assert files(project) == {}


@PYTEST_RUNS
def test_one_flag_regenerates_numbers_and_text_and_passes_and_prints_what_changed(project):
    made = project("--force-regen", VALUE="20")
    assert made.returncode == 0, made.stdout
    assert sorted(Path(name).name for name in files(project)) == ["ppl.csv", "ppl.yml", "test_text.txt"]
    assert project(VALUE="20").returncode == 0
    changed = project("--force-regen", "-n", "2", VALUE="21.25")
    assert changed.returncode == 0, changed.stdout
    [line] = [line for line in changed.stdout.splitlines() if "21.25" in line]
    assert [cell.strip() for cell in line.strip(" │").split("│")] == ["m/t/ppl.csv", "0.5", "ppl", "20.0", "21.25"]
    assert project(VALUE="21.25").returncode == 0
    unchanged = project("--force-regen", VALUE="21.25")
    assert "regenerated, nothing changed" in unchanged.stdout


@PYTEST_RUNS
def test_a_changed_number_fails_beyond_the_tolerance_and_not_within(project):
    project("--force-regen", VALUE="20")
    before = files(project)
    result = project("-k", "numbers", VALUE=str(20 * (1 + 1e-5)))
    assert result.returncode == 1
    assert "the numbers changed" in result.stdout
    assert "so are the versions" in result.stdout
    assert "--force-regen" in result.stdout
    assert project("-k", "numbers", VALUE=str(20 * (1 + 1e-7))).returncode == 0
    assert files(project) == before


@PYTEST_RUNS
def test_a_changed_text_is_told_apart_from_a_changed_number(project):
    project("--force-regen", VALUE="20")
    result = project("-k", "numbers", VALUE="33", TEXT="sha256:2")
    assert result.returncode == 1
    assert "was made from something else" in result.stdout
    assert "text: sha256:1 -> sha256:2" in result.stdout


@PYTEST_RUNS
@pytest.mark.parametrize(
    ("without", "said"), [("mean", "columns that are gone: mean"), ("0.5", "rows that are gone: 0.5")]
)
def test_a_column_or_row_that_vanished_fails_and_is_gone_after_a_regeneration(project, without, said):
    assert project("--force-regen", VALUE="20").returncode == 0
    result = project("-k", "numbers", VALUE="20", WITHOUT=without)
    assert result.returncode == 1
    assert said in result.stdout
    assert project("--force-regen", VALUE="20", WITHOUT=without).returncode == 0
    assert project("-k", "numbers", VALUE="20", WITHOUT=without).returncode == 0
    result = project("-k", "numbers", VALUE="20")
    assert result.returncode == 1
    assert said.replace("gone", "new") in result.stdout


@pytest.mark.fast
def test_labels_of_rows_are_compared_as_they_were_written(tmp_path):
    labels = ["1", "1.0", "1e-3", "007", "None", "nan", "", "low_norm 0.5", "a,b"]
    frame = pandas.DataFrame({"ppl": range(len(labels))}, index=pandas.Index(labels, name="key"))
    frame.to_csv(tmp_path / "ppl.csv")
    read = read_table(tmp_path / "ppl.csv")
    assert list(read.index) == labels
    made_from = {"versions": {}}
    assert decide(Stored(read, made_from), as_stored(frame), made_from).status == "same"


HALF_A_MERGE = b"keep_ratio,ppl,mean\n<<<<<<< ours\n1.0,12.5,3.0\n=======\n1.0,12.6,3.0\n>>>>>>> theirs\n0.5,20.0,4.0\n"


@PYTEST_RUNS
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ppl.csv", b""),
        ("ppl.csv", HALF_A_MERGE),
        ("ppl.csv", b"keep_ratio,ppl\n1.0,12.5\n0.5,20.0,7,8,9\n"),
        ("ppl.csv", b"\xff\xfe"),
        ("ppl.yml", b""),
        ("ppl.yml", b"<<<<<<< ours\nmodel: m\n"),
        ("ppl.yml", b"model: [\n"),
    ],
)
def test_a_damaged_baseline_is_named_and_can_be_made_anew(project, file, content):
    assert project("--force-regen", VALUE="20").returncode == 0
    whole, path = files(project), project.path / "baselines" / "m" / "t" / file
    path.write_bytes(content)
    result = project("-k", "numbers", VALUE="20")
    assert result.returncode == 1
    assert f"{path} is damaged, so nothing was compared" in result.stdout
    assert "Traceback" not in result.stdout
    assert "Error" not in result.stdout
    result = project("--force-regen", VALUE="20")
    assert result.returncode == 0, result.stdout
    assert files(project) == whole


@PYTEST_RUNS
def test_a_failing_regeneration_changes_nothing(project):
    project("--force-regen", VALUE="20")
    before = files(project)
    result = project("--force-regen", VALUE="30", OTHER="fails")
    assert result.returncode == 1
    assert "not everything passed, so none was changed" in result.stdout
    assert files(project) == before


@PYTEST_RUNS
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_regeneration_leaves_the_old_files_whole(project, how):
    project("--force-regen", VALUE="20")
    before = files(project)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "--force-regen"],
        cwd=project.path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VALUE": "30", "SLEEP": "60"},
        stdout=subprocess.DEVNULL,
        # A run that was started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    baselines = project.path / "baselines"
    deadline = time.monotonic() + 60
    staged: set[str] = set()
    while not {"ppl.yml", "test_text.txt"} <= staged and time.monotonic() < deadline:
        staged = {path.name for path in baselines.glob(".staging-*/**/*")}
        time.sleep(0.05)
    assert {"ppl.yml", "test_text.txt"} <= staged  # all is staged, nothing moved: now
    process.send_signal(how)
    process.wait(timeout=120)
    kept = {name: content for name, content in files(project).items() if not name.startswith(".staging")}
    assert kept == before
    assert project("--force-regen", VALUE="20").returncode == 0
    assert files(project) == before  # and what the killed run left is gone
