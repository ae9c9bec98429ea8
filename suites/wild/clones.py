"""Modules of other people's repositories, imported from the clones that the user has: DIR/<repository>.

Nothing of theirs is here. A file is pinned by its SHA-256 beside repository and commit, so that a clone (or an
unpacked archive) of another version is told apart before anything of it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest


@dataclass(frozen=True)
class Source:
    """One file of a public repository.

    Attributes:
        repository: owner and name on GitHub.
        commit: 40 hex digits.
        file: path of the module in the repository.
        sha256: of that file.
        root: folder in the repository that its own imports start from.
        distribution: name on PyPI, where tox installs it instead of a clone; ``commit`` is its version then.
        stubs: modules that it imports and that nothing here uses, left out: every name in them is None.
        missing: names, such as "module.Name", that it imports from installed packages which no longer have them.
    """

    repository: str
    commit: str
    file: str
    sha256: str
    root: str = ""
    stubs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    distribution: str = ""

    @property
    def folder(self) -> str:
        """Name of the clone in DIR."""
        return self.repository.split("/")[1]

    def place(self, lines: str) -> str:
        """A link to lines, such as "33" or "41-52" of this file, or "other/file.py:33" of the same repository."""
        file, _, numbers = lines.rpartition(":")
        file = file or self.file
        if self.distribution:
            return f"{file}:{numbers}"
        first, _, last = numbers.partition("-")
        anchor = f"#L{first}" + (f"-L{last}" if last else "")
        return f"[{file}:{numbers}](https://github.com/{self.repository}/blob/{self.commit}/{file}{anchor})"


def load(source: Source, clones: Path) -> ModuleType:
    """Import the pinned file from its clone. What it prints, warns and patches on import is undone where it can be.

    Raises:
        pytest.UsageError: there is no such clone, or its file is not the pinned one.
    """
    if source.distribution:
        return _installed(source)
    path = clones / source.folder / source.file
    if not path.is_file():
        raise pytest.UsageError(
            f"{path} does not exist: git clone https://github.com/{source.repository} {clones / source.folder} && "
            f"git -C {clones / source.folder} checkout {source.commit}"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise pytest.UsageError(
            f"{path} is not the pinned file: git -C {clones / source.folder} checkout {source.commit}"
        )
    root = clones / source.folder / source.root
    name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
    with _importing_from(root, source), warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere):
            return importlib.import_module(name)


def _installed(source: Source) -> ModuleType:
    try:
        version = importlib.metadata.version(source.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    if version != source.commit:
        raise pytest.UsageError(
            f"{source.distribution} is {version} here, not {source.commit}: tox -e wild installs it"
        )
    return importlib.import_module(source.file.removesuffix(".py").replace("/", "."))


@contextlib.contextmanager
def _importing_from(root: Path, source: Source) -> Iterator[None]:
    """Imports start at ``root``; afterwards the modules from there are forgotten, since names such as cache recur."""
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    for stub in source.stubs:
        if stub not in sys.modules:
            sys.modules[stub] = _Stub(stub)
    try:
        with contextlib.ExitStack() as patches:
            for module, _, name in (missing.rpartition(".") for missing in source.missing):
                patches.enter_context(patch.object(importlib.import_module(module), name, None, create=True))
            yield
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name in source.stubs or (file and Path(file).is_relative_to(root)):
                del sys.modules[name]
        importlib.invalidate_caches()


class _Stub(ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
