"""Moving staged files into place, all of them or none, whenever the process is killed.

Files can only be replaced one by one. So the staging folder is first renamed to ``.accepted``, which decides:
before it, all is old; after it, all is new, since whoever comes next finishes what was not moved yet.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ACCEPTED = ".accepted"


def replace_all(staging: Path, root: Path) -> None:
    """Put every file of a folder beside ``root``'s own into the same place below ``root``; the folder is used up."""
    finish(root)
    staging.rename(root / ACCEPTED)
    finish(root)


def finish(root: Path) -> int:
    """Move into place what was accepted, by a run that was killed or by this one; how many files that was.

    Two runs may do so at once: each file is moved by one of them, and only empty folders are removed.
    """
    moved = 0
    for folder, _, names in os.walk(root / ACCEPTED, topdown=False):
        place = root / Path(folder).relative_to(root / ACCEPTED)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.replace(Path(folder, name), place / name)
                moved += 1
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return moved
