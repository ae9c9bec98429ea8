"""Every causal family of the installed transformers, tiny and random: right, or refused with the reason.

Each variant of each family is asked in every way (row by row, as a table, in a batch, token by token) and held
to an oracle of its own. What became of each is a golden file per release of transformers, so that a new one shows
what changed; `python -m suites.every_family` writes what of it is promised into the README and the docs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import transformers

from suites.every_family.outcomes import Outcome, outcomes
from suites.every_family.shrinking import families

pytestmark = pytest.mark.families


@pytest.fixture(scope="module")
def every_outcome() -> dict[str, list[Outcome]]:
    logging.disable(logging.WARNING)  # transformers has much to say of tiny configurations
    names = families()
    try:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ProcessPoolExecutor(min(cores, 4), multiprocessing.get_context("fork")) as pool:
            return dict(zip(names, pool.map(outcomes, names), strict=True))
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("family", families())
def test_family_is_right_or_refused(family, every_outcome):
    wrong = [str(outcome) for outcome in every_outcome[family] if outcome.served == "WRONG"]
    assert not wrong, "\n".join(wrong)


def test_outcome_of_every_family(every_outcome, text_snapshot):
    release = ".".join(transformers.__version__.split(".")[:2])
    lines = [str(outcome) for family in sorted(every_outcome) for outcome in every_outcome[family]]
    assert "\n".join(lines) + "\n" == text_snapshot(name=f"transformers-{release}")


def test_most_families_are_built(every_outcome):
    # The oracle says nothing of a family that could not be built.
    built = [family for family, each in every_outcome.items() if any(outcome.served != "not built" for outcome in each)]
    assert len(built) >= 0.9 * len(every_outcome)
