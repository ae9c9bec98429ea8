"""xdist's workers read the command line as the process that starts them."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("pytester")]


@pytest.mark.parametrize("there", [True, False])
def test_workers_of_xdist_read_the_arguments_as_the_controller_did(there, pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-config -p no:cacheprovider")
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    pytester.path.joinpath("tests").mkdir()
    pytester.path.joinpath("tests", "test_it.py").write_text("import os\ndef test_it(): open('ran', 'a').write('x')\n")
    if there:
        pytester.mkdir("out")
    result = pytester.runpytest_subprocess("-n", "1", "--knorm-report", "out")
    result.assert_outcomes(passed=1)
    assert pytester.path.joinpath("ran").read_text() == "x"
