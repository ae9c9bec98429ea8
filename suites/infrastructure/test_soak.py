"""The soak fails where it has to: a test that ends otherwise, and a process that grows."""

from __future__ import annotations

import pytest

from suites.soak.run import GROWTH, SETTLED, _differences, _growth

pytestmark = pytest.mark.fast

MIB = 1 << 20


def test_growth_after_the_settled_run_is_found_and_steps_before_it_are_not():
    settling = [1500 * MIB, 1700 * MIB, 1800 * MIB, 1850 * MIB]
    assert not _growth([*settling, *[1900 * MIB] * 16])
    [found] = _growth([*settling, *(1900 * MIB + 3 * GROWTH * run for run in range(16))])
    assert found == "memory grows by 3.00 ± 0.00 MiB a run"
    assert _growth([*settling, *(1900 * MIB + GROWTH * 3 // 2 * run for run in range(16))])
    assert not _growth([*settling, *(1900 * MIB + GROWTH // 2 * run for run in range(16))])


def test_growth_by_chance_is_none():
    up_and_down = [1900 * MIB + (run % 2) * 40 * MIB for run in range(SETTLED + 15)]
    assert not _growth(up_and_down)


def test_too_few_runs_are_said_to_be_too_few():
    assert "too few" in _growth([1900 * MIB] * (SETTLED + 1))[0]
    assert not _growth([1900 * MIB] * (SETTLED + 2))


def test_what_fails_or_ends_otherwise_is_named_with_its_run():
    alike = {"a": "passed", "b": "skipped"}
    assert not _differences({"1": alike, "2": dict(alike)})
    assert _differences({"1": alike, "2": {"a": "failed", "b": "skipped"}}) == ["a: failed in 2, passed in 1"]
    assert _differences({"1": {"a": "failed"}, "2": {"a": "failed"}}) == ["a: failed in 1", "a: failed in 2"]
    assert _differences({"1": alike, "2": {"a": "passed"}}) == ["b: absent in 2, skipped in 1"]
    assert _differences({"1": {"a": "passed"}, "2": alike}) == ["b: skipped in 2, absent in 1"]
    assert _differences({"1": {}, "2": {}}) == ["1: no test ran"]
