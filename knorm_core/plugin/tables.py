"""Result tables: a test hands in rows, the terminal shows them when the run is through (xdist or not)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pytest
from rich.table import Table

from knorm_core.results.terminal import Terminal, in_encoding, plain

_PROPERTY = "knorm_table"


@pytest.fixture
def show_table(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Show a table at the end of the run.

    Call it with a title, rows (mappings of header to number or text, already in the order of columns),
    and notes: sentences printed below. With ``last=True`` it comes after the other tables.
    """

    def show(title: str, rows: Sequence[Mapping[str, Any]], *notes: str, last: bool = False) -> None:
        cells = [{str(k): v if isinstance(v, int | float | str) else str(v) for k, v in row.items()} for row in rows]
        record_property(_PROPERTY, {"title": title, "rows": cells, "notes": list(notes), "last": last})

    return show


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Tables come after all that others have to say: what was asked for is the last thing on the screen."""
    yield
    contents = [
        value
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY and report.when == "call"
    ]
    for content in sorted(contents, key=lambda content: (content["last"], content["title"])):
        table = Table(title=plain(content["title"], "table.title"), title_justify="left")
        rows = content["rows"]
        for heading, value in (rows[0] if rows else {}).items():
            justify: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
            table.add_column(plain(heading), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(
                *(plain(f"{value:,.2f}" if isinstance(value, float) else str(value)) for value in row.values())
            )
        print_table(terminalreporter, table, *content["notes"])


def print_table(terminalreporter: Any, table: Table, *notes: str) -> None:
    """Print with rich: colours on a terminal, plain elsewhere, NO_COLOR respected."""
    on_terminal, file = terminalreporter.isatty, terminalreporter._tw._file
    console = Terminal(file=file, force_terminal=on_terminal, width=None if on_terminal else 120)
    with console.capture() as capture:
        console.print()
        console.print(table)
        for note in notes:
            console.print(plain(note), soft_wrap=True, highlight=False)
    file.write(in_encoding(capture.get(), getattr(file, "encoding", None)))
