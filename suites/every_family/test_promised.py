"""What README.md and the docs promise of every family is what was seen, and no golden file holds a wrong number."""

from __future__ import annotations

import pytest

from suites.every_family.__main__ import GOLDENS, pages, promised, summary

pytestmark = pytest.mark.fast


def test_the_pages_have_what_the_golden_file_has():
    for path, text in pages().items():
        written = path.read_text("utf-8")
        assert text == written, f"{path.name} is not the golden file's: python -m suites.every_family writes it anew"


def test_a_family_is_counted_where_any_of_its_variants_is_served():
    golden = "a, default: one pass within 1e-10\na, alibi: refused: it cannot\nb, default: refused: no\n"
    golden += "c, default: stepwise within 1e-10\n"
    assert " the 3 causal model families " in summary(golden)
    assert " 1 are evaluated in one pass, 1 token by token, and 1 are refused" in summary(golden)


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
