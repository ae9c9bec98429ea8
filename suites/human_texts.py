"""Human texts for whoever has them, and the embedded ones, with a sentence that says so, for everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def human_or_embedded(load: Callable[[str], Any], human: str, embedded: str) -> tuple[str, list[str]]:
    """The text set to use, and notes for the table.

    Args:
        load: of a set's texts, by its name; fails as the fixture ``texts_of`` does.
        human, embedded: names of text sets; the second where neither a mirror nor the hub has the first.
    """
    try:
        load(human)
    except pytest.fail.Exception as missing:
        return embedded, [
            f"No human texts here ({missing}). These texts were written for this project and are harder than human "
            f"ones: they pin regressions, and say nothing of which policy is better."
        ]
    return human, []
