"""What a check reads: the tables of one model, their rows by label, and numbers with their intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from knorm_core.results.records import Results, Table


class Missing(LookupError):
    """A table, row or column that a check needs is not there; the message says which."""


class Interval(NamedTuple):
    """A ratio with its 95 % interval."""

    value: float
    low: float
    high: float


NO_CHANGE = Interval(1.0, 1.0, 1.0)


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
        """The table ``name`` ("text set/what") of this model, or of another one.

        Raises:
            Missing: there is none.
        """
        model = self.model if model is None else model
        found = self.results.table(f"{model}/{name}")
        if found is not None:
            return found
        suffixed = re.compile(re.escape(f"{model}/{name}") + "-[0-9a-f]{8}")
        for table in self.results.tables:
            if suffixed.fullmatch(table.name):
                settings = table.made_from.get("settings", {})
                if self.settings and all(settings.get(option) == value for option, value in self.settings.items()):
                    return table
        raise Missing(f"there is no table {model}/{name}")


def models(results: Results) -> list[str]:
    """Every model that has tables, in the order in which they were recorded."""
    return list(dict.fromkeys(table.name.split("/", 1)[0] for table in results.tables))


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


def find_row(table: Table, labels: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one row that has these labels.

    Raises:
        Missing: no row has them, or more than one.
    """
    rows = [row for row in table.rows if all(_same(row.get(name), value) for name, value in labels.items())]
    if len(rows) != 1:
        raise Missing(f"{len(rows) or 'no'} rows of {table.name} have {describe(labels)}")
    return rows[0]


def number(table: Table, row: Mapping[str, Any], column: str) -> float:
    """One cell as a number.

    Raises:
        Missing: the row has no such column, or no number in it.
    """
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise Missing(f"{table.name} has no number in column {column!r}")
    return float(value)


def interval(table: Table, row: Mapping[str, Any], column: str = "ratio") -> Interval:
    """A paired ratio and its interval: columns ``column``, ``column_low`` and ``column_high``."""
    return Interval(*(number(table, row, f"{column}{end}") for end in ("", "_low", "_high")))


def between(one: Interval, other: Interval) -> Interval:
    """``other`` over ``one``, both of them ratios to the same baseline, with an interval.

    On the log scale the half widths that face each other add in quadrature. That is the 95 % interval where the
    two rows err independently; where they err alike, as rows over the same tokens do, it is too wide and so
    errs on the side of "no difference shown".

    >>> [round(end, 3) for end in between(NO_CHANGE, Interval(1.5, 1.4, 1.6))]
    [1.5, 1.4, 1.6]
    """
    difference = math.log(other.value) - math.log(one.value)
    below = math.hypot(_log_ratio(other.value, other.low), _log_ratio(one.high, one.value))
    above = math.hypot(_log_ratio(other.high, other.value), _log_ratio(one.value, one.low))
    low, high = (_exp(difference + reach) for reach in (-below, above))
    return Interval(math.exp(difference), low, high)


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


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return list(one) == list(other)
    return bool(one == other)


def _log_ratio(one: float, other: float) -> float:
    if other == 0 or math.isinf(one):
        return math.inf
    return math.log(one / other)


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)
