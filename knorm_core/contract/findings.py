"""What a broken promise looks like: a finding, not a stack trace."""

from __future__ import annotations

import os
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep  # exceptions are placed where it is called from


class Finding(AssertionError):
    """A check failed. The message names the promise, the smallest counter-example, and how to see it again.

    Attributes:
        check: name of the check.
        subject: name of the compressor or evaluator.
        claim: the claim under which the subject is not held to this promise, or how else to leave it out.
        crash: type and place of the exception that broke the promise, or "" where none did.
        snippet: Python that shows the counter-example.
    """

    def __init__(
        self, *, check: str, promise: str, guards: str, subject: str, claim: str, counterexample: Counterexample
    ) -> None:
        broken = counterexample.broken
        self.check, self.subject, self.claim = check, subject, claim
        self.crash, self.snippet = broken.crash, counterexample.snippet
        self._rows = [
            ("promise", promise),
            ("example", "\n".join(counterexample.example)),
            *(("where" if not index else "", f"{name} {value}") for index, (name, value) in enumerate(broken.where)),
            ("expected", broken.expected),
            ("got", broken.got),
            ("picture", broken.picture),
            ("against", guards),
            ("claim", claim),
            ("see it", self.snippet),
        ]
        super().__init__()

    def __str__(self) -> str:
        lines = [f"{self.subject} does not keep the promise {self.check!r}", ""]
        for label, text in self._rows:
            if text:
                first, *rest = _wrap(text, verbatim=label in ("example", "picture", "see it"))
                lines += [f"  {label:<9} {first}".rstrip(), *(f"{'':12}{line}".rstrip() for line in rest)]
        return "\n".join(lines)

    @property
    def expected(self) -> str:
        """What the promise asks for in the counter-example."""
        return dict(self._rows)["expected"]

    @property
    def got(self) -> str:
        """What came instead."""
        return dict(self._rows)["got"]

    @property
    def example(self) -> str:
        """The counter-example, as text."""
        return dict(self._rows)["example"]

    def note_the_same_crash_in(self, checks: Sequence[str]) -> None:
        """Say which other checks ended in the same exception, so that it is reported once."""
        self._rows.insert(-3, ("also in", ", ".join(checks)))


Finding.__module__ = "knorm_core.contract"  # its public name, which pytest prints


class Broken(Exception):
    """Raised inside a check: what was expected and what came, for one counter-example."""

    def __init__(self, *, expected: object, got: object, picture: str = "", crash: str = "", **where: object) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.promise = ""  # name of the check whose promise it is, where another one came upon it
        self.expected, self.got, self.picture, self.crash = brief(expected), brief(got), picture, crash
        self.where: list[tuple[str, str]] = [(name.replace("_", " "), brief(value)) for name, value in where.items()]


class Counterexample(Exception):
    """A broken promise on its way from the search to the finding.

    Attributes:
        exempts: the changes of its claims under which the subject would not be held to what broke here.
        explains: names of the checks that would say the same in other words. Where there are any, all others
            go on under the claims that were made.
    """

    def __init__(
        self,
        broken: Broken,
        example: list[str],
        snippet: str,
        exempts: Mapping[str, Any] | None = None,
        explains: tuple[str, ...] = (),
    ) -> None:
        self.broken, self.example, self.snippet = broken, example, snippet
        self.exempts, self.explains = exempts or {}, explains
        # Kept for as long as its subject: it must not keep the frames, and so the models, that it came through.
        broken.__traceback__ = broken.__cause__ = broken.__context__ = None


@dataclass(frozen=True)
class Diagnosis:
    """The claims under which the checks go on, and what was found on the way.

    Attributes:
        claims: those of the subject, narrowed by everything that was found.
        counterexamples: what was found, by the name of the check that reports it.
        unusable: name of the check that says why nothing else can be asked, or "".
        explained: by name of a check that would say the same again, that of the check that says it.
    """

    claims: Any
    counterexamples: dict[str, Counterexample] = field(default_factory=dict)
    unusable: str = ""
    explained: Mapping[str, str] = field(default_factory=dict)


def crashed(expected: str, error: Exception, **where: Any) -> Broken:
    """The broken promise of a call that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if not frame.filename.startswith(_TORCH)), frames[-1])
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}, in {frame.name}"
    return Broken(
        expected=expected,
        got=f"{type(error).__name__}: {error} ({place})",
        crash=f"{type(error).__name__} at {place}",
        **where,
    )


def brief(value: object) -> str:
    """Numbers to eight significant digits, which still shows the last bits of a float32."""
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, list):
        return f"[{', '.join(map(brief, value))}]"
    return str(value)


def describe(arguments: Mapping[str, object]) -> str:
    """``name=value`` for every argument, as in a call (NaN has a repr that Python cannot read)."""
    return ", ".join(
        f"{name}=float({str(value)!r})" if value != value else f"{name}={spell(value)}"
        for name, value in arguments.items()
    )


def spell(value: object) -> str:
    """A value as it is written in code: functions and classes by their names."""
    return str(getattr(value, "__name__", None) or repr(value))


def _wrap(text: str, *, verbatim: bool) -> list[str]:
    lines = text.split("\n")
    return lines if verbatim else [part for line in lines for part in textwrap.wrap(line, 100) or [""]]
