"""The user's cache folder, and folders in it that appear whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from knorm_core.inputs.checkpoints import ModelNotFoundError


def cache_folder() -> Path:
    """The user's cache folder of this project; ``KNORM_CACHE`` moves it.

    A user without a home (``docker run --user 12345``) gets a folder of their own among the system's temporary files.
    """
    import platformdirs

    if named := os.environ.get("KNORM_CACHE"):
        return Path(named)
    if os.path.expanduser("~") == "~":  # neither HOME nor an entry in the list of users
        return _own_temporary_folder()
    return Path(platformdirs.user_cache_dir("knorm", appauthor=False))


@functools.cache  # one for all of a process, should it be a new one
def _own_temporary_folder() -> Path:
    """A folder that nobody else can have put anything into: everybody may make one of its name before."""
    folder = Path(tempfile.gettempdir()) / f"knorm-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


def made_once(folder: Path, make: Callable[[Path], None], what: str) -> None:
    """Make a folder that is not there, by ``make(unfinished folder)``; ``what`` is in it, for the message.

    The folder appears in one rename, so an interruption leaves nothing half-written, and of two processes
    at once the second waits for the first.

    Raises:
        ModelNotFoundError: the disk is full, or the cache folder cannot be written.
    """
    from filelock import FileLock

    if os.path.exists(folder):  # Path.exists raises where a name is too long
        return
    with _kept(folder.parent, what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
                try:
                    make(unfinished)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _kept(folder: Path, what: str) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into an error that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # transformers' own, about what it reads
            raise
        raise ModelNotFoundError(
            f"{what} cannot be kept in {folder} ({error}): make room there, or name another folder with KNORM_CACHE"
        ) from error
