"""Writes the parts of CONTRIBUTING.md that are read from the code: ``python -m suites.meta.map``.

The map of the house is made of the first lines of docstrings; the table of what runs where, of
tox.ini's descriptions and commands and of .ci/run.
"""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"


def first_line(path: Path) -> str:
    """Of a Python file's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring: its first line is the file's line in the map")
    return docstring.splitlines()[0].replace("``", "`")


def house() -> str:
    """The core file by file, and a line for every folder of the package and of the suites."""
    core = [path for path in sorted((ROOT / "knorm_core").glob("*.py")) if path.name != "__init__.py"]
    lines = ["`knorm_core/`, the core:", "", *(f"- `{path.name}`: {first_line(path)}" for path in core)]
    for name, folder in (("`knorm_core/`, the wings:", "knorm_core"), ("`suites/`, the tests:", "suites")):
        packages = [path for path in sorted((ROOT / folder).iterdir()) if any(path.glob("*.py"))]
        lines += ["", name, ""]
        lines += [f"- `{path.name}/`: {first_line(path / '__init__.py')}" for path in packages]
    return "\n".join(lines)


def environments() -> str:
    """A table of tox's environments: which tests each runs, what for, how long it takes, and whether CI runs it."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    in_ci = re.findall(r"^\$tox(?: -e (\S+))?$", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)
    ci = {name for names in in_ci for name in (names or "repro").split(",")}
    rows = ["| tox | tests | what for | time on two cores | CI |", "|---|---|---|---|---|"]
    for section in tox.sections():
        name = section.partition(":")[2] or "repro"
        if section == "testenv" or section.startswith("testenv:"):
            what, _, time = tox.get(section, "description").partition("; takes ")
            markers = re.findall(r"pytest -m (\"[^\"]+\"|\S+)", _commands(tox, section))
            tests = f"`-m {markers[0]}`" if markers else ""
            command = "tox" if section == "testenv" else f"tox -e {name}"
            rows.append(f"| `{command}` | {tests} | {what} | {time} | {'yes' if name in ci else ''} |")
    return "\n".join(rows)


def _commands(tox: configparser.ConfigParser, section: str) -> str:
    commands = tox.get(section, "commands")
    other = re.fullmatch(r"\{\[(.+)\]commands\}", commands.strip())
    return tox.get(other[1], "commands") if other else commands


PARTS = {"map": house, "environments": environments}


def page(text: str) -> str:
    """A page's text with its parts as the code has them now."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{PAGE.name} has no place for the {name}: a line {begin.strip()}, and one {end.strip()}")
        text = before + begin + make() + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
