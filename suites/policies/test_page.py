"""docs/policies.md says what the baselines say."""

from __future__ import annotations

import pytest

from suites.policies.compared import COMPARED, NOT_COMPARED
from suites.policies.page import PAGE, page, tables

pytestmark = pytest.mark.fast


def test_the_page_is_made_from_the_baselines():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text, tables()), "write it anew: python -m suites.policies"


def test_every_policy_is_on_the_page_or_has_a_reason_why_not():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*COMPARED, *NOT_COMPARED) if f"`{name}`" not in text] == []
