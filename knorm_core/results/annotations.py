"""Values that were read from a file, held against the annotations of what they are for."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Record = TypeVar("Record")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON or TOML is of the annotated type; an int is a float, a bool is neither.

    >>> from collections.abc import Sequence
    >>> fits([1, 0.5], Sequence[float]), fits([1, True], Sequence[float]), fits("ab", Sequence[str])
    (True, False, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if hint is Any:
        return True
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, typing.cast(Any, hint))
    kind = origin or hint
    if kind is Mapping:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(fits(each, arguments[0]) for each in value)
    return isinstance(value, kind)


def record_of(kind: type[Record], content: Any) -> Record:
    """A dataclass from the mapping that `dataclasses.asdict` made of it, and of all dataclasses within.

    Raises:
        TypeError: a field is missing, unknown, or has another type than its annotation says.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(content, dict):
        raise TypeError(f"{content!r} is not a record of {kind.__name__}")
    values = {name: _nested(value, hints.get(name)) for name, value in content.items()}
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r}, not {getattr(hints[name], '__name__', hints[name])}")
    return kind(**values)


def _nested(value: Any, hint: Any) -> Any:
    arguments: tuple[Any, ...] = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return record_of(hint, value)
    if (
        isinstance(value, list)
        and arguments
        and dataclasses.is_dataclass(arguments[0])
        and isinstance(arguments[0], type)
    ):
        return [record_of(arguments[0], each) for each in value]
    return value
