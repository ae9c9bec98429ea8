"""``python -m knorm_core.compare RESULTS_A RESULTS_B``: what moved between two results folders."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from knorm_core.compare.runs import Comparison, Difference, Flip, Moved, compare
from knorm_core.results.file import ResultsError, jsonable, read_results

_SHOWN = 20  # cells per table in the terminal
_EPILOG = """exit status:
  0  no cell moved by more than the tolerance of its baseline (tables without one, such as latencies, are shown and
     not counted, as are tables and verdicts that only one of the two has)
  1  a cell did
  2  bad input: a folder without results, or an output file that cannot be written
"""


class Section(NamedTuple):
    """A heading, the headings of columns, rows of text, and what to say where there are none."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    none: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m knorm_core.compare",
        description="What moved between two results folders (pytest --knorm-report DIR writes one): versions and "
        "machine, numbers cell by cell, tables that only one has, and verdicts that flipped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="RESULTS_A", help="a results folder, or its results.jsonl")
    parser.add_argument("after", metavar="RESULTS_B", help="the one to compare with it")
    parser.add_argument(
        "--out", metavar="FILE", type=_output, help="write it all as JSON Lines (.jsonl) or Markdown (.md)"
    )
    options = parser.parse_args(arguments)
    try:
        comparison = compare(read_results(options.before), read_results(options.after))
        if options.out is not None:
            text = _json_lines(comparison) if options.out.suffix == ".jsonl" else _markdown(comparison)
            options.out.write_text(text, encoding="utf-8")
    except (ResultsError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    _print(comparison, options.out)
    return int(comparison.beyond_tolerance)


def _output(value: str) -> Path:
    path = Path(value)
    if path.suffix not in (".jsonl", ".md"):
        raise argparse.ArgumentTypeError(f"{value!r} ends neither in .jsonl (JSON Lines) nor in .md (Markdown)")
    return path


def _sections(comparison: Comparison) -> list[Section]:
    only: list[tuple[str, ...]] = [(name, "A") for name in comparison.only_before]
    only += [(name, "B") for name in comparison.only_after]
    return [
        Section(
            "Circumstances",
            ("what", "A", "B"),
            [(one.what, one.before or "–", one.after or "–") for one in comparison.differences],
            "Versions, machine and options are the same.",
        ),
        *(
            Section(name, ("row", "column", "A", "B", "change", "relative", "tolerance", "interval"), rows, "")
            for name, rows in _cells_by_table(comparison).items()
        ),
        Section("Tables in one only", ("table", "in"), only, "Both have the same tables."),
        Section(
            "Verdicts that flipped",
            ("claim", "A", "B"),
            [(flip.claim, flip.before or "–", flip.after or "–") for flip in comparison.flips],
            "No verdict flipped.",
        ),
    ]


def _cells_by_table(comparison: Comparison) -> dict[str, list[tuple[str, ...]]]:
    tables = groupby(comparison.moved, key=lambda cell: cell.table)
    return {name: [_cell(cell) for cell in cells] for name, cells in tables}


def _cell(cell: Moved) -> tuple[str, ...]:
    beyond = {None: "–", False: "within", True: "beyond"}
    return (
        cell.row,
        cell.column,
        _number(cell.before),
        _number(cell.after),
        "–" if cell.absolute is None else f"{cell.absolute:+.3g}",
        "–" if cell.absolute is None else f"{cell.relative:.1e}",
        beyond[cell.beyond_tolerance],
        beyond[cell.beyond_interval],
    )


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(comparison: Comparison, out: Path | None) -> None:
    console = Console()
    for section in _sections(comparison):
        if not section.rows:
            console.print(section.none)
            continue
        table = Table(title=Text(section.title), title_justify="left")
        for heading in section.columns:
            table.add_column(heading, overflow="fold")
        for row in section.rows[:_SHOWN]:
            table.add_row(*map(Text, row))  # text, not markup: names may hold square brackets
        console.print(table)
        if len(section.rows) > _SHOWN:
            where = f"{out} has them all" if out else "--out FILE writes them all"
            console.print(f"and {len(section.rows) - _SHOWN} more; {where}", highlight=False, markup=False)
    console.print(_summary(comparison), highlight=False, soft_wrap=True)


def _summary(comparison: Comparison) -> str:
    beyond = sum(bool(cell.beyond_tolerance) for cell in comparison.moved)
    outside = sum(bool(cell.beyond_interval) for cell in comparison.moved)
    return (
        f"{len(comparison.moved)} cells moved: {beyond} by more than the golden tolerance, {outside} beyond a 95 % "
        f"interval. {len(comparison.flips)} verdicts flipped."
    )


def _json_lines(comparison: Comparison) -> str:
    """One JSON object a line, each with a ``kind``: difference, moved, only or flip."""
    records: tuple[Difference | Moved | Flip, ...] = (*comparison.differences, *comparison.moved, *comparison.flips)
    lines = [{"kind": type(record).__name__.lower()} | dataclasses.asdict(record) for record in records]
    lines += [{"kind": "only", "table": name, "in": "A"} for name in comparison.only_before]
    lines += [{"kind": "only", "table": name, "in": "B"} for name in comparison.only_after]
    return "".join(json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _markdown(comparison: Comparison) -> str:
    lines = ["# What moved", "", _summary(comparison)]
    for section in _sections(comparison):
        lines += ["", f"## {_escaped(section.title)}", ""]
        if not section.rows:
            lines.append(section.none)
            continue
        lines += [_markdown_row(section.columns), _markdown_row(["---"] * len(section.columns))]
        lines += map(_markdown_row, section.rows)
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no second cell, no second line."""
    for character in "\\`*_<>[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
