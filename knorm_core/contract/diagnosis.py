"""What is known of a compressor or evaluator before any check is asked, so that one cause makes one finding."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.causes import explanation
from knorm_core.contract.compressor_causes import CAUSES, another_rule
from knorm_core.contract.findings import Counterexample, Diagnosis
from knorm_core.contract.limits import LIMITS
from knorm_core.contract.policies import CheckedPolicy


@functools.lru_cache(maxsize=64)
def diagnose(subject: Any) -> Diagnosis:
    """Look once for what a compressor cannot be given and for what explains its survivors, or an evaluator's losses."""
    if isinstance(subject, CheckedPolicy):
        return Diagnosis(subject.claims)
    return _compressor(subject) if isinstance(subject, Compressor) else explanation(subject)


def _compressor(compressor: Compressor) -> Diagnosis:
    claims, counterexamples = compressor.claims, {}
    for name, look in (LIMITS | CAUSES).items():
        try:
            look(compressor.held_to(claims))
        except Counterexample as broken:
            counterexamples[name] = broken.with_traceback(None)
            if not broken.exempts:
                return Diagnosis(claims, counterexamples, unusable=name)
            claims = replace(claims, **broken.exempts)
    rule = another_rule(compressor.held_to(claims))
    if rule is None:
        return Diagnosis(claims, counterexamples)
    name, other = rule
    counterexamples[name] = other
    if not other.explains:
        claims = replace(claims, **other.exempts)
    return Diagnosis(claims, counterexamples, explained=dict.fromkeys(other.explains, name))
