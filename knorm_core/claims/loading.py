"""Claims from TOML files, checked to the last key: what is wrong is said with file, claim and key."""

from __future__ import annotations

import inspect
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knorm_core.claims.checks import CHECKS, Check
from knorm_core.results.annotations import fits

ANY_MODEL = "any model"
_SOURCES = ("report", "paper")
_REQUIRED = ("id", "claim", "where", "setting", "about", "expected", "check", "text_sets", "tables", "needs")
_OPTIONAL = ("arguments", "tolerance", "unit", "settings", "stand_in", "faults")
_DEFAULTS = ("setting", "about", "needs", "settings", "text_sets", "tables", "stand_in")


class ClaimError(ValueError):
    """An entry of the ledger that cannot be used; the message names file, claim and key."""


@dataclass(frozen=True)
class Fault:
    """A named fault under which the claim is tested again: with other tables, other arguments, or both."""

    name: str
    tables: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger; id to expected as in `knorm_core.results.records.Verdict`.

    Attributes:
        about: the models that it is about, or `ANY_MODEL` alone.
        expected: a number or a pair of numbers, which the check is given, or words, which it is not.
        tolerance: in per cent.
        unit: of a number that is expected: "%" for a change; else only shown.
        check: a name in `knorm_core.claims.checks.CHECKS`.
        arguments: of the check, expected and tolerance among them.
        text_sets, tables: the check is made on every table "text set/kind" that there is.
        stand_in: None where no other model can say anything; else text sets on which another model may be shown
            where it was not run on those of the claim.
        faults: by name.
        settings: see `knorm_core.claims.tables.Tables`.
        needs: what it takes to have the tables.
    """

    id: str
    source: str
    claim: str
    where: str
    setting: str
    about: tuple[str, ...]
    expected: Any
    tolerance: float
    unit: str
    check: str
    arguments: Mapping[str, Any]
    text_sets: tuple[str, ...]
    tables: tuple[str, ...]
    stand_in: tuple[str, ...] | None
    faults: Mapping[str, Fault]
    settings: Mapping[str, Any]
    needs: str

    @property
    def about_any_model(self) -> bool:
        """Whether every model can hold or refute it."""
        return self.about == (ANY_MODEL,)

    @property
    def expected_text(self) -> str:
        """What is expected, for people."""
        if isinstance(self.expected, str):
            return self.expected
        values = self.expected if isinstance(self.expected, Sequence) else [self.expected]
        form = "+g" if self.unit == "%" else "g"
        return " to ".join(format(value, form) for value in values) + (f" {self.unit}" if self.unit else "")

    @property
    def tolerance_text(self) -> str:
        """What is allowed for, for people; empty where nothing is."""
        if not self.tolerance:
            return ""
        return f"{self.tolerance:g} {'points' if self.unit == '%' else '%'}"


def load_claims(folder: str | os.PathLike[str]) -> list[Claim]:
    """Every claim of the ``.toml`` files of a folder, the report's before the paper's, in their order.

    Raises:
        ClaimError: (a ValueError) there are none, or something in them is wrong.
    """
    paths = sorted(Path(folder).glob("*.toml"))
    if not paths:
        raise ClaimError(f"no claims in {folder}: one .toml file per source is expected there")
    claims = [claim for path in paths for claim in _read(path)]
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise ClaimError(f"{folder}: two claims have the id {claim.id!r}; an id names one claim in all files")
        seen.add(claim.id)
    return sorted(claims, key=lambda claim: _SOURCES.index(claim.source))


def _read(path: Path) -> list[Claim]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad UTF-8, bad TOML, TOML of a thousand levels
        raise ClaimError(f"{path}: {error}") from None
    _keys(content, ("source", "claim"), ("defaults",), str(path))
    if content["source"] not in _SOURCES:
        raise ClaimError(f"{path}: source = {content['source']!r} is not one of {', '.join(_SOURCES)}")
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        raise ClaimError(f"{path}: defaults = {defaults!r} is not a table of keys that claims share")
    _keys(defaults, (), _DEFAULTS, f"{path}, defaults")
    if not isinstance(content["claim"], list) or not all(isinstance(entry, dict) for entry in content["claim"]):
        raise ClaimError(f"{path}: claim is not an array of tables; begin each claim with [[claim]]")
    return [
        _claim({**defaults, **entry}, content["source"], f"{path}, claim {entry.get('id', f'number {number}')!r}")
        for number, entry in enumerate(content["claim"], start=1)
    ]


def _claim(entry: dict[str, Any], source: str, where: str) -> Claim:
    _keys(entry, _REQUIRED, _OPTIONAL, where)
    for key in ("id", "claim", "where", "setting", "check", "needs"):
        _expect(isinstance(entry[key], str) and entry[key].strip(), where, key, entry[key], "text that is not empty")
    about = [entry["about"]] if isinstance(entry["about"], str) else entry["about"]
    _expect(fits(about, Sequence[str]) and about, where, "about", entry["about"], "a model or a list of them")
    for key in ("text_sets", "tables"):
        _expect(fits(entry[key], Sequence[str]) and entry[key], where, key, entry[key], "a list of names")
    _expect(entry["claim"].endswith("."), where, "claim", entry["claim"], "a sentence with a full stop")
    tolerance = entry.get("tolerance", 0)
    _expect(fits(tolerance, float) and tolerance >= 0, where, "tolerance", tolerance, "a number of per cent, 0 or more")
    _expect(isinstance(entry.get("unit", ""), str), where, "unit", entry.get("unit"), "text")
    expected = entry["expected"]
    pair = fits(expected, Sequence[float]) and len(expected) == 2 and expected[0] <= expected[1]
    in_words = isinstance(expected, str) and expected.strip()
    _expect(
        fits(expected, float) or pair or in_words, where, "expected", expected,
        "a number, a pair of them in ascending order, or words",
    )  # fmt: skip
    for key in ("arguments", "faults", "settings"):
        _expect(isinstance(entry.get(key, {}), dict), where, key, entry.get(key), "a table")
    stand_in = entry.get("stand_in")
    _expect(stand_in is None or fits(stand_in, Sequence[str]), where, "stand_in", stand_in, "a list of text sets")
    if stand_in is not None and ANY_MODEL in about:
        raise ClaimError(f"{where}: stand_in goes with a claim about a named model, and this one is about {ANY_MODEL}")
    if entry["check"] not in CHECKS:
        raise ClaimError(f"{where}: check = {entry['check']!r} does not exist; there are {', '.join(sorted(CHECKS))}")
    own = ({} if in_words else {"expected": expected}) | ({"tolerance": tolerance} if "tolerance" in entry else {})
    arguments = {**entry.get("arguments", {}), **own}
    check = CHECKS[entry["check"]]
    _check_arguments(check, arguments, where, "arguments")
    faults = {}
    for name, fault in entry.get("faults", {}).items():
        key = f"faults.{name!r}"
        _expect(isinstance(fault, dict) and fault, where, key, fault, "a table with other tables or arguments")
        _keys(fault, (), ("tables", "arguments"), f"{where}, {key}")
        names = fault.get("tables", [])
        _expect(fits(names, Sequence[str]), where, f"{key}.tables", names, "a list of names")
        _check_arguments(check, {**arguments, **fault.get("arguments", {})}, where, f"{key}.arguments")
        faults[name] = Fault(name, tuple(names), fault.get("arguments", {}))
    return Claim(
        **{key: entry[key] for key in ("id", "claim", "where", "setting", "check", "needs")},
        about=tuple(about),
        source=source,
        expected=expected,
        tolerance=tolerance,
        unit=entry.get("unit", ""),
        arguments=arguments,
        text_sets=tuple(entry["text_sets"]),
        tables=tuple(entry["tables"]),
        stand_in=None if stand_in is None else tuple(stand_in),
        faults=faults,
        settings=entry.get("settings", {}),
    )


def _check_arguments(check: Check, arguments: Mapping[str, Any], where: str, key: str) -> None:
    """Hold what an entry declares against the signature of its check."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(check).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    required = tuple(name for name, parameter in parameters.items() if parameter.default is parameter.empty)
    _keys(arguments, required, tuple(parameters), f"{where}, {key} of {check.__name__}")
    hints = typing.get_type_hints(check)
    for name, value in arguments.items():
        _expect(fits(value, hints[name]), where, f"{key}.{name}", value, f"what {check.__name__} takes: {hints[name]}")


def _keys(content: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], where: str) -> None:
    """Every required key and no unknown one."""
    for key in required:
        if key not in content:
            raise ClaimError(f"{where}: key {key!r} is missing")
    for key in content:
        if key not in required and key not in optional:
            allowed = ", ".join(dict.fromkeys((*required, *optional)))
            raise ClaimError(f"{where}: unknown key {key!r}; allowed are {allowed or 'none'}")


def _expect(right: Any, where: str, key: str, value: Any, what: str) -> None:
    if not right:
        raise ClaimError(f"{where}: {key} = {value!r} is not {what}")
