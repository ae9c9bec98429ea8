"""Results of the store's tests: a value for every number, and damage to the pages that hold it."""

from __future__ import annotations

import hashlib
import warnings

from knorm_core.sweeps.store import StoreWarning, canonical


def inputs(number):
    return {"what": "a number", "number": number}


def value(number):
    """Long enough for pages of its own, and different for every number."""
    return {"number": number}, number.to_bytes(4, "little") * 1500


def put(store, *numbers):
    for number in numbers:
        store.put(f"number {number}", inputs(number), *value(number))


def get(store, number):
    entry = store.get(f"number {number}", inputs(number), decode=lambda facts, tensors: (facts, tensors))
    return None if entry is None else entry.value


def quietly(action, *arguments):
    """The value, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return action(*arguments), [str(warning.message) for warning in said if warning.category is StoreWarning]


def page_of(content, number):
    return content.index(canonical(inputs(number)).encode()) // 4096 * 4096


def damage_page_of(store, number, length):
    """Overwrite the beginning of the page that holds a number's inputs; return the file's content."""
    content = bytearray(store.path.read_bytes())
    page = page_of(content, number)
    content[page : page + length] = b"\xaa" * length
    store.path.write_bytes(content)
    return content


def in_the_file(content, numbers):
    """Of these numbers, those whose keys are still there, whatever SQLite makes of the file around them."""
    return [n for n in numbers if hashlib.sha256(canonical(inputs(n)).encode()).hexdigest().encode() in content]
