"""Fixtures and markers of this repository's own suites."""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["knorm_core.plugin", "suites.wild.options"]

# One intra-op thread per process is fastest for this work, and what the goldens are made with.
torch.set_num_threads(1)

settings.register_profile("knorm", deadline=None, derandomize=True, database=None)
settings.load_profile("knorm")

SUITES = Path(__file__).parent / "suites"
NOT_A_PLACE = {"parametrize", "skip", "skipif", "usefixtures", "xdist_group"}  # marks that say nothing of where


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Doctests run on every commit. Every other test of the suites says by a marker where it runs."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("fast")
        elif item.path.is_relative_to(SUITES):
            markers = {mark.name for mark in item.iter_markers()} - NOT_A_PLACE
            if not markers:
                raise pytest.UsageError(f"{item.nodeid} has no marker, so nothing would run it: mark it fast or full")
            if {"fast", "full"} <= markers:
                raise pytest.UsageError(f"{item.nodeid} is marked fast and full: it runs on every commit or in CI")


EVERY = 50_000  # new objects between two passes of the garbage collector, where Python has 700


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without Python's garbage collector, and let it pass less often from then on.

    It goes again and again through what imports and collecting leave, a fifteenth of the time of the fast suite. That
    stays until the end. (gc.freeze would hide it from gc.get_referrers, which Hypothesis asks.)
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.set_threshold(EVERY)
        gc.enable()
