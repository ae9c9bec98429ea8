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

from rich.table import Table
from rich.text import Text

from knorm_core.compare.differences import Comparison, Difference, Flip, Moved, compare
from knorm_core.results.file import ResultsError, jsonable, read_results
from knorm_core.results.terminal import Terminal, ended, plain

_MOST_ROWS = 20  # of a table in the terminal
_MOST_CHARACTERS = 500  # of a cell there: folding takes time
_EPILOG = """exit status:
  0  no cell moved by more than the tolerance of its baseline (tables without one, such as latencies, are shown and
     not counted, as are tables and verdicts that only one of the two has)
  1  a cell did
  2  nothing was compared: a folder without results, no table that both have, or an output file that cannot be written
"""


class Block(NamedTuple):
    """A heading, the headings of columns, rows of text, and what to say where there are none."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    none: str


def main(arguments: Sequence[str] | None = None, typed: str = "python -m knorm_core.compare") -> int:
    """Compare, print, write; return the exit status. ``typed`` is the command's name, for its help and errors."""
    parser = argparse.ArgumentParser(
        prog=typed,
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
    return ended(parser.prog, lambda: _compare(options, parser.prog))


def _compare(options: argparse.Namespace, typed: str) -> int:
    try:
        comparison = compare(read_results(options.before), read_results(options.after))
        if options.out is not None:
            text = _json_lines(comparison) if options.out.suffix == ".jsonl" else _markdown(comparison)
            options.out.write_text(text, encoding="utf-8")
    except (ResultsError, OSError) as error:
        print(f"{typed}: {error}", file=sys.stderr)
        return 2
    _print(comparison, options.out)
    if not comparison.common:
        print(f"{typed}: no table is in both, so nothing was compared", file=sys.stderr)
        return 2
    return int(comparison.beyond_tolerance)


def _output(value: str) -> Path:
    path = Path(value)
    if path.suffix not in (".jsonl", ".md"):
        raise argparse.ArgumentTypeError(f"{value!r} ends neither in .jsonl (JSON Lines) nor in .md (Markdown)")
    return path


def _blocks(comparison: Comparison) -> list[Block]:
    only: list[tuple[str, ...]] = [(name, "A") for name in comparison.only_before]
    only += [(name, "B") for name in comparison.only_after]
    return [
        Block(
            "Circumstances",
            ("what", "A", "B"),
            [(each.what, each.before or "–", each.after or "–") for each in comparison.differences],
            "Versions, machine, options, models and texts are the same.",
        ),
        *(
            Block(name, ("row", "column", "A", "B", "change", "relative", "tolerance", "interval"), rows, "")
            for name, rows in _cells_by_table(comparison).items()
        ),
        Block("Tables in one only", ("table", "in"), only, "Both have the same tables."),
        Block(
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
    console = Terminal()
    for block in _blocks(comparison):
        if not block.rows:
            console.print(block.none)
            continue
        table = Table(title=_short(block.title), title_justify="left")
        for heading in block.columns:
            table.add_column(heading, overflow="fold")
        for row in block.rows[:_MOST_ROWS]:
            table.add_row(*map(_short, row))
        console.print(table)
        if len(block.rows) > _MOST_ROWS:
            where = f"{out} has them all" if out else "--out FILE writes them all"
            console.print(f"and {len(block.rows) - _MOST_ROWS} more; {where}", highlight=False, markup=False)
    if comparison.common:  # "0 cells moved" would read as a result
        console.print(_summary(comparison), highlight=False, soft_wrap=True)


def _short(text: str) -> Text:
    """A cell of the terminal's table: text, not markup, since names may hold square brackets, and not without end."""
    return plain(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…")


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
    for block in _blocks(comparison):
        lines += ["", f"## {_escaped(block.title)}", ""]
        if not block.rows:
            lines.append(block.none)
            continue
        lines += [_markdown_row(block.columns), _markdown_row(["---"] * len(block.columns))]
        lines += map(_markdown_row, block.rows)
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
