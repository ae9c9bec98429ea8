"""Results on disk: a result is computed once, and read for the same inputs from then on.

One SQLite file, an entry per result (`knorm_core.sweeps.store_file`). The key is the SHA-256 of the inputs as
canonical JSON; inputs and the time of computing are kept beside, readable with ``sqlite3``. Numbers are
safetensors, the rest is JSON, and a SHA-256 over all of it tells a damaged entry from a whole one: nothing read
from here is run or unpickled.

The store is a convenience, so its troubles never end a run. A damaged entry is named and computed again, a
damaged file is moved aside and a new one begun, and on a full disk or in a folder that cannot be written the
run goes on without storing; each is said once, as a `StoreWarning`.

The journal is SQLite's default and not its write-ahead log, which must not lie on a network folder, where the
homes of a cluster are. The file is opened for every access: a result takes seconds to compute and a
millisecond to store, and so threads, forks, and other runs that replace the file need no thought.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from knorm_core.sweeps.salvage import replace_damaged
from knorm_core.sweeps.store_file import (
    COLUMNS,
    INTO_RESULTS,
    DamagedError,
    ForeignError,
    check,
    intact,
    is_damage,
    open_file,
    reason,
    seal_of,
    sha256,
)

Value = TypeVar("Value")
Inputs = Mapping[str, Any]

SUFFIX = ".sqlite"
OFF = "off"

_TRIES, _PAUSE = 200, 0.02  # of an access during which the file is deleted or replaced; seconds between two


class StoreWarning(UserWarning):
    """Something is wrong with the store. The run goes on and computes what it would have read."""


class StoredResult(NamedTuple):
    """A stored result and when it was computed (ISO 8601, UTC)."""

    value: Any
    computed: str


class Store:
    """Results by what they were computed from.

    Args:
        path: of the SQLite file, with the suffix ``.sqlite``; made, with its folders, when first written to.
        fresh: look nothing up, so that everything is computed anew, and replaces what was stored.

    Attributes:
        reused: per result that was looked up with success, when it was computed.
        computed: how many results were handed in, whether or not they could be stored.
    """

    def __init__(self, path: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.path = Path(os.path.expanduser(path)).absolute()  # Path's own raises for an unknown ~user
        if self.path.suffix != SUFFIX:  # a damaged store is moved aside: never somebody's other file
            raise ValueError(f"store {str(path)!r}: the name of a store ends in {SUFFIX}")
        self.reused: list[str] = []
        self.computed = 0
        self._reads = not fresh
        self._writes = True
        self._checked = False

    def get(self, name: str, *candidates: Inputs, decode: Callable[[Any, bytes], Value]) -> StoredResult | None:
        """The first candidate that is stored and undamaged, decoded; None if there is none.

        Args:
            name: what to call the result, should something be wrong with it.
            candidates: inputs, each of which would do.
            decode: makes the value of its facts and its tensors (safetensors).
        """
        for inputs in candidates:
            stored = self._look_up(name, inputs, decode) if self._reads and os.path.exists(self.path) else None
            if stored is not None:
                self.reused.append(stored.computed)
                return stored
        return None

    def put(self, name: str, inputs: Inputs, facts: Any, tensors: bytes) -> None:
        """Store one result for good; what was stored for the same inputs is replaced."""
        self.computed += 1
        if not self._writes:
            return
        text = canonical(inputs)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        name = name.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
        parts = (sha256(text.encode()), name, text, now, json.dumps(facts), tensors)
        entry = (*parts, seal_of(*(part if isinstance(part, bytes) else part.encode() for part in parts)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._use(lambda file: file.execute(f"INSERT OR REPLACE {INTO_RESULTS}", entry))
        except (sqlite3.Error, OSError, RecursionError, DamagedError, ForeignError) as error:
            self._writes = False
            _warn(f"{self.path}: {reason(error)}. Results are not stored from here on; the run goes on")

    def _look_up(self, name: str, inputs: Inputs, decode: Callable[[Any, bytes], Value]) -> StoredResult | None:
        key = sha256(canonical(inputs).encode())
        try:
            row = self._use(
                lambda file: file.execute(f"SELECT {COLUMNS} FROM results WHERE key = ?", (key,)).fetchone()
            )
        except (sqlite3.Error, OSError, DamagedError, ForeignError) as error:
            self._reads = False
            _warn(f"{self.path}: {reason(error)}. Nothing is looked up from here on, everything is computed")
            return None
        if row is None:
            return None
        try:
            if not intact(row):
                raise DamagedError("its SHA-256 is not that of its content")
            return StoredResult(decode(json.loads(row[4]), row[5]), row[3].decode())
        except Exception as error:  # whatever a decoder makes of bytes that are not its own
            _warn(f"{self.path}: the entry of {name} is damaged ({reason(error)}): it is computed anew")
            return None

    def _use(self, action: Callable[[sqlite3.Connection], Value]) -> Value:
        """Do something with the file. If the file turns out to be damaged, replace it and do it with the new one."""
        try:
            return self._with_file(action)
        except (sqlite3.Error, DamagedError) as error:
            if not is_damage(error):
                raise
            replaced = replace_damaged(self.path)
            if replaced:
                aside, saved = replaced
                now = f"Moved to {aside}; a new store has the {saved} results that were whole"
                _warn(f"{self.path}: {reason(error)}. {now}")
        return self._with_file(action)

    def _with_file(self, action: Callable[[sqlite3.Connection], Value]) -> Value:
        # Try until the file is still the same afterwards: another run may replace a damaged file, and anybody may
        # delete it, together with the journal of an unfinished write.
        for remaining in reversed(range(_TRIES)):
            opened = _which(self.path)
            try:
                with closing(open_file(self.path)) as file:
                    if not self._checked:  # once a run: keys that are out of order would be missed without a word
                        check(file)
                        self._checked = True
                    value = action(file)
            except (sqlite3.Error, DamagedError) as error:
                gone = _which(self.path) != opened or _is_gone(error, self.path)
                if not (gone and remaining):
                    raise
            else:
                if opened is None or _which(self.path) == opened:
                    return value
            time.sleep(_PAUSE)
        raise OSError(f"it was deleted {_TRIES} times while something was stored")


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


def _which(path: Path) -> tuple[int, int] | None:
    """Identity of the file at this path: another one that takes its place has another."""
    with suppress(FileNotFoundError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _is_gone(error: Exception, path: Path) -> bool:
    """Whether the file, or the journal of a write, was deleted in the middle of an access."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return bool(code != sqlite3.SQLITE_IOERR_WRITE)  # which a full disk gives
    return code & 0xFF == sqlite3.SQLITE_READONLY and os.access(path.parent, os.W_OK)


def _warn(sentence: str) -> None:
    # Not with the source line that warns, which tells the person at the terminal nothing.
    warnings.warn_explicit(sentence, StoreWarning, "knorm", 1)
