"""The ledger as it stands, and the tables of the baselines."""

from __future__ import annotations

import pytest

from knorm_core.claims import load_claims
from suites.claims.recorded import BASELINES, recorded_tables

CLAIMS = load_claims(BASELINES / "claims")


@pytest.fixture(scope="session")
def recorded():
    return recorded_tables()


def pytest_generate_tests(metafunc):
    if "claim" in metafunc.fixturenames:
        metafunc.parametrize("claim", CLAIMS, ids=[claim.id for claim in CLAIMS])
