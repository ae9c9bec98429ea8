"""The list of all checks, and the functions that run it."""

from __future__ import annotations

from typing import Any

from knorm_core.contract.adapters import as_compressor
from knorm_core.contract.checks import Check
from knorm_core.contract.claims import Claims, EvaluatorClaims
from knorm_core.contract.evaluator_checks import LOSS_CHECKS
from knorm_core.contract.evaluators import as_evaluator
from knorm_core.contract.findings import Finding
from knorm_core.contract.firing_checks import FIRING_CHECKS
from knorm_core.contract.key_norm_checks import KEY_NORM_CHECKS
from knorm_core.contract.result_checks import RESULT_CHECKS

COMPRESSOR_CHECKS = RESULT_CHECKS + FIRING_CHECKS + KEY_NORM_CHECKS
EVALUATOR_CHECKS = LOSS_CHECKS


def check_compressor(compressor: Any, claims: Claims | None = None) -> list[Finding]:
    """Hold a compressor against every check that its claims call for.

    >>> from knorm_core import l2_compress
    >>> check_compressor(l2_compress)
    []

    Args:
        compressor: a function over (key, value) pairs, or what an adapter made.
        claims: what it promises; the default is what `knorm_core.l2_compress` does.

    Returns:
        One finding per broken promise; print one to read it.
    """
    subject = as_compressor(compressor, claims)
    return [finding for check in applicable(COMPRESSOR_CHECKS, subject) if (finding := check.find(subject))]


def check_evaluator(evaluator: Any, claims: EvaluatorClaims | None = None) -> list[Finding]:
    """Hold an evaluator against every check that its claims call for; see `check_compressor`."""
    subject = as_evaluator(evaluator, claims)
    return [finding for check in applicable(EVALUATOR_CHECKS, subject) if (finding := check.find(subject))]


def applicable(checks: tuple[Check, ...], subject: Any) -> list[Check]:
    """The checks that a compressor or evaluator is held to, by its claims."""
    return [check for check in checks if check.applies(subject.claims)]
