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
import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
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
_LARGEST = 1 << 30  # bytes of one entry; a damaged length must not ask for more memory
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
            with closing(_open(self.path)) as file:
                if not self._checked:  # once a run: keys that are out of order would be missed without a word
                    _check(file)
                    self._checked = True
                return action(file)
        except (sqlite3.Error, _DamagedError) as error:
            if not _is_damage(error):
                raise
            self._replace(error)
        with closing(_open(self.path)) as file:
            return action(file)

    def _replace(self, error: Exception) -> None:
        """Move a damaged file aside, and take what is whole of it over into a new one."""
        from filelock import FileLock

        with FileLock(f"{self.path}.lock"):
            if _is_sound(self.path):  # another run has been here
                return
            aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            # Its journal first: beside a new file, it would be taken for that one's.
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}-journal", f"{aside}-journal")
            os.replace(self.path, aside)
            saved = _take_over(aside, self.path)
        _warn(f"{self.path}: {_reason(error)}. Moved to {aside}; a new store has the {saved} results that were whole")


def store_of(option: str | None, *, fresh: bool = False) -> Store | None:
    """The store that an option names: a path, ``off`` (None), or the default below the user's cache folder.

    Without an option the environment variable ``KNORM_STORE`` is asked, with the same values.
    """
    named = option or os.environ.get("KNORM_STORE")
    if named == OFF:
        return None
    if not named:
        from knorm_core.models import cache_folder

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
    except (sqlite3.Error, _DamagedError):
        return False
    return True


def _take_over(damaged: Path, path: Path) -> int:
    """Copy what can be read and is whole into a new store; how many entries that was."""
    saved = 0
    with closing(_open(path)) as new, suppress(sqlite3.Error, _DamagedError), closing(_open(damaged)) as old:
        for row in old.execute(f"SELECT {_COLUMNS} FROM results"):
            if _intact(row):
                *texts, tensors, seal = row
                texts = [text.decode() for text in texts]
                new.execute(f"INSERT OR IGNORE {_INTO_RESULTS}", (*texts, tensors, seal.decode()))
                saved += 1
    return saved


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


def _reason(error: Exception) -> str:
    plain = isinstance(error, sqlite3.Error | _DamagedError | _ForeignError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _warn(sentence: str) -> None:
    # Not with the source line that warns, which tells the person at the terminal nothing.
    warnings.warn_explicit(sentence, StoreWarning, "knorm", 1)
