"""What a policy's code can see beside what it is shown: global variables, closures, attributes of its class.

Read from the code, since what it peeks at need not change while it is watched.
"""

from __future__ import annotations

import builtins
import dis
import logging
import types
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from knorm_core.policy import Policy

_CONSTANT = (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device, logging.Logger)


def peeks(policy: Policy) -> list[str]:
    """What `score` and `observe` read that may change, in words; all they call in their own module counts."""
    kinds = [kind for kind in type(policy).__mro__ if issubclass(kind, Policy) and kind is not Policy]
    outside: dict[str, None] = {}
    for kind in kinds:
        if kind.__module__.startswith("knorm_core.policy"):
            continue
        for name, value in vars(kind).items():
            if name.startswith("__"):
                continue  # Python's own, and dataclasses'
            if _holds_data(value):
                outside[f"{name}, {_kind(value)} that all instances of {kind.__name__} share"] = None
            for function in _functions(value):
                outside |= dict.fromkeys(_read_by(function, set()))
    return list(outside)


def _functions(value: Any) -> list[types.FunctionType]:
    if isinstance(value, property):
        return [each for each in (value.fget,) if isinstance(each, types.FunctionType)]
    value = getattr(value, "func", None) if isinstance(value, cached_property) else getattr(value, "__func__", value)
    return [value] if isinstance(value, types.FunctionType) else []


def _read_by(function: types.FunctionType, done: set[types.CodeType]) -> Iterator[str]:
    """Variables outside the function that may change."""
    if function.__code__ in done:
        return
    done.add(function.__code__)
    module = function.__globals__.get("__name__")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and _holds_data(_content(cell)):
            yield f"{name}, {_kind(_content(cell))} of the function that made {function.__qualname__}"
    for name in _globals_of(function.__code__):
        value = function.__globals__.get(name, getattr(builtins, name, None))
        if isinstance(value, types.FunctionType) and value.__module__ == module:
            yield from _read_by(value, done)
        elif _holds_data(value) or (isinstance(value, _CONSTANT) and name in _rebound(function.__globals__)):
            yield f"{name}, {_kind(value)} global of {module}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty yet
        return None


def _globals_of(code: types.CodeType) -> dict[str, None]:
    """Names of globals that the code reads, and what is nested in it."""
    names = {
        str(each.argval): None for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names


def _rebound(variables: dict[str, Any]) -> set[str]:
    """Globals of a module that its functions assign."""
    names: set[str] = set()
    codes = [value.__code__ for value in variables.values() if isinstance(value, types.FunctionType)]
    codes += [
        function.__code__
        for value in variables.values()
        if isinstance(value, type)
        for member in vars(value).values()
        for function in _functions(member)
    ]
    while codes:
        code = codes.pop()
        names |= {str(each.argval) for each in dis.get_instructions(code) if each.opname == "STORE_GLOBAL"}
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return names


def _holds_data(value: Any) -> bool:
    """Whether it may change: no constant, and nothing that is called or imported."""
    if isinstance(value, (tuple, frozenset)):
        return any(map(_holds_data, value))
    if isinstance(value, torch.Tensor):
        return True
    descriptor = isinstance(value, (property, cached_property, staticmethod, classmethod, types.GetSetDescriptorType))
    return not (callable(value) or descriptor or isinstance(value, (*_CONSTANT, types.ModuleType, types.GenericAlias)))


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
