"""The contract as tests: ``pytest --pyargs knorm_core.contract --knorm-compressor mypkg.mymodule:my_compress``.

With no option they are run on knorm's own compressor and evaluators, which shows what a pass looks like.
"""

from __future__ import annotations

from typing import Any

import pytest

from knorm_core import l2_compress
from knorm_core.contract.adapters import as_compressor, on_dynamic_cache
from knorm_core.contract.catalogue import COMPRESSOR_CHECKS, EVALUATOR_CHECKS
from knorm_core.contract.checks import Check
from knorm_core.contract.decorators import parameters
from knorm_core.contract.evaluators import as_evaluator, knorm_onepass, knorm_stepwise
from knorm_core.contract.plugin import named
from knorm_core.contract.trials import searching


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    compressors = [as_compressor(given) for given in named(metafunc.config, "--knorm-compressor")]
    evaluators = [as_evaluator(given) for given in named(metafunc.config, "--knorm-evaluator")]
    if "compressor" in metafunc.fixturenames:
        if not compressors and not evaluators:
            compressors = [as_compressor(l2_compress), on_dynamic_cache(l2_compress, name="l2_compress_on_cache")]
        metafunc.parametrize(("compressor", "check"), parameters(COMPRESSOR_CHECKS, compressors))
    if "evaluator" in metafunc.fixturenames:
        own = parameters(EVALUATOR_CHECKS, [as_evaluator(knorm_onepass), as_evaluator(knorm_stepwise)])
        named_ones = parameters(EVALUATOR_CHECKS, evaluators)
        metafunc.parametrize(("evaluator", "check"), named_ones if compressors or evaluators else own)


def test_compressor(compressor: Any, check: Check, pytestconfig: pytest.Config) -> None:
    with searching(pytestconfig.getoption("--knorm-examples"), pytestconfig.getoption("--knorm-explore")):
        check(compressor)


def test_evaluator(evaluator: Any, check: Check) -> None:
    check(evaluator)
