"""What README.md promises of every family is what was seen, and no golden file holds a wrong number."""

from __future__ import annotations

import pytest

from suites.every_family.__main__ import GOLDENS, PAGE, page, promised

pytestmark = pytest.mark.fast


def test_the_list_of_the_readme_is_that_of_the_golden_file():
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "the golden file has moved on: python -m suites.every_family writes the list anew"


def test_no_golden_file_holds_a_wrong_number():
    files = list(GOLDENS.glob("*.txt"))
    assert files
    assert [line for file in files for line in file.read_text("utf-8").splitlines() if ": WRONG" in line] == []


def test_a_family_whose_variants_differ_stands_with_each():
    golden = "a, default: one pass within 1e-10\na, alibi: refused: it cannot\nb, default: one pass within 1e-05\n"
    golden += "c, default: not built: ValueError: no\nd, default: stepwise within 1e-10\n"
    assert promised(golden) == (
        "**In one pass** (2): a (default), b.\n\n**Token by token** (1): d.\n\n"
        "**Refused, with the reason** (1): a (alibi)."
    )
