"""Names say what a thing is: no variable whose name says only that something was got, no class name for two things."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "knorm_core").rglob("*.py"))
FILES = [*PACKAGE, *sorted((ROOT / "suites").rglob("*.py"))]

SAYS_NOTHING = {"one", "found", "told", "shown"}


def bound(node: ast.AST) -> Iterator[str]:
    """Names that a node of a syntax tree binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case (
            ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.alias(asname=str(name))
        ):
            yield name


def test_every_variable_says_what_it_is() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in bound(node)
        if name in SAYS_NOTHING
    ]
    assert not wrong


def test_no_two_public_classes_of_the_package_have_one_name() -> None:
    classes = Counter(
        node.name
        for path in PACKAGE
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in classes.items() if count > 1]
