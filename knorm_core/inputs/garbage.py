"""Python's garbage collector, kept out of what it would only slow down or disturb."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """No collection meanwhile, as `timeit` does; afterwards the collector is as it was.

    A collection takes a tenth of a second once transformers is imported, and importing it sets off several.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
