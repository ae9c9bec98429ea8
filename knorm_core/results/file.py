"""Results as a file, ``results.jsonl``: `knorm_core.results.records` has its format. Nothing read from it is run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from knorm_core.results.records import VERDICTS, Baseline, Cell, Number, Results, Run, StandIn, Table, Test, Verdict

SCHEMA_VERSION = 1
FILE = "results.jsonl"


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the file and the line."""


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The results of a folder, or of a ``.jsonl`` file named itself.

    Raises:
        ResultsError: (a ValueError) no such file, or a line that is not a record of a known schema version.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"no results at {path} ({error}): pytest -m repro --knorm-report DIR writes them") from None
    records: dict[str, list[Any]] = {"run": [], "table": [], "test": [], "verdict": []}
    version = None
    if lines == [""]:
        raise ResultsError(f"{path} is empty: pytest -m repro --knorm-report DIR writes it")
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line, parse_constant=_refused)
            kind = content.pop("kind")
            if version is None:
                version = content.get("version") if kind == "schema" else None
                if version != SCHEMA_VERSION:
                    raise ResultsError(
                        f"{path} has schema version {version!r}; this knorm reads version {SCHEMA_VERSION}"
                    )
                continue
            records[kind].append(_RECORDS[kind](content))
        except ResultsError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ResultsError(
                f"{path}, line {number}: not a record of results ({type(error).__name__}: {error})"
            ) from None
    return Results(records["run"], records["table"], records["test"], records["verdict"])


def write_results(folder: str | os.PathLike[str], results: Results) -> Path:
    """Write ``results.jsonl`` in one rename; return its path."""
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"kind": "schema", "version": SCHEMA_VERSION}]
    records: tuple[Run | Table | Test | Verdict, ...] = (
        *results.runs, *results.tables, *results.tests, *results.verdicts,
    )  # fmt: skip
    for record in records:
        lines.append({"kind": type(record).__name__.lower()} | dataclasses.asdict(record))
    with tempfile.NamedTemporaryFile(
        # Half a surrogate, as a path that is not UTF-8 has, becomes the escape that JSON has for it.
        "w",
        encoding="utf-8",
        errors="backslashreplace",
        dir=target.parent,
        prefix=".results-",
        delete=False,
    ) as file:
        try:
            for line in lines:
                file.write(json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, target)
    return target


def _table(content: Mapping[str, Any]) -> Table:
    baseline = content["baseline"]
    cells = tuple(Cell(**_floats(cell)) for cell in baseline["cells"])
    rows = [_floats(row) for row in content["rows"]]
    _check_types(Table, {**content, "baseline": None})
    _check_types(Baseline, baseline)
    return Table(**{**content, "rows": rows, "baseline": Baseline(**{**baseline, "cells": cells})})


def _verdict(content: Mapping[str, Any]) -> Verdict:
    if content["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {content['verdict']!r} is none of {', '.join(VERDICTS)}")
    stand_in = content["stand_in"]
    if stand_in is not None:
        stand_in = StandIn(**{**stand_in, "numbers": _numbers(stand_in["numbers"])})
    _check_types(Verdict, {**content, "stand_in": None})
    return Verdict(**{**content, "numbers": _numbers(content["numbers"]), "stand_in": stand_in})


def _numbers(content: Sequence[Mapping[str, Any]]) -> list[Number]:
    return [Number(**_floats(number)) for number in content]


def _plain_record(kind: Any) -> Any:
    def record(content: Mapping[str, Any]) -> Any:
        _check_types(kind, content)
        return kind(**content)

    return record


def _check_types(kind: Any, content: Mapping[str, Any]) -> None:
    """Raise a TypeError where a value is not of its field's type: names are looked up and sorted later."""
    for field_ in dataclasses.fields(kind):
        expected = _TYPES.get(str(field_.type).partition("[")[0])
        value = content.get(field_.name)
        if expected and field_.name in content and not isinstance(value, expected):
            raise TypeError(f"{field_.name} is {value!r}, not {field_.type}")


_TYPES: Mapping[str, Any] = {"str": str, "int": int, "float": int | float, "Mapping": dict, "Sequence": list}

_RECORDS: Mapping[str, Any] = {
    "run": _plain_record(Run),
    "table": _table,
    "test": _plain_record(Test),
    "verdict": _verdict,
}


def jsonable(value: Any) -> Any:
    """What JSON can hold: tuples as lists, scalars of NumPy and torch as Python's, non-finite numbers as objects."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [jsonable(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _floats(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the objects that stand for non-finite numbers back."""
    return {name: float(value["float"]) if isinstance(value, dict) else value for name, value in row.items()}


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
