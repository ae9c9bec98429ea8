"""One self-contained page: sections as data in, HTML out. Nothing is loaded, nothing is sent."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jinja2

from knorm_core.report import (
    baselines,
    cache_length,
    controls,
    latency,
    norm_attention,
    passkey,
    perplexity,
    policies,
    precision,
    runs,
    trail,
    verdicts,
)
from knorm_core.report.palette import DARK, LIGHT
from knorm_core.report.section import Figure, Section, ShownTable, as_recorded
from knorm_core.report.words import counted, number
from knorm_core.results.records import Results

#: In the order of the page.
SECTIONS: tuple[Callable[[Results], Section], ...] = (
    runs.section,
    verdicts.section,
    trail.section,
    perplexity.section,
    cache_length.section,
    controls.section,
    policies.section,
    norm_attention.section,
    passkey.section,
    latency.section,
    precision.section,
    baselines.section,
)
LONG_TABLE = 60  # rows; longer ones stay closed on paper


@dataclass(frozen=True)
class PlacedTable:
    """A table and its id within the page."""

    id: str
    table: ShownTable


@dataclass(frozen=True)
class PlacedFigure:
    """A figure, its id, and the table behind it."""

    id: str
    figure: Figure
    table: PlacedTable


@dataclass(frozen=True)
class PlacedSection:
    """A section with everything in it placed."""

    section: Section
    figures: Sequence[PlacedFigure]
    tables: Sequence[PlacedTable]


def render(results: Results) -> str:
    """The page as HTML text."""
    sections = [_placed(section) for section in with_the_rest([make(results) for make in SECTIONS], results)]
    tables = [table for part in sections for table in (*(figure.table for figure in part.figures), *part.tables)]
    script = _part("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title(results),
            typed=lambda command: with_options(command, results),
            sections=sections,
            id_of_table={name: table.id for table in reversed(tables) for name in table.table.sources},
            style=_part("page.css"),
            script=script,
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            light=LIGHT,
            dark=DARK,
            long_table=LONG_TABLE,
        )
    )


def with_the_rest(sections: Sequence[Section], results: Results) -> list[Section]:
    """The sections, with every table that none of them shows at the end of the last one."""
    everything = [table for part in sections for table in (*(figure.table for figure in part.figures), *part.tables)]
    known = {name for table in everything for name in table.sources}
    rest = [
        as_recorded(table, f"Recorded as well: {table.name}") for table in results.tables if table.name not in known
    ]
    *others, last = sections
    return [*others, replace(last, tables=[*last.tables, *rest])]


def with_options(command: str, results: Results) -> str:
    """A command that makes what is missing, with the ``--knorm-…`` options of the last run.

    >>> from knorm_core.results.records import Run
    >>> run = Run("", "", 0, "pytest -m repro --knorm-model gpt2 --knorm-report=out", 0, {}, {}, {})
    >>> with_options("tox -e latency", Results([run]))
    'tox -e latency -- --knorm-model gpt2 --knorm-report=out'
    """
    typed = results.runs[-1].command if results.runs else ""
    try:
        words = shlex.split(typed)
    except ValueError:  # a quotation that is never closed
        words = typed.split()
    options = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--knorm-") and word.partition("=")[0] not in command:
            options += [word] if "=" in word or following.startswith("-") or not following else [word, following]
    if not options:
        return command
    separator = " --" if command.startswith("tox") and " -- " not in command else ""
    return f"{command}{separator} {shlex.join(options)}"


def title(results: Results) -> str:
    """What the page is about: the models whose tables it has."""
    models = dict.fromkeys(table.model for table in results.tables)
    return f"knorm: {', '.join(models) or 'no tables yet'}"


def _placed(section: Section) -> PlacedSection:
    figures = []
    for number_, figure in enumerate(section.figures, start=1):
        id_ = f"{section.id}-figure-{number_}"
        figures.append(PlacedFigure(id_, figure, PlacedTable(f"{id_}-table", figure.table)))
    tables = [PlacedTable(f"{section.id}-table-{n}", table) for n, table in enumerate(section.tables, start=1)]
    return PlacedSection(section, figures, tables)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("knorm_core.report", "template"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "sorts_as": _sorts_as, "tied": _tied}
    environment.globals["counted"] = counted
    return environment


def _sorts_as(cell: Any) -> str | None:
    """What a cell is sorted by where it is a number; text is sorted as it stands."""
    return repr(float(cell)) if isinstance(cell, int | float) and cell == cell else None


def _tied(text: str) -> str:
    """A number keeps its unit on its line."""
    return re.sub(r"(?<=[0-9]) (?=%|(?:s|min|h|MiB)\b)", "\u00a0", text)


def _part(name: str) -> str:
    return (files("knorm_core.report") / "template" / name).read_text(encoding="utf-8")
