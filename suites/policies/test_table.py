"""``tox -e policies``: every policy of the suite against its controls, on human texts where there are any.

Texts of 512 tokens, in float32.
"""

from __future__ import annotations

import pytest
import torch

from knorm_core.policy_names import find_policy
from suites.human_texts import human_or_embedded
from suites.policies.compared import COMPARED, CONTROLS, TEXTS, ratios

pytestmark = [pytest.mark.policies, pytest.mark.xdist_group("policies")]

HUMAN, EMBEDDED = "wikitext-breadth", "embedded-breadth"
TOLERANCE = 1e-3  # as for the other tables of many texts in float32


@pytest.fixture(scope="session")
def text_set_and_notes(many_texts):
    """Human texts, or, where neither a mirror nor the hub has them, the embedded ones and a note that says so."""
    return human_or_embedded(many_texts, HUMAN, EMBEDDED)


@pytest.mark.parametrize("name", COMPARED)
def test_a_policy_beside_its_controls_matches_the_baseline(
    name, text_set_and_notes, policy_table, many_texts, single_precision, golden
):
    text_set, notes = text_set_and_notes
    made = policy_table(text_set, find_policy(name), ratios(name), CONTROLS, limit=TEXTS, notes=notes)
    if single_precision.dtype != torch.float32 or len(many_texts(text_set)) < TEXTS:
        pytest.skip(f"the baseline is of {TEXTS} texts in float32: the table is shown at the end and not compared")
    golden.check(made.name, made.rows, key=["control", "keep_ratio"], made_from=made.made_from, rtol=TOLERANCE)
