"""One test function, one id per (compressor, check): the decorators for test files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from knorm_core.contract.adapters import as_compressor
from knorm_core.contract.catalogue import COMPRESSOR_CHECKS, EVALUATOR_CHECKS, POLICY_CHECKS, applicable
from knorm_core.contract.checks import Check
from knorm_core.contract.claims import Claims, EvaluatorClaims
from knorm_core.contract.evaluators import as_evaluator
from knorm_core.contract.findings import Finding
from knorm_core.contract.policies import PolicyClaims, as_policy


def parametrize_with_checks(
    *compressors: Any,
    claims: Claims | None = None,
    xfail: Mapping[str, str] | None = None,
    skip: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrise ``test(compressor, check)``, whose body is ``check(compressor)``.

    The ids are like ``my_compress-keeps_temporal_order``, to be selected with ``-k`` or by node id.

    Args:
        compressors: functions over (key, value) pairs, or what an adapter made.
        claims: what they are held to; default, for each its own, else those of `knorm_core.l2_compress`.
        xfail: check name to the reason why it is expected to fail. Should it pass, the test fails, so
            that the list stays true.
        skip: check name to the reason why it is not run.

    Raises:
        ValueError: ``xfail`` or ``skip`` names a check that these compressors are not held to.
    """
    subjects = [as_compressor(compressor, claims) for compressor in compressors]
    return _parametrize("compressor", COMPRESSOR_CHECKS, subjects, xfail or {}, skip or {})


def parametrize_with_evaluator_checks(
    *evaluators: Any,
    claims: EvaluatorClaims | None = None,
    xfail: Mapping[str, str] | None = None,
    skip: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrise ``test(evaluator, check)``, whose body is ``check(evaluator)``; see `parametrize_with_checks`."""
    subjects = [as_evaluator(evaluator, claims) for evaluator in evaluators]
    return _parametrize("evaluator", EVALUATOR_CHECKS, subjects, xfail or {}, skip or {})


def parametrize_with_policy_checks(
    *policies: Any,
    claims: PolicyClaims | None = None,
    xfail: Mapping[str, str] | None = None,
    skip: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrise ``test(policy, check)``, whose body is ``check(policy)``; see `parametrize_with_checks`.

    Args:
        policies: instances of `knorm_core.Policy`, or their names.
        claims: what they are held to; default, for each its own.
    """
    subjects = [as_policy(policy, claims) for policy in policies]
    return _parametrize("policy", POLICY_CHECKS, subjects, xfail or {}, skip or {})


def parameters(
    checks: tuple[Check, ...],
    subjects: Sequence[Any],
    xfail: Mapping[str, str] | None = None,
    skip: Mapping[str, str] | None = None,
) -> list[Any]:
    """One `pytest.param` per subject and check that it is held to."""
    return [
        pytest.param(subject, check, id=f"{name}-{check.name}", marks=_marks(check.name, xfail or {}, skip or {}))
        for name, subject in zip(distinct_names(subjects), subjects, strict=True)
        for check in applicable(checks, subject)
    ]


def distinct_names(subjects: Sequence[Any]) -> list[str]:
    """The names of the subjects; equal ones are told apart by module, and those of one module by number."""
    names = [subject.name for subject in subjects]
    names = [
        f"{_module(subject)}.{name}" if names.count(name) > 1 and _module(subject) else name
        for name, subject in zip(names, subjects, strict=True)
    ]
    return [
        f"{name}#{names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _module(subject: Any) -> str:
    """The module of what was adapted, from its import line."""
    words = subject.imports.split()
    return words[1] if words[:1] == ["from"] else ""


def _parametrize(
    argument: str,
    checks: tuple[Check, ...],
    subjects: list[Any],
    xfail: Mapping[str, str],
    skip: Mapping[str, str],
) -> pytest.MarkDecorator:
    held_to = {check.name for subject in subjects for check in applicable(checks, subject)}
    for option, reasons in (("xfail", xfail), ("skip", skip)):
        for name in reasons:
            if name not in held_to:
                raise ValueError(
                    f"{option} names {name!r}, which is no check that {', '.join(s.name for s in subjects)} "
                    f"would be held to; these are: {', '.join(sorted(held_to))}"
                )
    return pytest.mark.parametrize((argument, "check"), parameters(checks, subjects, xfail, skip))


def _marks(name: str, xfail: Mapping[str, str], skip: Mapping[str, str]) -> list[pytest.MarkDecorator]:
    marks = []
    if name in xfail:
        marks.append(pytest.mark.xfail(reason=xfail[name], raises=Finding, strict=True))
    if name in skip:
        marks.append(pytest.mark.skip(reason=skip[name]))
    return marks
