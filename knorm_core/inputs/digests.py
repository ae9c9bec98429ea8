"""SHA-256 of files: of what is named, and of what is opened."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_PIECE = 1 << 24  # bytes of a file that are hashed at a time


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 of one file, or of several files' SHA-256 one after the other."""
    digests = [file_digest(path) for path in paths]
    if len(digests) == 1:
        return digests[0].hex()
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of one file."""
    digest = hashlib.sha256()
    # Not a bytearray: glibc does not give back a buffer that another thread than the main one has freed.
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, _PIECE) as buffer, memoryview(buffer) as piece:
        # Not hashlib.file_digest: a thread waits for the interpreter's lock after each of its small pieces, which
        # doubles the time of the embedded model's hash beside the imports (1.0 instead of 0.5 s).
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.digest()


def is_regular(status: os.stat_result) -> bool:
    """Whether a file has an end: pipes and devices need not have one, nor what a kernel shows below /proc and /sys."""
    kernels = [os.stat(place).st_dev for place in ("/proc", "/sys") if os.path.ismount(place)]
    return stat.S_ISREG(status.st_mode) and status.st_dev not in kernels
