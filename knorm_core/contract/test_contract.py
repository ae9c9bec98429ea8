"""The contract as tests: ``pytest --pyargs knorm_core.contract --knorm-compressor mypkg.mymodule:my_compress``.

With no option they are run on knorm's own compressor, evaluators and method, which shows what a pass looks like.
"""

from __future__ import annotations

from typing import Any

import pytest

from knorm_core import l2_compress
from knorm_core.contract.adapters import as_compressor, on_dynamic_cache
from knorm_core.contract.catalogue import COMPRESSOR_CHECKS, EVALUATOR_CHECKS, POLICY_CHECKS
from knorm_core.contract.checks import Check
from knorm_core.contract.decorators import parameters
from knorm_core.contract.evaluators import as_evaluator, knorm_onepass, knorm_stepwise
from knorm_core.contract.plugin import named, named_policies
from knorm_core.contract.policies import as_policy
from knorm_core.contract.trials import searching


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    compressors = [as_compressor(given) for given in named(metafunc.config, "--knorm-compressor")]
    evaluators = [as_evaluator(given) for given in named(metafunc.config, "--knorm-evaluator")]
    policies = named_policies(metafunc.config)
    if not compressors and not evaluators and not policies:
        compressors = [as_compressor(l2_compress), on_dynamic_cache(l2_compress, name="l2_compress_on_cache")]
        evaluators = [as_evaluator(knorm_onepass), as_evaluator(knorm_stepwise)]
        policies = [as_policy("low_norm")]
    for name, checks, subjects in (
        ("compressor", COMPRESSOR_CHECKS, compressors),
        ("evaluator", EVALUATOR_CHECKS, evaluators),
        ("policy", POLICY_CHECKS, policies),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize((name, "check"), parameters(checks, subjects))


def test_compressor(compressor: Any, check: Check, pytestconfig: pytest.Config) -> None:
    with searching(pytestconfig.getoption("--knorm-examples"), pytestconfig.getoption("--knorm-explore")):
        check(compressor)


def test_evaluator(evaluator: Any, check: Check) -> None:
    check(evaluator)


def test_policy(policy: Any, check: Check, pytestconfig: pytest.Config) -> None:
    with searching(pytestconfig.getoption("--knorm-examples"), pytestconfig.getoption("--knorm-explore")):
        check(policy)
