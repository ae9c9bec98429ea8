"""The report, solved: what it printed, how that came about, and what the tables at hand show of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from knorm_core.report.section import ShownTable, of_kind
from knorm_core.report.words import listed, number
from knorm_core.results.interval import Interval, per_cent
from knorm_core.results.records import Results, Table, TableRow, pair

HEADINGS = ("the report printed", "how that came about", "shown here")
CAPTION = "The report on Pythia-70M, solved: what it printed, and how that came about"
NOTE = (
    "Perplexity, lower is better, against the keep ratio: the share of cached keys that an eviction keeps. Shown on "
    "the model of this run, or by arithmetic on the report's own tables."
)


class Solved(NamedTuple):
    """One figure of the report: what was printed, its cause, and the numbers of this run that show it."""

    printed: str
    cause: str
    numbers: str


def solved(results: Results) -> list[Solved]:
    """Every figure of the report whose cause is known, as far as tables of ``results`` show it; empty without any."""
    lines = [Solved(printed, cause, numbers) for printed, cause, kinds, read in _FIGURES
             if (numbers := _numbers(read, _tables(results, kinds)))]  # fmt: skip
    return [*lines, *([] if of_kind(results, "final-table") else [_LEFT])] if lines else []


def solved_table(results: Results) -> list[ShownTable]:
    """The same as a table of the page, or none."""
    names = [table.name for kind in _KINDS for table in of_kind(results, kind)]
    lines = solved(results)
    return [ShownTable(CAPTION, HEADINGS, lines, names)] if lines else []


_Tables = Mapping[str, Table]


def _tables(results: Results, kinds: tuple[str, ...]) -> _Tables:
    return {kind: tables[0] for kind in kinds if (tables := of_kind(results, kind))}


def _numbers(read: Callable[[_Tables], str], tables: _Tables) -> str:
    """The numbers that a line rests on, or empty: a run may have no such table, or one that lacks a row."""
    try:
        return read(tables)
    except (LookupError, TypeError, ValueError):
        return ""


def _nothing_fires(tables: _Tables) -> str:
    own = [row for row in tables["trail"].rows if row["stage"][:1] in "014"]
    change = max((row["ratio"] for row in own), key=lambda ratio: abs(ratio - 1))
    return f"{sum(row['evictions_per_layer'] for row in own)} evictions in three such stages, {per_cent(change)}"


def _recent_keys_go(tables: _Tables) -> str:
    falls = {kind: _row(tables[f"{kind}-pairs"], pair=pair("0.6", "0.95")) for kind in ("u-curve", "u-curve-recent")}
    plain, protected = (Interval.of(row, "ratio") for row in falls.values())
    return f"keep 0.6 against 0.95: {plain}; with the latest 8 keys protected: {protected}"


def _order_does_nothing(tables: _Tables) -> str:
    return "the same survivors in order of norm and of time: " + listed(
        f"{per_cent(row['ratio'])} at keep {row['keep_ratio']}" for row in tables["order"].rows
    )


def _other_tokens(tables: _Tables) -> str:
    row = _row(tables["trail"], stage=_LAST, texts="short samples", keep_ratio=0.1)
    return (
        f"at keep 0.1 its way prints {per_cent(row['ratio'])}; on the same tokens, compressed and not, it is "
        f"{Interval.of(row, 'paired')}"
    )


def _guessed(tables: _Tables) -> str:
    rows = tables["published-times"].rows
    first, whole = (listed(number(round(row[name], 1)) for row in rows) for name in ("tokens_to_first", "tokens"))
    return f"in its own tables the first token takes as long as {first} tokens of {whole}; a timed one takes about 1"


def _two_loops(tables: _Tables) -> str:
    loop, compression = (1 + row["change"] / 100 for row in tables["published-throughput"].rows)
    return f"in its own tables {per_cent(loop)} where nothing fires, and {per_cent(compression)} more by firing"


def _row(table: Table, **labels: object) -> TableRow:
    rows = [row for row in table.rows if all(row.get(name) == value for name, value in labels.items())]
    return rows[0]


_LAST = "5: two phases, baseline on the whole text"
_FIGURES: tuple[tuple[str, str, tuple[str, ...], Callable[[_Tables], str]], ...] = (
    (
        "one perplexity at every keep ratio: 75.03 and 39.68, then 51.91, then 60.81",
        "nothing was evicted: the cache was not compressed, or its threshold of 512 never reached",
        ("trail",),
        _nothing_fires,
    ),
    (
        "a U curve: 240.87 at keep 0.95, 135.12 at 0.6",
        "a threshold of 32 evicts at almost every token, so that keys of the last few tokens go",
        ("u-curve-pairs", "u-curve-recent-pairs"),
        _recent_keys_go,
    ),
    (
        "122.10 in place of 136.74 at keep 0.5, once survivors lie in temporal order",
        "other texts are averaged, two rows and two books for three and two; the order changes nothing",
        ("order",),
        _order_does_nothing,
    ),
    (
        "the last table: +13, +19, +115 % on Wikitext, +45, +27, +30 % on PG-19",
        "keep 1.0 is scored on the whole text, the others on its second part (inferred)",
        ("trail",),
        _other_tokens,
    ),
    (
        "time to first token: −88, −90, −90 %",
        "that of keep 1.0 was never timed: it is a tenth of the whole generation",
        ("published-times",),
        _guessed,
    ),
    (
        "throughput: −15, −17, −18 %",
        "two loops are compared: model.generate, and one that builds a new cache after every token",
        ("published-throughput",),
        _two_loops,
    ),
)
_KINDS = tuple(dict.fromkeys(kind for _, _, kinds, _ in _FIGURES for kind in kinds))
_LEFT = Solved(
    "75.03 to 161.37 and 39.72 to 57.48, to the last digit",
    "open: which of several evaluations made that table",
    "needs Pythia's weights: tox -e pythia ends with the answer",
)
