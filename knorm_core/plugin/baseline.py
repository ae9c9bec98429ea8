"""A table as a golden file, and what a new table is against the old one: decided here, said in `golden`.

A baseline is two files: ``<name>.csv`` has the numbers, ``<name>.yml`` what they were made from. `decide` is a pure
function of both and of what the test brings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from knorm_core.compare import changed_cells
from knorm_core.results.records import VOCABULARY, Baseline, ChangedCell

RTOL = 1e-6
VERSIONS = "versions"


@dataclass(frozen=True)
class Stored:
    """A baseline as its files hold it.

    Attributes:
        table: the numbers, with the rows' labels as index; None where the file cannot be read as a table.
        made_from: the provenance; None where the file cannot be read as one.
    """

    table: pandas.DataFrame | None
    made_from: Mapping[str, Any] | None


@dataclass(frozen=True)
class Decision:
    """What became of a comparison.

    Attributes:
        status: as in `knorm_core.results.records.Baseline`: "same", "changed", "missing", "other source", "damaged".
        reasons: one line per difference that decided it.
        cells: every cell that differs, within tolerance or not, the largest difference first.
        other_versions: versions that differ from the baseline's; they decide nothing.
        same_numbers: whether the old table may stay, whatever it was made from: the shape is the same, and every
            number within its tolerance.
    """

    status: str
    reasons: tuple[str, ...] = ()
    cells: tuple[ChangedCell, ...] = ()
    other_versions: tuple[str, ...] = ()
    same_numbers: bool = False

    @property
    def other_shape(self) -> bool:
        """Whether one of the tables has a row or a column that the other has not."""
        return any(cell.baseline is None or cell.value is None for cell in self.cells)


def decide(
    old: Stored | None, new: pandas.DataFrame, made_from: Mapping[str, Any], rtol: float = RTOL, atol: float = 0.0
) -> Decision:
    """Compare a new table with its baseline.

    Args:
        old: the baseline, or None where there is none.
        new: as `as_stored` gives it.
        made_from: what decides the new numbers, and the versions of the libraries under "versions".
        rtol, atol: tolerance of every number: of confidence limits (columns ``…_low`` and ``…_high``) ten times
            ``rtol``, of integers and text none.
    """
    if old is None:
        return Decision("missing")
    cells: tuple[ChangedCell, ...] = ()
    beyond: tuple[str, ...] = ("table",)
    if old.table is not None:
        cells = tuple(changed_cells(rows_of(old.table), rows_of(new)))
        beyond = _other_shape(old.table, new) or _beyond_tolerance(old.table, new, cells, rtol, atol)
    same = not beyond
    if old.table is None or old.made_from is None:
        return Decision("damaged", ("table" if old.table is None else "provenance",), same_numbers=same)
    if changes := _changes(old.made_from, made_from):
        return Decision("other source", changes, same_numbers=same)
    versions = _changes(old.made_from[VERSIONS], made_from[VERSIONS])
    return Decision("same" if same else "changed", beyond, cells, versions, same)


def as_table(name: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> pandas.DataFrame:
    """Rows as a table whose index is the label that the columns of ``key`` make.

    Raises:
        ValueError: two rows have one label.
    """
    table = pandas.DataFrame(
        [{column: value for column, value in row.items() if column not in key} for row in rows],
        index=pandas.Index([" ".join(str(row[column]) for column in key) for row in rows], name=" ".join(key)),
    )
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()][0]
        raise ValueError(f"{name}: two rows have the label {twice!r}; key={list(key)} has to name columns that differ")
    return table


def as_stored(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table as it comes back from its file: like is compared with like."""
    return _read(table.to_csv(float_format="%.17g"))


def not_numbers(table: pandas.DataFrame) -> list[str]:
    """The cells that are NaN, as "row 0.5, column ppl"."""
    return [
        f"row {label}, column {column}"
        for column in table
        for label, value in table[column].items()
        if isinstance(value, float) and value != value
    ]


def read_table(path: Path) -> pandas.DataFrame | None:
    """The table of a file, or None where it has none to compare with: absent, empty, half a merge, cut off."""
    try:
        table = _read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return None
    return table if table.index.is_unique and table.columns.is_unique else None


def read_baseline(root: Path, name: str) -> Stored | None:
    """The baseline of that name below ``root``, or None where a file of it is missing."""
    table, source = root / f"{name}.csv", root / f"{name}.yml"
    if not table.exists() or not source.exists():
        return None
    return Stored(read_table(table), _read_provenance(source))


def rows_of(table: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """{label: {column: value}}."""
    rows: dict[str, dict[str, Any]] = table.to_dict(orient="index")
    return rows


def provenance_text(made_from: Mapping[str, Any]) -> str:
    """A provenance as its file holds it (YAML)."""
    return str(yaml.safe_dump(dict(made_from), sort_keys=False))


def _read(text: str) -> pandas.DataFrame:
    table = pandas.read_csv(io.StringIO(text), index_col=0)
    # As text: "1" is not "1.0", and the label None is not an empty one.
    labels = pandas.read_csv(io.StringIO(text), usecols=[0], dtype=str, keep_default_na=False)
    table.index = pandas.Index(labels.iloc[:, 0], name=table.index.name)
    return table


def _read_provenance(source: Path) -> dict[str, Any] | None:
    try:
        made_from = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None
    return made_from if isinstance(made_from, dict) and isinstance(made_from.get(VERSIONS), dict) else None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Each value that is not the same: "text: sha256:1 -> sha256:2". The vocabulary is left out: the model has it."""
    new = yaml.safe_load(provenance_text(new))  # a tuple is stored as a list
    names = [name for name in dict.fromkeys((*new, *old)) if name not in (VERSIONS, VOCABULARY)]
    return tuple(f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name))


def _other_shape(old: pandas.DataFrame, new: pandas.DataFrame) -> tuple[str, ...]:
    """What rows and columns one table has and the other has not."""
    sides = [
        ("columns", set(map(str, old.columns)), set(map(str, new.columns))),
        ("rows", set(old.index), set(new.index)),
    ]
    return tuple(
        f"{what} {verb}: {', '.join(sorted(names))}"
        for what, was, now in sides
        for verb, names in (("that are gone", was - now), ("that are new", now - was))
        if names
    )


def _beyond_tolerance(
    old: pandas.DataFrame, new: pandas.DataFrame, cells: Sequence[ChangedCell], rtol: float, atol: float
) -> tuple[str, ...]:
    """The cells that moved by more than they may, of two tables of the same shape."""
    allowed = Baseline("same", rtol, atol)
    return tuple(
        f"{cell.row}, {cell.column}: {cell.baseline} -> {cell.value}"
        for cell in cells
        if not (
            pandas.api.types.is_float_dtype(new[cell.column])
            and pandas.api.types.is_numeric_dtype(old[cell.column])
            and allowed.allows(cell.column, cell.baseline, cell.value)
        )
    )
