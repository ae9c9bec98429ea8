"""What the package costs whoever has it installed and runs pytest on something else."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.full

PAIRS = 7
MOST = 0.1  # seconds


@pytest.fixture
def seconds(tmp_path, monkeypatch):
    """``seconds(*options)``: CPU time of a pytest run of one empty test in a folder of its own."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")

    def run(*options):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def test_pytest_starts_within_a_tenth_of_a_second_of_what_it_takes_without_the_plugin(seconds):
    # CPU time, in turn: what else the machine does slows both of a pair, and the median forgives single ones.
    differences = [seconds() - seconds("-p", "no:knorm_contract") for _ in range(PAIRS)]
    assert statistics.median(differences) < MOST, differences
