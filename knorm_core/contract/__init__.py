"""The contract: named checks that any KV-cache compressor, or evaluator of one, can be held against.

On the command line: ``pytest --pyargs knorm_core.contract --knorm-compressor mypkg.mymodule:my_compress``.
In a test file: `parametrize_with_checks`. From Python: `check_compressor`, `check_evaluator`.

Names are imported when first used: the plugin of this package is loaded by every pytest run, and must
not drag torch into it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knorm_core.contract.adapters import Compressor, as_compressor, kvpress_press, on_dynamic_cache
    from knorm_core.contract.cases import CacheCase
    from knorm_core.contract.catalogue import (
        COMPRESSOR_CHECKS,
        EVALUATOR_CHECKS,
        check_compressor,
        check_evaluator,
    )
    from knorm_core.contract.checks import searching
    from knorm_core.contract.claims import KVPRESS, Claims, EvaluatorClaims, kvpress_count
    from knorm_core.contract.decorators import parametrize_with_checks, parametrize_with_evaluator_checks
    from knorm_core.contract.evaluators import Evaluator, as_evaluator
    from knorm_core.contract.findings import Finding

_HOME = {
    "Compressor": "adapters",
    "as_compressor": "adapters",
    "kvpress_press": "adapters",
    "on_dynamic_cache": "adapters",
    "CacheCase": "cases",
    "COMPRESSOR_CHECKS": "catalogue",
    "EVALUATOR_CHECKS": "catalogue",
    "check_compressor": "catalogue",
    "check_evaluator": "catalogue",
    "searching": "checks",
    "KVPRESS": "claims",
    "Claims": "claims",
    "EvaluatorClaims": "claims",
    "kvpress_count": "claims",
    "parametrize_with_checks": "decorators",
    "parametrize_with_evaluator_checks": "decorators",
    "Evaluator": "evaluators",
    "as_evaluator": "evaluators",
    "Finding": "findings",
}

__all__ = [
    "COMPRESSOR_CHECKS",
    "EVALUATOR_CHECKS",
    "KVPRESS",
    "CacheCase",
    "Claims",
    "Compressor",
    "Evaluator",
    "EvaluatorClaims",
    "Finding",
    "as_compressor",
    "as_evaluator",
    "check_compressor",
    "check_evaluator",
    "kvpress_count",
    "kvpress_press",
    "on_dynamic_cache",
    "parametrize_with_checks",
    "parametrize_with_evaluator_checks",
    "searching",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
