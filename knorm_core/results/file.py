"""Results as a file, ``results.jsonl``: `knorm_core.results.records` has its format. Nothing read from it is run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from knorm_core.results.annotations import record_of
from knorm_core.results.records import TRANSFERS, VERDICTS, Results, Run, Table, Test, Verdict
from knorm_core.results.replacement import replacement

SCHEMA_VERSION = 2
FILE = "results.jsonl"


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the file and the line."""


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The results of a folder, or of a ``.jsonl`` file named itself.

    Raises:
        ResultsError: (a ValueError) no such file, or a line that is not a record of a known schema version.
    """
    path = Path(folder)
    path = path / FILE if os.path.isdir(path) else path
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device would never end
            raise OSError("no regular file")
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the path
        raise ResultsError(f"no results at {path} ({error}): pytest -m repro --knorm-report DIR writes them") from None
    records: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    version = None
    if lines == [""]:
        raise ResultsError(f"{path} is empty: pytest -m repro --knorm-report DIR writes it")
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line, parse_constant=_refused, object_hook=_float)
            kind = content.pop("kind")
            if version is None:
                version = content.get("version") if kind == "schema" else None
                if version != SCHEMA_VERSION:
                    raise ResultsError(
                        f"{path} has schema version {version!r}; this knorm reads version {SCHEMA_VERSION}"
                    )
                continue
            records[kind].append(_checked(record_of(_KINDS[kind], content)))
        except ResultsError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ResultsError(
                f"{path}, line {number}: not a record of results ({type(error).__name__}: {error})"
            ) from None
    return Results(records["run"], records["table"], records["test"], records["verdict"])


def write_results(folder: str | os.PathLike[str], results: Results) -> Path:
    """Write ``results.jsonl`` in one rename; return its path."""
    target = Path(folder) / FILE
    lines: list[dict[str, Any]] = [{"kind": "schema", "version": SCHEMA_VERSION}]
    records: tuple[Run | Table | Test | Verdict, ...] = (
        *results.runs, *results.tables, *results.tests, *results.verdicts,
    )  # fmt: skip
    for record in records:
        lines.append({"kind": type(record).__name__.lower()} | dataclasses.asdict(record))
    with replacement(target) as file:
        for line in lines:
            text = json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + "\n"
            # Half a surrogate, as a path that is not UTF-8 has, becomes the escape that JSON has for it.
            file.write(text.encode(errors="backslashreplace"))
    return target


_KINDS: Mapping[str, Any] = {"run": Run, "table": Table, "test": Test, "verdict": Verdict}


def _checked(record: Any) -> Any:
    """What types do not say: words of a verdict, keys of rows, numbers that a float can hold."""
    if isinstance(record, Verdict):
        given = [(word, VERDICTS) for word in (record.verdict, *record.own.values())]
        for word, words in (*given, *((each.answer, TRANSFERS) for each in record.transfers)):
            if word not in words:
                raise ValueError(f"{word!r} is none of {', '.join(words)}")
    if isinstance(record, Table):
        for row in record.rows:
            record.label(row)
            for value in row.values():
                if isinstance(value, int):
                    float(value)
    return record


def jsonable(value: Any) -> Any:
    """What JSON can hold: tuples as lists, scalars of NumPy and torch as Python's, non-finite numbers as objects."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [jsonable(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _float(content: dict[str, Any]) -> Any:
    """Turn an object that stands for a non-finite number back."""
    if content.keys() == {"float"} and content["float"] in ("inf", "-inf", "nan"):
        return float(content["float"])
    return content


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
