"""``python -m suites.policies`` writes the tables of docs/policies.md."""

from __future__ import annotations

from suites.policies.page import PAGE, page, tables

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
