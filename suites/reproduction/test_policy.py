"""The policy of ``--knorm-policy`` against what it must beat, on many texts, at equal protections and equal memory."""

from __future__ import annotations

import pytest

from knorm_core.experiments.breadth import RATIOS, SETS
from knorm_core.plugin.settings import TableSettings
from suites.reproduction.test_breadth import what_it_speaks_of

pytestmark = pytest.mark.repro


def pytest_generate_tests(metafunc):
    asked = metafunc.config.getoption("knorm_text").split(",")
    names = [name for name in SETS if name in asked or (name == SETS[0] and "embedded" in asked)]
    metafunc.parametrize("breadth_set", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names])


def test_the_policy_beside_its_controls(breadth_set, given_policy, policy_table, table_settings, record_table):
    asked = table_settings.keep_ratios
    ratios = RATIOS if asked == TableSettings().keep_ratios else [ratio for ratio in asked if ratio < 1]
    made = policy_table(breadth_set, given_policy, ratios, notes=what_it_speaks_of(breadth_set))
    record_table(made.name, made.rows, key=["control", "keep_ratio"], made_from=made.made_from)
    # Controls say nothing where they have more memory, or less. Who divides keys among layers rounds.
    for ratio in ratios:
        own, *controls = (row["mean_cache"] for row in made.rows if row["keep_ratio"] == ratio)
        assert controls == pytest.approx([own] * len(controls), rel=0.01)
