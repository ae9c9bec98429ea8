"""A damaged store is replaced by a new one that has its undamaged entries; the damaged file is kept."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knorm_core.sweeps.store_file import (
    COLUMNS,
    INTO_RESULTS,
    DamagedError,
    connect,
    intact,
    is_damage,
    is_sound,
    open_file,
)

_DIGITS = 3  # of a key: what a damaged file has is read in 16 ** _DIGITS ranges


def replace_damaged(path: Path) -> tuple[Path, int] | None:
    """Replace a damaged file, in one step, by a new one with its undamaged entries, and keep the damaged one.

    If the run is killed or the disk is full, the damaged file is still in place, and the next run begins again.

    Returns:
        Where the damaged file is now, and how many entries were whole; None if another run has replaced it already.
    """
    from filelock import FileLock

    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    new = path.with_name(f".{path.name}.new")
    with FileLock(f"{path}.lock"):
        if is_sound(path):
            return None
        try:
            _delete(new)  # of a run that was killed
            with _held(path):
                saved = _take_over(path, new)
                _second_name(path, aside)
                # Beside a new file, it would be taken for that one's.
                with suppress(FileNotFoundError):
                    os.replace(f"{path}-journal", f"{aside}-journal")
                os.replace(new, path)
        finally:
            _delete(new)
    return aside, saved


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Lock the file against other writers, unless it is too damaged to be locked."""
    with closing(connect(path)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if not is_damage(error):  # another run has been writing for a minute
                raise
        yield


def _take_over(damaged: Path, path: Path) -> int:
    """Copy all readable, undamaged entries into a new store; return how many."""
    with closing(open_file(path)) as new:
        new.execute("BEGIN")
        with suppress(DamagedError), closing(_open_damaged(damaged)) as old:
            for row in filter(intact, _readable(old)):
                *texts, tensors, seal = row
                texts = [text.decode() for text in texts]
                new.execute(f"INSERT OR IGNORE {INTO_RESULTS}", (*texts, tensors, seal.decode()))
        new.execute("COMMIT")
        [[saved]] = new.execute("SELECT count(*) FROM results")
    return int(saved)


def _open_damaged(path: Path) -> sqlite3.Connection:
    try:
        return open_file(path)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        raise DamagedError(str(error)) from error


def _readable(file: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Every readable entry; some come more than once."""
    try:
        yield from file.execute(f"SELECT {COLUMNS} FROM results")
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
    else:
        return
    for digits in itertools.product("0123456789abcdef", repeat=_DIGITS):
        begin = "".join(digits)
        for order in ("ASC", "DESC"):  # from both ends, where a damaged page lies between
            if (yield from _range(file, begin, order)):
                break


def _range(file: sqlite3.Connection, begin: str, order: str) -> Generator[tuple[Any, ...], None, bool]:
    """Yield the entries whose keys have this beginning; return False if damage stopped the reading."""
    # One at a time: Python's sqlite3 looks ahead, and would lose the last one before a damaged page.
    select = f"SELECT {COLUMNS} FROM results WHERE key > ? AND key < ? ORDER BY key {order} LIMIT 1"
    after, before = begin, begin + "g"
    while True:
        try:
            entry = file.execute(select, (after, before)).fetchone()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            return False
        if entry is None:
            return True
        key = entry[0].decode("latin-1") if isinstance(entry[0], bytes) else ""
        if not after < key < before:  # out of order, and maybe without end
            return False
        yield entry
        after, before = (key, before) if order == "ASC" else (after, key)


def _second_name(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copy2(path, other)


def _delete(path: Path) -> None:
    for each in (path, Path(f"{path}-journal")):
        each.unlink(missing_ok=True)
