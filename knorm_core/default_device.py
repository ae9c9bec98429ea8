"""The CPU as the default device of torch, for code that makes index tensors and moves them itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def cpu_by_default() -> Iterator[None]:
    """Make the CPU the default device for the block, whatever default (such as "meta") the caller has set."""
    try:
        default = torch.get_default_device().type
    except AttributeError:  # torch 2.6, once a default was set and taken back; transformers asks for it, too
        torch.set_default_device("cpu")
        try:
            yield
        finally:
            torch.set_default_device(None)
        return
    if default == "cpu":  # the rule; the context slows every call of torch down
        yield
    else:
        with torch.device("cpu"):
            yield
