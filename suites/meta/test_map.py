"""CONTRIBUTING.md says what is there: its map and its table are those of the code, its paths lead somewhere."""

from __future__ import annotations

import re

import pytest

from suites.meta.map import PAGE, ROOT, page

pytestmark = pytest.mark.fast


def test_the_map_and_the_table_are_those_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "the code has moved on: python -m suites.meta.map writes the page anew"


def test_every_path_of_the_page_leads_somewhere() -> None:
    by_hand = re.sub(r"<!-- (\w+) -->.*<!-- end of \1 -->", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    paths = re.findall(r"`((?:knorm_core|suites|baselines|docs|\.ci)/[\w./-]*)`", by_hand)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_is_one_page() -> None:
    assert len(PAGE.read_text("utf-8").splitlines()) <= 140
