"""Moving staged files into place, all of them or none, whenever the process is killed.

Files can only be replaced one by one. So the staging folder is first renamed to ``.accepted``, which decides:
before it, all is old; after it, all is new, since whoever comes next finishes what was not moved yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path

ACCEPTED = ".accepted"
_ATTEMPTS = 10  # each waits for another run's moving to be finished, by this one


def replace_all(staging: Path, root: Path) -> None:
    """Put every file of a folder beside ``root``'s own into the same place below ``root``; the folder is used up.

    Raises:
        OSError: a file cannot be moved. What was accepted by then is moved by the next `finish`.
    """
    for attempt in range(_ATTEMPTS):
        finish(root)
        try:
            staging.rename(root / ACCEPTED)
            break
        except OSError as error:  # another run has accepted its files in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _ATTEMPTS - 1:
                raise
    finish(root)


def finish(root: Path) -> int:
    """Move into place what was accepted, by a run that was killed or by this one; how many files that was.

    Two runs may do so at once: each file is moved by one of them, and only empty folders are removed.

    Raises:
        OSError: a file cannot be moved.
    """
    moved = 0
    for folder, _, names in os.walk(root / ACCEPTED, topdown=False):
        place = root / Path(folder).relative_to(root / ACCEPTED)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _move(Path(folder, name), place / name)
                moved += 1
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return moved


def _move(source: Path, target: Path) -> None:
    """Replace ``target`` in one step, on another file system too: a link may lead there.

    Raises:
        FileNotFoundError: another run has moved it.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}.{uuid.uuid4().hex}.copy")
        shutil.copy(source, copy)  # with its mode
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(copy, target)
        os.unlink(source)
        for left in target.parent.glob(f".{target.name}.*.copy"):  # by a run that was killed
            left.unlink(missing_ok=True)
