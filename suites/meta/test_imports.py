"""Imports go one way: suites, then the wings, then the core, then what it stands on; never in a circle.

Read from the source, so an import within a function or for type checkers alone counts as much as any other.
"""

from __future__ import annotations

import ast
import configparser
import functools
import graphlib
import importlib.metadata
import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "knorm_core"
FILES = sorted(PACKAGE.rglob("*.py"))

# The core: the files at the package's root but for these, and the policies.
AROUND_THE_CORE = {"__init__", "__main__", "evaluator", "lazy"}
CORE = {path.stem for path in PACKAGE.glob("*.py")} - AROUND_THE_CORE | {"policies"}
# A wing, or a file at the package's root, and which others it may import.
MAY_IMPORT = {
    **dict.fromkeys(sorted(CORE), CORE),
    "methods": CORE,
    "evaluator": {*CORE, "methods"},
    "inputs": CORE,
    "sweeps": {*CORE, "methods", "evaluator", "inputs"},
    "experiments": {*CORE, "methods", "evaluator", "sweeps", "results"},
    "latency": {*CORE, "methods", "evaluator", "inputs", "results"},
    "contract": {*CORE, "methods", "evaluator", "lazy"},
    "results": set(),
    "compare": {"results"},
    "claims": {"results"},
    "report": {"results", "compare"},
    "plugin": {
        *CORE, "methods", "evaluator", "inputs", "sweeps", "experiments", "latency",
        "results", "compare", "claims", "report", "contract",
    },
    "lazy": set(),
    "__init__": {"lazy"},  # the names that it hands on are imported when they are first used
    "command": {*CORE, "evaluator", "inputs", "experiments", "compare", "results", "report"},
    "__main__": {"command"},
}  # fmt: skip
WITH_PYTEST = {"plugin", "contract", "command"}
WITHOUT_TORCH = {"results", "compare", "claims", "report", "lazy"}
HEAVY = {"torch", "transformers", "datasets", "numpy", "scipy", "matplotlib", "pandas"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> str:
    """The wing of a module of the package, or its name at the package's root."""
    return [*module.split("."), "__init__"][1]


@functools.cache
def stub(package: str) -> dict[str, str]:
    """The names that a package hands on when they are first used, and the modules they come from."""
    path = ROOT.joinpath(*package.split("."), "__init__.pyi")
    tree = ast.parse(path.read_text("utf-8") if path.exists() else "")
    lines = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in lines for alias in node.names}


def resolved(module: str, name: str) -> str:
    """Where ``from module import name`` leads: to a module of that name, or to where the name is made."""
    whole = f"{module}.{name}"
    return whole if whole in MODULES else stub(module).get(name, module)


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules that a file imports; ``at_import``: only those that Python imports along with it."""
    tree = ast.parse(path.read_text("utf-8"))
    names: set[str] = set()
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {resolved(str(node.module), alias.name) for alias in node.names}
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (at_import and (for_types or isinstance(node, ast.FunctionDef))):
            nodes += ast.iter_child_nodes(node)
    return names


MODULES = {module_of(path): path for path in FILES}
IMPORTS = [(module, other) for module, path in MODULES.items() for other in sorted(imports(path))]


def test_every_place_of_the_package_has_its_line_in_the_table() -> None:
    assert {place(module) for module in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_each_place_imports_only_what_the_table_allows(name: str) -> None:
    allowed = {*MAY_IMPORT[name], name}
    wrong = {
        f"{module} imports {other}"
        for module, other in IMPORTS
        if place(module) == name and other.split(".")[0] == "knorm_core" and place(other) not in allowed
    }
    assert not wrong


def test_the_core_stands_on_torch_transformers_and_numpy_alone() -> None:
    allowed = {"knorm_core", "torch", "transformers", "numpy", *sys.stdlib_module_names}
    wrong = {
        f"{module} imports {other}"
        for module, other in IMPORTS
        if place(module) in CORE and other.split(".")[0] not in allowed
    }
    assert not wrong


# What datasets, jinja2, transformers and pytest have always brought along; and kvpress, whose presses a user brings.
BROUGHT_ALONG = {"pyarrow", "markupsafe", "tokenizers", "packaging", "kvpress"}


def declared(*names: str) -> set[str]:
    """Packages that pyproject.toml and, for the suites' environments, tox.ini name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = list(itertools.chain(project["dependencies"], *project["optional-dependencies"].values()))
    if "tox" in names:
        tox = configparser.RawConfigParser(inline_comment_prefixes="#")
        tox.read(ROOT / "tox.ini", encoding="utf-8")
        requirements += [line for section in tox.values() for line in section.get("deps", "").split("\n")]
        requirements += re.findall(r"--no-deps ([\w-]+)==", (ROOT / "tox.ini").read_text("utf-8"))
    matches = [re.match(r"[\w.-]+", requirement.strip()) for requirement in requirements]
    return {match[0].lower().replace("_", "-") for match in matches if match}


@pytest.mark.parametrize(("folder", "files"), [("knorm_core", []), ("suites", ["tox"])])
def test_whatever_is_imported_is_declared(folder: str, files: list[str]) -> None:
    # A package that only another one asks for is missing where that one does not: rich 13.0 has no markdown_it.
    ours = {"knorm_core", "suites", "conftest", *BROUGHT_ALONG, *sys.stdlib_module_names}
    distributions = importlib.metadata.packages_distributions()
    wrong = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for module in {name.split(".")[0] for name in imports(path)} - ours:
            names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
            if not names & declared(*files):
                wrong.add(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_the_table_itself_goes_one_way() -> None:
    wings = {name: allowed - (CORE if name in CORE else set()) for name, allowed in MAY_IMPORT.items()}
    graphlib.TopologicalSorter(wings).prepare()  # raises CycleError, and names the circle


def test_no_modules_import_each_other_round_in_a_circle() -> None:
    graph = graphlib.TopologicalSorter[str]()
    for module, other in IMPORTS:
        if other in MODULES and other != module:
            graph.add(module, other)
    graph.prepare()


def test_the_package_knows_no_suites_its_records_no_torch_and_its_core_no_pytest() -> None:
    wrong = set()
    for module, other in IMPORTS:
        package = other.split(".")[0]
        if (
            package == "suites"
            or (package == "pytest" and place(module) not in WITH_PYTEST)
            or (package in {"torch", "transformers", "datasets"} and place(module) in WITHOUT_TORCH)
        ):
            wrong.add(f"{module} imports {other}")
    assert not wrong


def test_what_every_pytest_run_loads_imports_nothing_heavy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    waiting = list(project["entry-points"]["pytest11"].values())
    assert waiting
    loaded: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in loaded:
            continue
        loaded.add(module)
        if module in MODULES:
            waiting += {
                *imports(MODULES[module], at_import=True),
                *([module.rpartition(".")[0]] if "." in module else []),
            }
    assert not {module for module in loaded if module.split(".")[0] in HEAVY}


@pytest.mark.parametrize("package", ["knorm_core", "knorm_core.contract"])
def test_every_name_of_a_stub_is_there(package: str) -> None:
    module = __import__(package, fromlist=["__all__"])
    assert module.__all__ == sorted(stub(package))
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_no_promise_of_the_package_hangs_on_an_assert() -> None:
    # python -O drops them.
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if not path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong
