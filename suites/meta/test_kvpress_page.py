"""docs/kvpress.md lists the presses that the tests hold, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from suites.peers.scorers import page

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[2] / "docs" / "kvpress.md"


def test_the_page_has_the_table_of_the_tests():
    _, _, rest = PAGE.read_text("utf-8").partition("<!-- presses -->\n")
    assert rest.partition("\n<!-- end of presses -->")[0] == page()
