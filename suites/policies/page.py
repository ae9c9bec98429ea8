"""Writes the tables of docs/policies.md from the baselines: ``python -m suites.policies``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas

from knorm_core.report.policies import policy_of, verdict
from knorm_core.results.interval import Interval
from knorm_core.results.records import ITSELF
from suites.policies.compared import COMPARED, CONTROLS, NOT_COMPARED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "policies.md"
TABLES = ROOT / "baselines" / "smollm2-135m" / "wikitext-breadth"
BEGIN, END = "<!-- tables, by python -m suites.policies -->\n", "<!-- end of tables -->"

_HEADINGS = {
    "newest": "against four sinks and the newest",
    "random": "against four sinks and random ones",
    "permuted": "against its score permuted",
    "inverted": "against its score inverted",
}

Rows = list[dict[str, Any]]


def tables() -> dict[str, Rows]:
    """{policy: rows}, of every policy whose table has a baseline, in the order of the suite."""
    read = {policy_of(path.stem): path for path in TABLES.glob("policy-*.csv")}
    return {name: _rows(read[name]) for name in COMPARED if name in read}


def _rows(path: Path) -> Rows:
    """A golden file's rows; its first column holds the control and the keep ratio."""
    rows = pandas.read_csv(path).to_dict("records")
    for row in rows:
        label = next(iter(row.values())).split()
        row["control"], row["keep_ratio"] = label[0], float(label[1])
    return rows


def page(text: str, policies: dict[str, Rows]) -> str:
    """The page's text, with these tables between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [part for ratio, controls in CONTROLS.items() for part in _table(ratio, controls, policies)]
    missing = [name for name in COMPARED if name not in policies]
    parts += [f"- `{name}` has no baseline yet: `tox -e policies -- --force-regen` makes it." for name in missing]
    parts += [f"- `{name}` has no table of its own: {reason}." for name, reason in NOT_COMPARED.items()]
    return "\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"])


def _table(ratio: float, controls: tuple[str, ...], policies: dict[str, Rows]) -> list[str]:
    if not policies:
        return []
    of_ratio = {
        name: {row["control"]: row for row in rows if row["keep_ratio"] == ratio} for name, rows in policies.items()
    }
    without = [name for name, rows in of_ratio.items() if not rows]
    of_ratio = {name: rows for name, rows in of_ratio.items() if rows}
    lines = [f"## Keep {ratio}", "", f"| policy | PPL | {' | '.join(_HEADINGS[control] for control in controls)} |"]
    lines.append("|---|" + "---|" * (len(controls) + 1))
    for name, rows in of_ratio.items():
        cells = [f"{Interval.of(rows[control], 'against')}: {verdict(rows[control])}" for control in controls]
        lines.append(f"| `{name}` | {rows[ITSELF]['ppl']:.2f} | {' | '.join(cells)} |")
    first = next(iter(of_ratio.values()))
    levels = " and ".join(f"{first[control]['ppl']:.2f} ({control})" for control in ("newest", "random"))
    plain = first[ITSELF]["ppl"] / first[ITSELF]["ratio"]
    return [
        *lines,
        "",
        f"With four sinks the controls have a perplexity of {levels}; without eviction it is {plain:.2f}.",
        *(f"`{name}` protects more keys than that leaves to some layers." for name in without),
        "",
    ]
