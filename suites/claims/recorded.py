"""The baselines as results: what a run that matched every one of them would have recorded."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pandas
import yaml

from knorm_core.results.families import FAMILIES, NO_MODEL
from knorm_core.results.records import Results, Table

_TWO_WORDS = ("short samples",)  # of a label that is not the first of its key: texts of the report's trail
_NO_BREAK = "\u00a0"
_OTHER_SETTINGS = re.compile("-[0-9a-f]{8}$")
BASELINES = Path(__file__).parents[2] / "baselines"


def recorded_tables(root: Path = BASELINES) -> Results:
    """This repository's tables under ``baselines/``, their rows' labels taken apart again into the columns of the key.

    Those of the ledger's families with default settings, and those of no model: who makes baselines of another model,
    or of other settings, changes nothing here.
    """
    paths = [
        path
        for family in (*FAMILIES, NO_MODEL)
        for path in sorted((root / family).rglob("*.csv"))
        if not _OTHER_SETTINGS.search(path.stem)
    ]
    return Results(tables=[_table(path, root) for path in paths])


def _table(path: Path, root: Path) -> Table:
    frame = pandas.read_csv(path, index_col=0)
    key = str(frame.index.name).split(" ")
    rows = [
        {**_labels(key, str(label)), **values}
        for label, values in zip(frame.index, frame.to_dict(orient="records"), strict=True)
    ]
    made_from = yaml.safe_load(path.with_suffix(".yml").read_text(encoding="utf-8"))
    return Table(str(path.relative_to(root).with_suffix("")), key, rows, made_from)


def _labels(key: list[str], label: str) -> dict[str, Any]:
    """A label's parts by column; what is more than a word is the first column's, as in ``512 tokens, adjusted 0.5``."""
    for words in _TWO_WORDS:
        label = label.replace(words, words.replace(" ", _NO_BREAK))
    parts = re.findall(rf"\([^)]*\)|[^ {_NO_BREAK}]+(?:{_NO_BREAK}[^ ]+)?", label)
    first = len(parts) - len(key) + 1
    parts[:first] = [" ".join(parts[:first])]
    return dict(zip(key, (_value(part.replace(_NO_BREAK, " ")) for part in parts), strict=True))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
