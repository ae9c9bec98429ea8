"""Switching Python's garbage collector off while it would only slow things down or disturb a measurement."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the collector off for the block, as `timeit` does, and back to its former state afterwards.

    A collection takes a tenth of a second once transformers is imported, and importing it sets off several.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
