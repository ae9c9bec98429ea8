"""Processes that are killed (SIGKILL): after a while, or at their k-th change of the file system, exactly there."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Audit events before which a file or folder is still as it was.
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"}


class Process:
    """A fork of this process, so that it starts in milliseconds with everything imported.

    Args:
        action: what it does; it is handed ``tell(number)``, which reaches this process whatever happens next.
        dies_at: kill it in front of its k-th change (1 is the first); never, where it makes fewer.
        below: count only changes below this folder.
    """

    def __init__(
        self, action: Callable[[Callable[[int], Any]], Any], *, dies_at: int | None = None, below: Path | str = ""
    ) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                gc.freeze()  # what this process has is not looked through again, and so not copied
                os.close(self._read)
                _be_quiet()
                if dies_at is not None:
                    _die_at(dies_at, str(below))
                action(lambda number: os.write(write, number.to_bytes(4, "little")))
                status = 0
            os._exit(status)
        os.close(write)

    def wait_for_a_word(self) -> None:
        """Until it has told something, or has ended: on a busy machine a process may take long to begin."""
        select.select([self._read], [], [])

    def has_told(self) -> bool:
        """Whether it has told something, or has ended."""
        return bool(select.select([self._read], [], [], 0)[0])

    def kill(self, after: float) -> None:
        """Kill it ``after`` seconds from now; it may have ended by then."""
        time.sleep(after)
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the number is its own

    def end(self) -> tuple[int, list[int]]:
        """Wait for its end: the exit status (−9 for killed), and all that it told."""
        with os.fdopen(self._read, "rb") as pipe:
            sent = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        numbers = [int.from_bytes(sent[at : at + 4], "little") for at in range(0, len(sent), 4)]
        return os.waitstatus_to_exitcode(status), numbers


def killed_at(change: int, action: Callable[[], Any]) -> bool:
    """Whether the action was killed in front of that change; else it went through without an exception."""
    status, _ = Process(lambda _: action(), dies_at=change).end()
    assert status in (0, -signal.SIGKILL), f"the process failed, with status {status}"
    return status != 0


def _be_quiet() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.stdout = sys.stderr = os.fdopen(nothing, "w")


def _die_at(change: int, below: str) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(below) and os.devnull not in arguments:
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
