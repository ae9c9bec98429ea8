"""Names of a package that are imported when first used. They stand once, in the package's ``__init__.pyi``.

Type checkers and editors read that stub too, so what they see is what there is.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package (PEP 562).

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``. The stub beside it holds lines ``from module import name as name``.
    """
    stub = ast.parse(Path(file).with_name("__init__.pyi").read_text(encoding="utf-8"))
    module_of = {
        alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def look_up(name: str) -> object:
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    names = sorted(module_of)
    return look_up, lambda: sorted({*vars(import_module(package)), *names}), names
