"""The list of all checks, and the functions that run it."""

from __future__ import annotations

from typing import Any

from knorm_core.contract import (  # noqa: F401  (each lists its checks as it is imported)
    baseline_checks,
    evaluator_checks,
    firing_checks,
    given_checks,
    key_norm_checks,
    policy_checks,
    result_checks,
)
from knorm_core.contract.adapters import as_compressor
from knorm_core.contract.checks import COMPRESSOR_GROUPS, EVALUATOR_GROUP, POLICY_GROUP, Check, registered
from knorm_core.contract.claims import Claims, EvaluatorClaims
from knorm_core.contract.evaluators import as_evaluator
from knorm_core.contract.findings import Finding
from knorm_core.contract.policies import PolicyClaims, as_policy

COMPRESSOR_CHECKS = registered(*COMPRESSOR_GROUPS)
EVALUATOR_CHECKS = registered(EVALUATOR_GROUP)
POLICY_CHECKS = registered(POLICY_GROUP)


def check_compressor(compressor: Any, claims: Claims | None = None) -> list[Finding]:
    """Hold a compressor against every check that its claims call for.

    >>> from knorm_core import l2_compress
    >>> check_compressor(l2_compress)
    []

    Args:
        compressor: a function over (key, value) pairs, or what an adapter made.
        claims: what it promises; the default is what `knorm_core.l2_compress` does.

    Returns:
        One finding per broken promise; print one to read it. What several checks ended in, the same exception
        at the same place, is one finding.
    """
    return _findings(COMPRESSOR_CHECKS, as_compressor(compressor, claims))


def check_evaluator(evaluator: Any, claims: EvaluatorClaims | None = None) -> list[Finding]:
    """Hold an evaluator against every check that its claims call for; see `check_compressor`."""
    return _findings(EVALUATOR_CHECKS, as_evaluator(evaluator, claims))


def check_policy(policy: Any, claims: PolicyClaims | None = None) -> list[Finding]:
    """Hold a policy, an instance or its name, against every check that its claims call for; see `check_compressor`."""
    return _findings(POLICY_CHECKS, as_policy(policy, claims))


def applicable(checks: tuple[Check, ...], subject: Any) -> list[Check]:
    """The checks that a compressor, an evaluator or a policy is held to, by its claims."""
    return [check for check in checks if check.applies(subject.claims)]


def _findings(checks: tuple[Check, ...], subject: Any) -> list[Finding]:
    findings: list[Finding] = []
    repeats: dict[str, list[str]] = {}
    for check in applicable(checks, subject):
        finding = check.find(subject)
        if finding is None:
            continue
        if finding.crash in repeats:
            repeats[finding.crash].append(finding.check)
            continue
        findings.append(finding)
        if finding.crash:
            repeats[finding.crash] = []
    for finding in findings:
        if repeats.get(finding.crash):
            finding.note_the_same_crash_in(repeats[finding.crash])
    return findings
