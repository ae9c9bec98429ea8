"""What people read at a terminal, whatever it can show, and commands that always end with a status and a sentence."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

# What a terminal obeys in place of showing it, but for line ends and tabs; what turns text round; half a surrogate.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# What stands for a character that an encoding lacks: a minus must not be lost.
_NEAREST = {"−": "-", "–": "-", "±": "+/-", "×": "x", "…": "..."}
_ERRORS = "knorm-nearest"

_NARROWEST = 64  # columns of a table; on a narrower terminal its lines go on below, and no number is cut off
BAD_INPUT, INTERRUPTED = 2, 130


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_NEAREST.get(each, "?") for each in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _nearest)


def plain(text: str, style: str = "") -> Text:
    """Text for rich that is no markup and commands nothing: the names of files, tests and rows may hold anything.

    >>> plain("m[/b]" + chr(27) + "[31m").plain
    'm[/b]\\\\x1b[31m'
    """
    return Text(_COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode(), text), style)


class Terminal(Console):
    """A console of rich that cuts no number off, and of which a reader who has gone is an error.

    By itself rich then ends the process with exit status 1, which means other things here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.width = max(self.width, _NARROWEST)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def in_encoding(text: str, encoding: str | None) -> str:
    """The text with what stands for each character that the encoding lacks.

    >>> in_encoding("−0.5 % … 日", "ascii")
    '-0.5 % ... ?'
    """
    encoding = encoding or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding)


def ended(command: str, run: Callable[[], int]) -> int:
    """Run a command and return its exit status, also where it is interrupted, or its output cannot be written.

    Args:
        command: its name, for the message.
        run: does it; gives the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    try:
        status = run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        sentence, status = "interrupted", INTERRUPTED
    except OSError as error:
        sentence, status = "" if isinstance(error, BrokenPipeError) else str(error), BAD_INPUT
    if sentence:
        with contextlib.suppress(OSError):
            print(f"{command}: {sentence}", file=sys.stderr)
    _drop_output()
    return status


def _drop_output() -> None:
    """Let nothing that cannot be written stay in the buffer: Python would try again at its end, and fail again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
    except AttributeError:  # no standard output at all
        pass
