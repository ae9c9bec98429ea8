"""The ranges of pyproject.toml are true: both of their ends are run by a tox environment, whose pins lie within."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
FAST = ("fast", "fast-oldest", "fast-transformers457", "fast-newest")


def tox():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return parser


def constraints_of(environment):
    """The constraint file that a tox environment hands to pip, or None."""
    for section in (f"testenv:{environment}", "testenv"):
        for line in tox().get(section, "set_env", fallback="").splitlines():
            name, equals, value = line.partition("=")
            if equals and name.strip() == "PIP_CONSTRAINT":
                return ROOT / value.strip().removeprefix("{tox_root}/") if value.strip() else None
    return None


def pins(path):
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def ranges():
    """Every dependency that a tox environment installs with the package: those of its extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = tox().get("testenv", "extras", fallback="").split()
    listed = [
        *project["dependencies"],
        *(requirement for extra in extras for requirement in project["optional-dependencies"][extra]),
    ]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in map(Requirement, listed)}


def test_every_constraint_file_is_of_a_tox_environment():
    named = {constraints_of(section.removeprefix("testenv:")) for section in tox().sections()}
    assert {*ROOT.glob("constraints*.txt")} == named - {None}


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints*.txt")), ids=lambda path: path.stem)
def test_every_pin_lies_within_its_range(path):
    outside = {name: pin for name, pin in pins(path).items() if name in ranges() and pin not in ranges()[name]}
    assert not outside


def test_every_lower_bound_is_what_the_oldest_environment_installs():
    lowest = {
        name: next(bound.version for bound in specifier if bound.operator == ">=")
        for name, specifier in ranges().items()
    }
    installed = pins(constraints_of("fast-oldest"))
    assert {name: Version(installed[name]) for name in lowest} == {name: Version(low) for name, low in lowest.items()}


def test_the_environments_run_the_same_tests_on_both_majors_of_transformers_and_on_whatever_is_newest():
    both = 'pytest -m "fast or full" '
    assert tox().get("testenv:fast-oldest", "commands").startswith(both)
    assert tox().get("testenv:fast-transformers457", "commands") == "{[testenv:fast-oldest]commands}"
    assert tox().get("testenv:fast-newest", "commands").startswith(both)
    majors = [Version(pins(constraints_of(name))["transformers"]).release[:2] for name in FAST[1:3]]
    assert majors == [(4, 57), (4, 57)]
    assert Version(pins(constraints_of("fast"))["transformers"]).major == 5
    assert constraints_of("fast-newest") is None


def test_what_is_installed_lies_within_the_ranges():
    outside = {
        name: importlib.metadata.version(name)
        for name, specifier in ranges().items()
        if not specifier.contains(Version(importlib.metadata.version(name)).base_version, prereleases=True)
    }
    assert not outside


def test_what_is_installed_is_what_pip_was_told():
    constraints = os.environ.get("PIP_CONSTRAINT", "")
    if not Path(constraints).is_file():
        pytest.skip("PIP_CONSTRAINT names no file: not a tox environment, or the one with the newest of everything")
    other = {
        name: importlib.metadata.version(name)
        for name, pin in pins(Path(constraints)).items()
        if name in ranges() and Version(importlib.metadata.version(name)).public != pin
    }
    assert not other


def pythons():
    """The minor versions of Python 3 that the package says it runs on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: 3."
    return project, [int(line.removeprefix(prefix)) for line in project["classifiers"] if line.startswith(prefix)]


def test_a_python_is_named_where_an_environment_runs_on_it_and_a_later_one_is_not_forbidden():
    project, minors = pythons()
    assert project["requires-python"] == f">=3.{min(minors)}"
    assert minors == list(range(min(minors), max(minors) + 1))
    bases = {section: tox().get(section, "base_python", fallback="") for section in tox().sections()}
    assert bases.pop("testenv:fast-oldest") == f"python3.{min(minors)}"
    assert {section: base for section, base in bases.items() if base} == {
        f"testenv:fast-python3{minor}": f"python3.{minor}" for minor in minors if minor > min(minors)
    }
    assert sys.version_info[1] >= min(minors)
