"""The key-value pairs at the head of a GGUF file, read with every length held against what is left of the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

from knorm_core.inputs.checkpoints import ModelNotFoundError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def read_header(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file of version 2 or 3.

    Raises:
        ModelNotFoundError: the file is no GGUF, or its head is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, os.fstat(file.fileno()).st_size).pairs()
    except (OSError, ValueError, struct.error) as error:
        raise ModelNotFoundError(f"{path} is no whole GGUF file ({error})") from None


class _Reader:
    def __init__(self, content: mmap.mmap, size: int) -> None:
        self._content, self._size, self._at = content, size, 0

    def pairs(self) -> dict[str, Any]:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._scalar(4)
        if version not in (2, 3):
            raise ValueError(f"version {version}, neither 2 nor 3")
        self._scalar(10)  # the number of tensors
        pairs: dict[str, Any] = {}
        for _ in range(self._count(_STRING)):
            name = self._value(_STRING)
            if name in pairs:
                raise ValueError(f"{name} twice")
            pairs[name] = self._value(self._scalar(4))
        return pairs

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return str(self._take(self._scalar(10)), "utf-8", "surrogateescape")
        if kind != _ARRAY:
            return self._scalar(kind)
        kind = self._scalar(4)
        if kind == _ARRAY:
            raise ValueError("an array of arrays")
        return [self._value(kind) for _ in range(self._count(kind))]

    def _scalar(self, kind: int) -> Any:
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind}")
        form = _SCALARS[kind]
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, kind: int) -> int:
        """A number of values of this type, which have to fit into what is left."""
        count = self._scalar(10)
        least = 8 if kind == _STRING else struct.calcsize(_SCALARS.get(kind, "<B"))
        if count * least > self._size - self._at:
            raise ValueError(f"{count} values where {self._size - self._at} bytes are left")
        return int(count)

    def _take(self, length: int) -> bytes:
        if length > self._size - self._at:
            raise ValueError(f"{length} bytes where {self._size - self._at} are left")
        self._at += length
        return self._content[self._at - length : self._at]
