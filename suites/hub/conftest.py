"""The stand-in for the hub, and processes that take it for the hub: ``HF_ENDPOINT`` is read when they start."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from suites.hub import content
from suites.hub.stand_in import StandIn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[StandIn]:
    """A running stand-in with stand-ins for everything that is pinned."""
    with StandIn(content.repositories()) as stand_in:
        yield stand_in


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``HF_HOME`` of the test's processes: an empty cache at first."""
    return tmp_path / "hf home"


@pytest.fixture
def environment(hub: StandIn, home: Path) -> dict[str, str]:
    """Of a process for which the stand-in is the hub, and what it serves is what is pinned."""
    kept = {name: os.environ[name] for name in ("PATH", "KNORM_CACHE", "HOME") if name in os.environ}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "KNORM_STAND_IN_PINS": json.dumps(content.pins(hub.repositories)),
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def wikitext_pin() -> dict[str, str]:
    """Environment in which the stand-in's rows are taken for Wikitext's."""
    digest = hashlib.sha256("".join(content.wikitext_rows()).encode()).hexdigest()
    return {"KNORM_STAND_IN_WIKITEXT": digest}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run(script, **environment)``: a Python process, its output captured."""

    def python(script: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env={**environment, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return python
