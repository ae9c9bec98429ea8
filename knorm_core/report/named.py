"""Which of the results' tables a section is made from: by the last part of their names."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from knorm_core.results.records import Results, Table


class Named(NamedTuple):
    """A table whose name has three parts, and what a pattern found in the last one."""

    model: str
    text_set: str
    found: re.Match[str]
    table: Table

    @property
    def where(self) -> str:
        """For headings: of which model, on which texts."""
        return f"{self.model}, {self.text_set}"


def named(results: Results, what: str) -> list[Named]:
    """Every table with rows whose name is ``model/text set/…`` with a last part that ``what`` matches whole."""
    tables = []
    for table in results.tables:
        model, _, rest = table.name.partition("/")
        text_set, _, last = rest.partition("/")
        found = re.fullmatch(what, last)
        if found and table.rows:
            tables.append(Named(model, text_set, found, table))
    return tables


def setting(table: Table, name: str) -> Any:
    """One of the settings that a table was made with, or None."""
    settings = table.made_from.get("settings")
    return settings.get(name) if isinstance(settings, dict) else None
