"""What is known of a compressor or evaluator before any check is asked, so that one cause makes one finding."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.causes import explanation
from knorm_core.contract.findings import Counterexample, Diagnosis
from knorm_core.contract.limits import LIMITS
from knorm_core.contract.policies import CheckedPolicy


@functools.lru_cache(maxsize=64)
def diagnose(subject: Any) -> Diagnosis:
    """Look once for what a compressor cannot be given, or for what explains an evaluator's losses."""
    if isinstance(subject, CheckedPolicy):
        return Diagnosis(subject.claims)
    return _limits(subject) if isinstance(subject, Compressor) else explanation(subject)


def _limits(compressor: Compressor) -> Diagnosis:
    claims, counterexamples = compressor.claims, {}
    for name, look in LIMITS.items():
        try:
            look(compressor.held_to(claims))
        except Counterexample as broken:
            counterexamples[name] = broken.with_traceback(None)
            if not broken.exempts:
                return Diagnosis(claims, counterexamples, unusable=name)
            claims = replace(claims, **broken.exempts)
    return Diagnosis(claims, counterexamples)
