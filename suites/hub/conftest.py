"""The stand-in for the hub, and the environment of a process that takes it for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from suites.hub import content, processes
from suites.hub.stand_in import StandIn


@pytest.fixture
def hub() -> Iterator[StandIn]:
    """A running stand-in with stand-ins for everything that is pinned."""
    with StandIn(content.repositories()) as stand_in:
        yield stand_in


@pytest.fixture
def environment(hub: StandIn, tmp_path: Path) -> dict[str, str]:
    """Of a process whose hub is the stand-in; its cache is empty at first, and stays for the test's next process."""
    return processes.environment(hub, tmp_path / "hf home") | processes.wikitext_pin()
