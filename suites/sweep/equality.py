"""Results that are compared to the last bit."""

from __future__ import annotations

import dataclasses

import torch


def equal(first, second):
    """Whether two results are equal to the last bit, whatever they are made of."""
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
        )
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return first == second and type(first) is type(second)
