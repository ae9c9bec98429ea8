"""Results on disk: what was computed once is not computed again for the same inputs.

One SQLite file, an entry per result. The key is the SHA-256 of the inputs as canonical JSON; inputs and the
time of computing are kept beside, readable with ``sqlite3``. Numbers are safetensors, the rest is JSON, and a
SHA-256 over all of it tells a damaged entry from a whole one: nothing read from here is run or unpickled.

The store is a convenience, so its troubles never end a run. A damaged entry is named and computed again, a
damaged file is moved aside and a new one begun, and on a full disk or in a folder that cannot be written the
run goes on without storing; each is said once, as a `StoreWarning`.

The journal is SQLite's default and not its write-ahead log, which must not lie on a network folder, where the
homes of a cluster are. The file is opened for every access: a result takes seconds to compute and a
millisecond to store, and so threads, forks, and other runs that replace the file need no thought.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Value = TypeVar("Value")
Inputs = Mapping[str, Any]

SUFFIX = ".sqlite"
OFF = "off"

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
_COLUMNS = "key, name, inputs, computed, facts, tensors, sha256"
_INTO_RESULTS = f"INTO results ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"

_PATIENCE = 60.0  # seconds to wait for another run's write
_TRIES, _PAUSE = 200, 0.02  # of an access during which the file is deleted or replaced; seconds between two
_LARGEST = 1 << 30  # bytes of one entry; a damaged length must not ask for more memory
_DIGITS = 3  # of a key: what a damaged file has is read in 16 ** _DIGITS ranges
# Result codes of SQLite that mean damage: a malformed page, no database at all, a length beyond all limits.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG}


class StoreWarning(UserWarning):
    """Something is wrong with the store; the run goes on, computing what it would have read."""


class Found(NamedTuple):
    """A stored result and when it was computed (ISO 8601, UTC)."""

    value: Any
    computed: str


class _DamagedError(Exception):
    """The file is ours and not as we write it."""


class _ForeignError(Exception):
    """The file is somebody else's, or of another version."""


class Store:
    """Results by what they were computed from.

    Args:
        path: of the SQLite file, with the suffix ``.sqlite``; made, with its folders, when first written to.
        fresh: look nothing up, so that everything is computed anew, and replaces what was stored.

    Attributes:
        found: per result that was looked up with success, when it was computed.
        computed: how many results were handed in, whether or not they could be stored.
    """

    def __init__(self, path: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.path = Path(os.path.expanduser(path)).absolute()  # Path's own raises for an unknown ~user
        if self.path.suffix != SUFFIX:  # a damaged store is moved aside: never somebody's other file
            raise ValueError(f"store {str(path)!r}: the name of a store ends in {SUFFIX}")
        self.found: list[str] = []
        self.computed = 0
        self._reads = not fresh
        self._writes = True
        self._checked = False

    def get(self, name: str, *candidates: Inputs, decode: Callable[[Any, bytes], Value]) -> Found | None:
        """The first of the candidates that is stored whole, decoded; None where none is.

        Args:
            name: what to call the result, should something be wrong with it.
            candidates: inputs, each of which would do.
            decode: makes the value of its facts and its tensors (safetensors).
        """
        for inputs in candidates:
            found = self._look_up(name, inputs, decode) if self._reads and os.path.exists(self.path) else None
            if found is not None:
                self.found.append(found.computed)
                return found
        return None

    def put(self, name: str, inputs: Inputs, facts: Any, tensors: bytes) -> None:
        """Store one result for good; what was stored for the same inputs is replaced."""
        self.computed += 1
        if not self._writes:
            return
        text = canonical(inputs)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        name = name.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
        parts = (_sha256(text.encode()), name, text, now, json.dumps(facts), tensors)
        entry = (*parts, _seal(*(part if isinstance(part, bytes) else part.encode() for part in parts)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._use(lambda file: file.execute(f"INSERT OR REPLACE {_INTO_RESULTS}", entry))
        except (sqlite3.Error, OSError, RecursionError, _DamagedError, _ForeignError) as error:
            self._writes = False
            _warn(f"{self.path}: {_reason(error)}. Results are not stored from here on; the run goes on")

    def _look_up(self, name: str, inputs: Inputs, decode: Callable[[Any, bytes], Value]) -> Found | None:
        key = _sha256(canonical(inputs).encode())
        try:
            row = self._use(
                lambda file: file.execute(f"SELECT {_COLUMNS} FROM results WHERE key = ?", (key,)).fetchone()
            )
        except (sqlite3.Error, OSError, _DamagedError, _ForeignError) as error:
            self._reads = False
            _warn(f"{self.path}: {_reason(error)}. Nothing is looked up from here on, everything is computed")
            return None
        if row is None:
            return None
        try:
            if not _intact(row):
                raise _DamagedError("its SHA-256 is not that of its content")
            return Found(decode(json.loads(row[4]), row[5]), row[3].decode())
        except Exception as error:  # whatever a decoder makes of bytes that are not its own
            _warn(f"{self.path}: the entry of {name} is damaged ({_reason(error)}): it is computed anew")
            return None

    def _use(self, action: Callable[[sqlite3.Connection], Value]) -> Value:
        """Do something with the file; where that shows it to be damaged, begin a new one and do it there."""
        try:
            return self._with_file(action)
        except (sqlite3.Error, _DamagedError) as error:
            if not _is_damage(error):
                raise
            self._replace(error)
        return self._with_file(action)

    def _with_file(self, action: Callable[[sqlite3.Connection], Value]) -> Value:
        # Until it was done in the file that is there afterwards: another run may replace a damaged one, and anybody
        # may delete it, with the journal of a write that is under way.
        for remaining in reversed(range(_TRIES)):
            opened = _which(self.path)
            try:
                with closing(_open(self.path)) as file:
                    if not self._checked:  # once a run: keys that are out of order would be missed without a word
                        _check(file)
                        self._checked = True
                    value = action(file)
            except (sqlite3.Error, _DamagedError) as error:
                gone = _which(self.path) != opened or _is_gone(error, self.path)
                if not (gone and remaining):
                    raise
            else:
                if opened is None or _which(self.path) == opened:
                    return value
            time.sleep(_PAUSE)
        raise OSError(f"it was deleted {_TRIES} times while something was stored")

    def _replace(self, error: Exception) -> None:
        """Put a new file with what is whole of a damaged one in its place, in one step, and keep the damaged one.

        Killed, or on a full disk, the damaged one is still there, and the next run begins again.
        """
        from filelock import FileLock

        aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        new = self.path.with_name(f".{self.path.name}.new")
        journal = Path(f"{self.path}-journal")
        with FileLock(f"{self.path}.lock"):
            if _is_sound(self.path):  # another run has been here
                return
            try:
                _delete(new)  # of a run that was killed
                with _held(self.path):
                    saved = _take_over(self.path, new)
                    _second_name(self.path, aside)
                    # Beside a new file, it would be taken for that one's.
                    with suppress(FileNotFoundError):
                        os.replace(journal, f"{aside}-journal")
                    os.replace(new, self.path)
            finally:
                _delete(new)
        _warn(f"{self.path}: {_reason(error)}. Moved to {aside}; a new store has the {saved} results that were whole")


def store_of(option: str | None, *, fresh: bool = False) -> Store | None:
    """The store that an option names: a path, ``off`` (None), or the default below the user's cache folder.

    Without an option the environment variable ``KNORM_STORE`` is asked, with the same values.
    """
    named = option or os.environ.get("KNORM_STORE")
    if named == OFF:
        return None
    if not named:
        from knorm_core.inputs.cache import cache_folder

        return Store(cache_folder() / f"results{SUFFIX}", fresh=fresh)
    return Store(named, fresh=fresh)


def canonical(inputs: Inputs) -> str:
    """Inputs as the JSON that is hashed: keys sorted, no spaces, so that equal inputs are equal text.

    >>> canonical({"b": (1, 2), "a": 0.5})
    '{"a":0.5,"b":[1,2]}'
    """
    return json.dumps(inputs, sort_keys=True, separators=(",", ":"))


def _open(path: Path) -> sqlite3.Connection:
    """The file, made where there is none, with exactly our table in it."""
    file = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
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
            raise _DamagedError("it was deleted while it was made")
        if mark[:2] != (_APPLICATION, _SCHEMA):
            raise _ForeignError(
                f"it is not a store of this knorm (application id {mark[0]:#x}, schema {mark[1]}; "
                f"not {_APPLICATION:#x}, {_SCHEMA}): name another with --knorm-store, or delete it"
            )
        if mark[2] != [_TABLE.encode()]:  # no table, or a view or a trigger, which would run when looked at
            raise _DamagedError("it does not hold the table it should")
    except BaseException:
        file.close()
        raise
    return file


def _mark(file: sqlite3.Connection) -> tuple[int, int, list[bytes]]:
    """Application id, schema version, and the definition of everything in the file, as of one moment."""
    file.execute("BEGIN")
    [application], [schema] = (file.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    tables = [sql for [sql] in file.execute("SELECT sql FROM sqlite_master")]
    file.execute("COMMIT")
    return application, schema, tables


def _check(file: sqlite3.Connection) -> None:
    """Look at the structure of the whole file, 300 MB of it in a second."""
    [[found]] = file.execute("PRAGMA integrity_check(1)")
    if found != b"ok":
        detail = found.decode().replace("*** in database main ***", "").split()
        raise _DamagedError(f"the file is damaged ({' '.join(detail)})")


def _is_sound(path: Path) -> bool:
    try:
        with closing(_open(path)) as file:
            _check(file)
    except (sqlite3.Error, _DamagedError) as error:
        if not _is_damage(error):
            raise
        return False
    return True


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Nobody stores anything in the file meanwhile, where it is whole enough for that."""
    with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if not _is_damage(error):  # another run has been writing for a minute
                raise
        yield


def _take_over(damaged: Path, path: Path) -> int:
    """Copy what can be read and is whole into a new store; how many entries that was."""
    with closing(_open(path)) as new:
        new.execute("BEGIN")
        with suppress(_DamagedError), closing(_open_damaged(damaged)) as old:
            for row in filter(_intact, _readable(old)):
                *texts, tensors, seal = row
                texts = [text.decode() for text in texts]
                new.execute(f"INSERT OR IGNORE {_INTO_RESULTS}", (*texts, tensors, seal.decode()))
        new.execute("COMMIT")
        [[saved]] = new.execute("SELECT count(*) FROM results")
    return int(saved)


def _open_damaged(path: Path) -> sqlite3.Connection:
    try:
        return _open(path)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        raise _DamagedError(str(error)) from error


def _readable(file: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Every entry that can be read, some of them more than once."""
    try:
        yield from file.execute(f"SELECT {_COLUMNS} FROM results")
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
    else:
        return
    for digits in itertools.product("0123456789abcdef", repeat=_DIGITS):
        begin = "".join(digits)
        for order in ("ASC", "DESC"):  # from both ends, where a damaged page lies between
            if (yield from _range(file, begin, order)):
                break


def _range(file: sqlite3.Connection, begin: str, order: str) -> Generator[tuple[Any, ...], None, bool]:
    """Yield the entries whose keys begin so; return False where damage ends them."""
    # One at a time: Python's sqlite3 looks ahead, and would lose the last one before a damaged page.
    select = f"SELECT {_COLUMNS} FROM results WHERE key > ? AND key < ? ORDER BY key {order} LIMIT 1"
    after, before = begin, begin + "g"
    while True:
        try:
            entry = file.execute(select, (after, before)).fetchone()
        except sqlite3.Error as error:
            if not _is_damage(error):
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


def _which(path: Path) -> tuple[int, int] | None:
    """What tells the file at this path from one that takes its place."""
    with suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _delete(path: Path) -> None:
    for each in (path, Path(f"{path}-journal")):
        each.unlink(missing_ok=True)


def _intact(row: tuple[Any, ...]) -> bool:
    *parts, seal = row
    return all(isinstance(part, bytes) for part in row) and (
        seal.decode("latin-1") == _seal(*parts) and parts[0].decode("latin-1") == _sha256(parts[2])
    )


def _seal(*parts: bytes) -> str:
    return _sha256(b"".join(hashlib.sha256(part).digest() for part in parts))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _DamagedError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _is_gone(error: Exception, path: Path) -> bool:
    """Whether the file, or the journal of a write, was deleted in the middle of an access."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return bool(code != sqlite3.SQLITE_IOERR_WRITE)  # which a full disk gives
    return code & 0xFF == sqlite3.SQLITE_READONLY and os.access(path.parent, os.W_OK)


def _reason(error: Exception) -> str:
    plain = isinstance(error, sqlite3.Error | _DamagedError | _ForeignError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _warn(sentence: str) -> None:
    # Not with the source line that warns, which tells the person at the terminal nothing.
    warnings.warn_explicit(sentence, StoreWarning, "knorm", 1)
