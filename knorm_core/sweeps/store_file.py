"""The store's file: one SQLite table, an entry per result, and a seal that tells a whole entry from a damaged one."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

_APPLICATION = 0x6B6E726D  # "knrm", in the file's header: other databases are left alone
_SCHEMA = 1
_TABLE = """CREATE TABLE results (
    key TEXT PRIMARY KEY,    -- SHA-256 of inputs
    name TEXT NOT NULL,      -- for people
    inputs TEXT NOT NULL,    -- canonical JSON
    computed TEXT NOT NULL,  -- when, UTC
    facts TEXT NOT NULL,     -- JSON
    tensors BLOB NOT NULL,   -- safetensors
    sha256 TEXT NOT NULL     -- of all of the above
) WITHOUT ROWID"""
COLUMNS = "key, name, inputs, computed, facts, tensors, sha256"
INTO_RESULTS = f"INTO results ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"

_PATIENCE = 60.0  # seconds to wait for another run's write
_LARGEST = 1 << 30  # bytes of one entry; a damaged length must not ask for more memory
# Result codes of SQLite that mean damage: a malformed page, no database at all, a length beyond all limits.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG}


class DamagedError(Exception):
    """The file is a store, but not as we write one."""


class ForeignError(Exception):
    """The file is somebody else's, or of another version."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the file without looking into it."""
    return sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file and check that it holds our table and nothing else; a file that does not exist is made.

    Raises:
        DamagedError, ForeignError: it is another.
    """
    file = connect(path)
    try:
        file.text_factory = bytes  # damaged text need not be UTF-8
        file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
        file.execute("PRAGMA synchronous=EXTRA")  # stored is stored, after a power cut too
        mark = _mark(file)
        if mark == (0, 0, []):
            file.executescript(
                f"BEGIN IMMEDIATE; {_TABLE.replace('TABLE', 'TABLE IF NOT EXISTS', 1)};"
                f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_SCHEMA}; COMMIT"
            )
            mark = _mark(file)
        if mark[:2] == (0, 0) and _TABLE.encode() in mark[2]:
            raise DamagedError("it was deleted while it was made")
        if mark[:2] != (_APPLICATION, _SCHEMA):
            raise ForeignError(
                f"it is not a store of this knorm (application id {mark[0]:#x}, schema {mark[1]}; "
                f"not {_APPLICATION:#x}, {_SCHEMA}): name another with --knorm-store, or delete it"
            )
        if mark[2] != [_TABLE.encode()]:  # no table, or a view or a trigger, which would run when looked at
            raise DamagedError("it does not hold the table it should")
    except BaseException:
        file.close()
        raise
    return file


def _mark(file: sqlite3.Connection) -> tuple[int, int, list[bytes]]:
    """Application id, schema version, and the definitions of all tables, read in one transaction."""
    file.execute("BEGIN")
    [application], [schema] = (file.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    tables = [sql for [sql] in file.execute("SELECT sql FROM sqlite_master")]
    file.execute("COMMIT")
    return application, schema, tables


def check(file: sqlite3.Connection) -> None:
    """Check the structure of the whole file, at 300 MB a second."""
    [[answer]] = file.execute("PRAGMA integrity_check(1)")
    if answer != b"ok":
        detail = answer.decode().replace("*** in database main ***", "").split()
        raise DamagedError(f"the file is damaged ({' '.join(detail)})")


def is_sound(path: Path) -> bool:
    """Whether the file can be opened and its structure is whole."""
    try:
        with closing(open_file(path)) as file:
            check(file)
    except (sqlite3.Error, DamagedError) as error:
        if not is_damage(error):
            raise
        return False
    return True


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, rather than locked, full or somebody else's."""
    code = getattr(error, "sqlite_errorcode", 0)
    # A page that ends early: SQLite 3.53 says so of a file that was cut off, where 3.40 calls it malformed.
    return isinstance(error, DamagedError) or code & 0xFF in _DAMAGE or code == sqlite3.SQLITE_IOERR_SHORT_READ


def reason(error: Exception) -> str:
    """An error in words, with its type where the words alone say too little."""
    plain = isinstance(error, sqlite3.Error | DamagedError | ForeignError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def intact(row: tuple[Any, ...]) -> bool:
    """Whether an entry, in the order of `COLUMNS`, is as it was written."""
    *parts, seal = row
    return all(isinstance(part, bytes) for part in row) and (
        seal.decode("latin-1") == seal_of(*parts) and parts[0].decode("latin-1") == sha256(parts[2])
    )


def seal_of(*parts: bytes) -> str:
    """SHA-256 of all other columns of an entry."""
    return sha256(b"".join(hashlib.sha256(part).digest() for part in parts))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
