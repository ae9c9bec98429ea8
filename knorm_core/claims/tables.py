"""What a check reads: the tables of one model, their rows by label, and numbers with their intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from knorm_core.results.evidence import no_evidence
from knorm_core.results.interval import Interval
from knorm_core.results.records import Results, Table, TableRow, is_number, pair


class Missing(LookupError):
    """A table, row or number that a check needs was not measured; the message says which."""


class Incomplete(LookupError):
    """What was measured lacks what a rule needs; the message says what, so that the claim is open."""


@dataclass(frozen=True)
class Tables:
    """The tables of one model, by their names below it.

    Attributes:
        model: the slug that begins the tables' names.
        settings: options by name; a table that was made with other than default options has a suffix to its
            name, and counts as that table where its options have these values.
    """

    results: Results
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self, name: str, model: str | None = None) -> Table:
        """The table ``name`` ("text set/kind") of this model, or of another one.

        Raises:
            Missing: there is none.
        """
        whole = f"{self.model if model is None else model}/{name}"
        tables = [table for table in self.results.tables if table.name.removesuffix(table.variant) == whole]
        for table in sorted(tables, key=lambda table: table.variant):
            if not table.variant or self._made_with_settings(table):
                return table
        raise Missing(f"there is no table {whole}")

    def _made_with_settings(self, table: Table) -> bool:
        return bool(self.settings) and all(table.settings.get(name) == value for name, value in self.settings.items())

    def between(self, name: str, reference: TableRow, row: TableRow) -> Interval:
        """The paired ratio of a row to another one of the table ``name``.

        A row against the uncompressed one has it in its own columns. Others are looked up in the table
        ``<name>-pairs``, of which a row has ``pair`` (two labels, see `knorm_core.results.records.pair`) and the
        columns ``ratio``, ``ratio_low`` and ``ratio_high``.

        Raises:
            Incomplete: that ratio was not recorded.
        """
        table = self.table(name)
        labels = tuple(table.label(each) for each in (reference, row))
        for each, other, turned in ((reference, row, False), (row, reference, True)):
            if each.get("keep_ratio") == 1 and each.get("ratio") == 1:
                ratio = interval(table, other)
                return ratio.inverse if turned else ratio
        try:
            pairs = self.table(f"{name}-pairs")
        except Missing:
            pairs = Table("", (), ())
        for recorded in pairs.rows:
            if recorded["pair"] == pair(labels[1], labels[0]):
                return interval(pairs, recorded)
            if recorded["pair"] == pair(*labels):
                return interval(pairs, recorded).inverse
        raise Incomplete(f"the paired ratio of {labels[1]} to {labels[0]} in a table {self.model}/{name}-pairs")

    def no_evidence(self) -> str:
        """Why this model is evidence of nothing, or empty; see `knorm_core.results.evidence`."""
        return no_evidence(self.results, self.model)


def models(results: Results) -> list[str]:
    """Every model that has tables, in the order in which they were recorded."""
    return list(dict.fromkeys(table.model for table in results.tables))


def slugs(model: str) -> tuple[str, ...]:
    """How the tables of a model may be named: after its hub id, or after a local folder of its name.

    >>> slugs("EleutherAI/pythia-70m")
    ('EleutherAI-pythia-70m', 'pythia-70m')
    """
    return tuple(dict.fromkeys(re.sub(r"[^\w.-]+", "-", name) for name in (model, model.split("/")[-1])))


def named_after(results: Results, model: str) -> tuple[str, ...]:
    """How the tables of a model may be named, those of local folders of its name in ``results`` among them.

    The name of a local folder is followed by a short hash of what is in it.

    >>> named_after(Results(tables=[Table("pythia-70m-0123abcd/pg19/ppl", [], [])]), "EleutherAI/pythia-70m")
    ('EleutherAI-pythia-70m', 'pythia-70m', 'pythia-70m-0123abcd')
    """
    plain = slugs(model)
    folder = re.compile(re.escape(plain[-1]) + "-[0-9a-f]{8}")
    return (*plain, *(name for name in models(results) if folder.fullmatch(name)))


def find_row(table: Table, labels: Mapping[str, Any]) -> TableRow:
    """The one row that has these labels.

    Raises:
        Missing: no row has them, or more than one.
    """
    rows = [row for row in table.rows if all(_same(row.get(name), value) for name, value in labels.items())]
    if len(rows) != 1:
        raise Missing(f"{len(rows) or 'no'} rows of {table.name} have {describe(labels)}")
    return rows[0]


def number(table: Table, row: TableRow, column: str) -> float:
    """One cell as a number.

    Raises:
        Missing: the row has no such column, or no number in it.
    """
    value = row.get(column)
    if isinstance(value, bool) or not is_number(value):
        raise Missing(f"{table.name} has no number in column {column!r}")
    return float(value)


def interval(table: Table, row: TableRow, column: str = "ratio") -> Interval:
    """A number and its interval: columns ``column``, ``column_low`` and ``column_high``.

    Raises:
        Missing: there is no number.
        Incomplete: there is one, and no interval.
    """
    value = number(table, row, column)
    for limit in (f"{column}_low", f"{column}_high"):
        if not is_number(row.get(limit)):
            raise Incomplete(f"the interval of {column} (columns {column}_low and {column}_high) in {table.name}")
    return Interval(value, float(row[f"{column}_low"]), float(row[f"{column}_high"]))


def describe(labels: Mapping[str, Any]) -> str:
    """Labels of a row in words; what they usually are goes without saying.

    >>> describe({"policy": "low_norm", "keep_ratio": 0.5, "skip_layers": [0, 1], "positions": "absolute"})
    'low norm, keep 0.5, layers 0 and 1 left alone'
    """
    words = [_WORDS.get(name, lambda value, name=name: f"{name} {value}")(value) for name, value in labels.items()]
    return ", ".join(word for word in words if word)


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "keep_ratio": lambda value: f"keep {value:g}",
    "policy": lambda value: str(value).replace("_", " "),
    "positions": lambda value: "" if value == "absolute" else f"positions {value}",
    "seed": lambda value: "mean of seeds" if value == "mean" else f"seed {value}",
    "skip_layers": lambda value: (
        f"layer{'s' if len(value) > 1 else ''} {' and '.join(map(str, value))} left alone" if value else ""
    ),
    "when": lambda value: str(value).replace("_", " "),
    "case": str,
}


def _same(value: Any, label: Any) -> bool:
    if isinstance(value, Sequence) and isinstance(label, Sequence) and not isinstance(value, str):
        return list(value) == list(label)
    return bool(value == label)
