"""Every policy of the suite keeps the contract of policies."""

from __future__ import annotations

from typing import Any

import pytest

from knorm_core.contract import parametrize_with_policy_checks, searching
from knorm_core.contract.checks import Check
from knorm_core.policies import POLICIES

pytestmark = pytest.mark.full

# Unfitted Q-Filters are refused, and fitted ones are for one model.
FITTED = {"q_filters"}


@parametrize_with_policy_checks(*sorted(POLICIES.keys() - FITTED))
def test_policies_of_the_suite_keep_the_contract(policy: Any, check: Check) -> None:
    with searching(examples=10):
        check(policy)
