"""The page that a person opens: what was run, what it found, and the tables behind every figure."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from knorm_core.results.records import Results

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
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=target.parent, prefix=".report-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)
    return target


__all__ = ["FILE", "write_report"]
