"""``--knorm-report DIR``: the results and the page beside them; a folder that cannot take them is named at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from knorm_core.results.file import write_results
from knorm_core.results.records import Results


def unwritable(folder: str | os.PathLike[str] | None) -> str:
    """Why nothing can be written into ``folder``, as a sentence, or empty; makes the folder."""
    try:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.NamedTemporaryFile(
                dir=folder, prefix=".results-"
            ).close()  # by name: a path may be too long with one
    except (OSError, RecursionError) as error:  # as for a path of many hundred folders
        reason = getattr(error, "strerror", None) or error
        return f"--knorm-report {folder}: nothing can be written there ({reason}); name another folder"
    return ""


def write(results: Results, folder: str | os.PathLike[str]) -> list[tuple[str, bool]]:
    """Write results and page; per file a sentence that says where it lies or why not, and whether that is bad news.

    What cannot be written takes nothing from the run: its outcome stands, and each file goes without the other.
    """
    from knorm_core.report import write_report

    written = []
    for name, writer in (
        ("results", lambda: write_results(folder, results)),
        ("report", lambda: write_report(results, folder)),
    ):
        try:
            written.append((f"{name}: {writer()}", False))
        except Exception as error:
            written.append((f"{name}: not written, {type(error).__name__}: {error}; the tests' outcome stands", True))
    return written
