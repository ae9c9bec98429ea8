"""A file that is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """What is written to the yielded file takes the place of ``path`` when the block ends without an error.

    The folder is made where it is missing. The file's mode follows the umask.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; what was at ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")
    # Not tempfile, whose files are readable by their owner alone.
    with beside.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            beside.unlink()
            raise
    os.replace(beside, path)
