"""Processes that take the stand-in for the hub: `huggingface_hub` reads ``HF_ENDPOINT`` when it is imported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from suites.hub import content
from suites.hub.stand_in import StandIn

ROOT = Path(__file__).parents[2]


def environment(hub: StandIn, home: Path) -> dict[str, str]:
    """Of a process whose hub is the stand-in, with what it serves for pins, and ``home`` for its cache."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "KNORM_CACHE") if name in os.environ},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",  # seconds: a busy machine is not a dead hub
        "HF_HUB_ETAG_TIMEOUT": "60",
        "KNORM_STAND_IN_PINS": json.dumps(content.pins(hub.repositories)),
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def wikitext_pin() -> dict[str, str]:
    """What to add to the environment of a process that is to take the stand-in's rows for Wikitext's."""
    digest = hashlib.sha256("".join(content.wikitext_rows()).encode()).hexdigest()
    return {"KNORM_STAND_IN_WIKITEXT": digest}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process that makes errors of warnings, as our pytest does."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
