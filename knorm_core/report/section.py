"""What a page is made of: sections of figures and tables, as data, before any markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from knorm_core.results.records import Results, Table

MOST_ROWS = 1000  # of a table on the page; the results' file has all
HEADINGS = {
    "ppl": "PPL",
    "ratio": "× keep 1.0",
    "ratio_low": "95 % from",
    "ratio_high": "95 % to",
    "mean_cache": "mean cache (entries)",
    "peak_cache": "peak cache (entries)",
    "scored_tokens": "scored tokens",
    "evictions_per_layer": "evictions per layer",
    "keep_ratio": "keep ratio",
    "kv_head": "KV head",
    "skip_layers": "layers left alone",
    "alr": "ALr",
    "alr_random": "ALr, random order",
    "alr_without_first": "ALr without token 0",
    "alr_without_first_random": "ALr without token 0, random order",
    "spearman": "Spearman",
    "p99": "99th percentile",
    "top1_agreement": "same top choice",
}


@dataclass(frozen=True)
class ShownTable:
    """A table of the page.

    Attributes:
        caption: plain text, names what and where.
        headings: one per column.
        rows: cells are numbers, text or None, in the order of the columns.
        sources: names of the results' tables in it; verdicts link to it by these names.
        left_out: rows that are only in the results' file.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sources: Sequence[str] = ()
    left_out: int = 0


@dataclass(frozen=True)
class Panel:
    """One drawing; its title is empty where the figure has no other."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Figure:
    """Drawings side by side: whose, what they show in one generated sentence, and the table behind them."""

    title: str
    finding: str
    panels: Sequence[Panel]
    table: ShownTable
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: of the element, and of its link.
        question: what it answers, in one sentence.
        template: of what stands before its figures; the figures' own is the same for all.
        content: what that template shows.
        tables: further ones, without a figure.
        absent: where something is missing: what, and the command that makes it.
    """

    id: str
    title: str
    question: str
    figures: Sequence[Figure] = ()
    tables: Sequence[ShownTable] = ()
    absent: Sequence[Absent] = ()
    template: str = ""
    content: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Absent:
    """What is missing, as a noun, and the command that makes it; a narrower one where there is.

    ``own`` are the options that the command brings itself, so that those of the run are not added to it.
    """

    what: str
    command: str
    narrower: str = ""
    own: Sequence[str] = ()


def of_kind(results: Results, pattern: str) -> list[Table]:
    """Every table with rows whose kind the regular expression matches whole."""
    return [table for table in results.tables if table.rows and re.fullmatch(pattern, table.kind)]


def as_recorded(table: Table, caption: str) -> ShownTable:
    """A recorded table as it is: its key's columns, then all others."""
    return merged(caption, "", [("", table)])


def merged(caption: str, heading: str, tables: Sequence[tuple[str, Table]]) -> ShownTable:
    """Recorded tables one below the other, with a first column under ``heading`` that tells which, unless empty."""
    keys = dict.fromkeys(name for _, table in tables for name in table.key)
    columns = [*dict.fromkeys([*keys, *(name for _, table in tables for row in table.rows for name in row)])]
    rows = [[label, *(row.get(name) for name in columns)] for label, table in tables for row in table.rows]
    headings = [heading, *(HEADINGS.get(name, name.replace("_", " ")) for name in columns)]
    if not heading:
        headings, rows = headings[1:], [row[1:] for row in rows]
    sources = [table.name for _, table in tables]
    return ShownTable(caption, headings, rows[:MOST_ROWS], sources, max(0, len(rows) - MOST_ROWS))
