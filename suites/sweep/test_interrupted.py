"""A reproduction that is stopped goes on where it was when it is started again."""

from __future__ import annotations

import os
import re
import signal

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadgroup")], ids=["one process", "xdist"])
def test_a_reproduction_stopped_by_ctrl_c_goes_on_where_it_was(reproduction, options):
    first = reproduction(*options)
    while "PASSED" not in (line := first.stdout.readline()):
        assert line, "nothing passed"
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=300)[0]
    assert first.returncode == pytest.ExitCode.INTERRUPTED, said
    second = reproduction(*options)
    said = second.communicate(timeout=600)[0]
    assert second.returncode == 0, said
    stored = int(re.search(r"knorm: (\d+) of 48 results from the store .*results.sqlite, computed 20", said)[1])
    assert 12 <= stored < 48
    third = reproduction(*options)
    assert "knorm: 48 of 48 results from the store" in third.communicate(timeout=600)[0]
    anew = reproduction(*options, "--force-regen")
    assert "knorm: 48 results computed, for the store" in anew.communicate(timeout=600)[0]
