"""The soak fails where it has to: a test that ends otherwise, and a process that grows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suites.soak.run import GROWTH, SETTLED, _differences, _growth

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.mark.fast
def test_growth_after_the_settled_run_is_found_and_steps_before_it_are_not():
    settling = [1500 * MIB, 1700 * MIB, 1800 * MIB, 1850 * MIB]
    assert not _growth([*settling, *[1900 * MIB] * 16])
    [growth] = _growth([*settling, *(1900 * MIB + 3 * GROWTH * run for run in range(16))])
    assert growth == "memory grows by 3.00 ± 0.00 MiB a run"
    assert _growth([*settling, *(1900 * MIB + GROWTH * 3 // 2 * run for run in range(16))])
    assert not _growth([*settling, *(1900 * MIB + GROWTH // 2 * run for run in range(16))])


@pytest.mark.fast
def test_growth_by_chance_is_none():
    up_and_down = [1900 * MIB + (run % 2) * 40 * MIB for run in range(SETTLED + 15)]
    assert not _growth(up_and_down)


@pytest.mark.fast
def test_too_few_runs_are_said_to_be_too_few():
    assert "too few" in _growth([1900 * MIB] * (SETTLED + 1))[0]
    assert not _growth([1900 * MIB] * (SETTLED + 2))


@pytest.mark.full  # four pytest runs
def test_a_run_that_pytest_refuses_is_no_success_whatever_an_earlier_one_left(tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.xdist_group('g')\ndef test_it(): pass\n")

    def soak(*arguments):
        command = [sys.executable, ROOT / "suites/soak/run.py", tmp_path / "results", "--runs", "1", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        options = ["-c", os.devnull, "--rootdir", tmp_path, "-p", "knorm_core.plugin"]
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, cwd=tmp_path)

    first = soak(tmp_path / "test_it.py")
    assert "few to tell" in first.stdout, first.stdout + first.stderr
    assert "test_it" not in first.stdout.splitlines()[-1]
    second = soak(tmp_path / "test_it.py", "--no-such-option")
    assert "one process, seed 1: pytest ended with status 4" in second.stdout
    assert "-n 2, seed 1: pytest ended with status 4" in second.stdout
    assert second.returncode == 1


@pytest.mark.fast
def test_what_fails_or_ends_otherwise_is_named_with_its_run():
    alike = {"a": "passed", "b": "skipped"}
    assert not _differences({"1": alike, "2": dict(alike)})
    assert _differences({"1": alike, "2": {"a": "failed", "b": "skipped"}}) == ["a: failed in 2, passed in 1"]
    assert _differences({"1": {"a": "failed"}, "2": {"a": "failed"}}) == ["a: failed in 1", "a: failed in 2"]
    assert _differences({"1": alike, "2": {"a": "passed"}}) == ["b: absent in 2, skipped in 1"]
    assert _differences({"1": {"a": "passed"}, "2": alike}) == ["b: skipped in 2, absent in 1"]
    assert _differences({"1": {}, "2": {}}) == ["1: no test ran"]
