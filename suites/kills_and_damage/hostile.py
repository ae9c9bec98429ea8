"""Content that is made to hurt, and what a refusal of it has to say."""

from __future__ import annotations

import json
import struct

import pytest

few_and_many = pytest.mark.parametrize(
    "examples", [pytest.param(4, marks=pytest.mark.full), pytest.param(250, marks=pytest.mark.faults_injected)]
)
DEEP = b'{"a":' * 100_000


def assert_refused(error, kind, *named):
    assert type(error) is kind, error
    assert all(str(name) in str(error) for name in named), error
    assert len(str(error)) < 2000


def header(content, length=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


HEADERS = {
    "empty": b"",
    "a length of 2**60 bytes": header({}, 1 << 60),
    "a tensor of 2**60 elements": header({"x": {"dtype": "F64", "shape": [1 << 60], "data_offsets": [0, 1 << 63]}}),
    "a shape that overflows": header({"x": {"dtype": "F64", "shape": [1 << 40] * 4, "data_offsets": [0, 8]}})
    + bytes(8),
    "overlapping tensors": header({n: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for n in "xy"}) + bytes(8),
    "JSON of many levels": header(DEEP),
    "a pickle": b"\x80\x04cos\nsystem\n(S'exit'\ntR.",
}
