"""The page that a person opens: what was run, what it found, and the tables behind every figure."""

from __future__ import annotations

import os
from pathlib import Path

from knorm_core.results.records import Results
from knorm_core.results.replacement import replacement

FILE = "index.html"


def write_report(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write ``index.html``, one self-contained page, in one rename; return its path.

    It opens from disk and loads nothing. Every text of the results is escaped, wherever it stands.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; an earlier page is then left as it was.
    """
    from knorm_core.report.page import render  # imports matplotlib and jinja2

    content = render(results).encode("utf-8", errors="replace")
    target = Path(folder) / FILE
    with replacement(target) as file:
        file.write(content)
    return target


__all__ = ["FILE", "write_report"]
