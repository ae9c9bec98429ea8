"""Every test says where it runs: this repository's conftest refuses one that nothing would run, or that runs twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.fast

CONFTEST = Path(__file__).parents[2] / "conftest.py"


@pytest.fixture
def collect(request: pytest.FixtureRequest) -> Any:
    """``collect(*markers)``: the conftest's say on one test of the suites with these markers."""
    plugins = request.config.pluginmanager.get_plugins()
    [conftest] = [plugin for plugin in plugins if getattr(plugin, "__file__", None) == str(CONFTEST)]

    def collected(*markers: str) -> None:
        marks = [SimpleNamespace(name=name) for name in markers]
        item: Any = SimpleNamespace(nodeid="test_it.py::test_it", path=Path(__file__), iter_markers=lambda: marks)
        conftest.pytest_collection_modifyitems([item])

    return collected


@pytest.mark.parametrize("markers", [["fast"], ["full"], ["hub", "full"], ["fast", "xdist_group"], ["cluster"]])
def test_a_test_that_says_where_it_runs_is_collected(collect: Any, markers: list[str]) -> None:
    collect(*markers)


@pytest.mark.parametrize("markers", [[], ["parametrize"], ["xdist_group", "skipif"]])
def test_a_test_that_nothing_would_run_is_refused(collect: Any, markers: list[str]) -> None:
    with pytest.raises(pytest.UsageError, match="test_it has no marker, so nothing would run it: mark it fast or full"):
        collect(*markers)


def test_a_test_is_fast_or_full_but_not_both(collect: Any) -> None:
    with pytest.raises(pytest.UsageError, match="test_it is marked fast and full"):
        collect("fast", "full")
