"""Every known fault is caught by the check that is meant to, and by nothing about the sound implementation."""

from __future__ import annotations

import contextlib
import io

import pytest

from knorm_core.contract import COMPRESSOR_CHECKS, EVALUATOR_CHECKS, POLICY_CHECKS
from knorm_core.contract.checks import Check
from suites.exhibits import compressors, evaluators, key_norm_compressors, limits, order_of_steps, policies, the_report
from suites.exhibits.exhibit import Exhibit

CHECKS = {check.name: check for check in COMPRESSOR_CHECKS + EVALUATOR_CHECKS + POLICY_CHECKS}
WITHOUT_A_MODEL = compressors.EXHIBITS + key_norm_compressors.EXHIBITS + limits.EXHIBITS
WITH_ONE = evaluators.EXHIBITS + order_of_steps.EXHIBITS + the_report.EXHIBITS + policies.EXHIBITS
EXHIBITS = WITHOUT_A_MODEL + WITH_ONE
ids = [exhibit.name for exhibit in EXHIBITS]


@pytest.mark.parametrize(
    "exhibit",
    [pytest.param(exhibit, marks=pytest.mark.fast, id=exhibit.name) for exhibit in WITHOUT_A_MODEL]
    # A model evaluates a dozen texts until the smallest that shows the fault is known: not for every commit.
    + [pytest.param(exhibit, marks=pytest.mark.full, id=exhibit.name) for exhibit in WITH_ONE],
)
def test_the_check_that_is_meant_to_catches_it(exhibit: Exhibit) -> None:
    finding = CHECKS[exhibit.caught_by].find(exhibit.broken)
    assert finding is not None, f"{exhibit.caught_by} does not notice: {exhibit.story}"
    assert CHECKS[exhibit.caught_by].applies(exhibit.broken.claims)
    for part in (exhibit.name, "promise", "expected", "got", "see it"):
        assert part in str(finding)


@pytest.mark.fast
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=ids)
def test_every_exhibit_has_its_story_and_source(exhibit: Exhibit) -> None:
    assert exhibit.story.endswith(".")
    assert exhibit.source


@pytest.mark.fast
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_sound_implementation_passes(check: Check) -> None:
    sound = {exhibit.sound.name: exhibit.sound for exhibit in EXHIBITS if exhibit.caught_by == check.name}
    assert sound, f"no exhibit trips {check.name}: give it one, or remove it"
    for subject in sound.values():
        assert check.find(subject) is None


@pytest.mark.fast
def test_there_are_enough_of_them_and_no_two_of_a_name() -> None:
    assert len(EXHIBITS) >= 22
    assert len(set(ids)) == len(ids)


@pytest.mark.full
def test_the_snippet_of_a_finding_runs() -> None:
    for exhibit in EXHIBITS:
        if exhibit.name in ("norm_order", "sorts_nan", "position_drift", "writes_into_the_cache", "WholeTextAnchor"):
            finding = CHECKS[exhibit.caught_by].find(exhibit.broken)
            assert finding is not None
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(finding.snippet, {})
            assert "tensor" in printed.getvalue()
