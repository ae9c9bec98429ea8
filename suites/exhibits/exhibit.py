"""What an exhibit is: a broken variant, its story, and the check that is meant to catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exhibit:
    """A known fault.

    Attributes:
        broken: the deliberately broken compressor or evaluator; its docstring is the story.
        sound: the same without the fault, with the same claims.
        caught_by: name of the check that is meant to catch it.
        source: where it was seen, or what makes it likely.
    """

    broken: Any
    sound: Any
    caught_by: str
    source: str
    story: str

    @property
    def name(self) -> str:
        return self.broken.name


def collector(
    exhibits: list[Exhibit],
    wrap: Callable[[Any], Any],
    sound: Any,
    frame: Callable[[Any], Any] = lambda function: function,
) -> Callable[..., Callable[[Any], Any]]:
    """A decorator ``@exhibit(caught_by, source)`` that adds ``frame(function)`` to ``exhibits``."""

    def exhibit(caught_by: str, source: str, *, sound: Any = sound, wrap: Any = wrap) -> Callable[[Any], Any]:
        def add(function: Any) -> Any:
            story = " ".join((function.__doc__ or "").split())
            broken = frame(function)
            exhibits.append(Exhibit(wrap(broken), wrap(sound), caught_by, source, story))
            return broken

        return add

    return exhibit
