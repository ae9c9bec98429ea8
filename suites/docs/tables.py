"""The tables of README and docs that are made from baselines: ``python -m suites.docs.tables`` writes them anew."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from knorm_core.results.interval import per_cent
from suites.docs.pages import ROOT

MODEL = ROOT / "baselines" / "smollm2-135m"
RATIOS = ("0.9", "0.5", "0.1")
#: Columns of the breadth table, as rows of the golden file: policy, sinks, recent tokens (fewer at 0.1).
SHORT = {
    "low norm": ("low_norm", 0, 0),
    "random": ("random", 0, 0),
    "four first tokens and random": ("random", 4, 0),
    "four first tokens and the newest": ("newest", 4, 0),
}
WHOLE = {
    "low norm": ("low_norm", 0, 0),
    "low norm, latest 32 protected (16 at 0.1)": ("low_norm", 0, 32),
    "random": ("random", 0, 0),
    "four sinks and random": ("random", 4, 0),
    "four sinks and high norm": ("high_norm", 4, 0),
    "four sinks and the latest": ("newest", 4, 0),
}


def breadth(columns: Mapping[str, tuple[str, int, int]]) -> str:
    """Policies against keep ratio on 32 texts: change of perplexity with its interval."""
    rows = _rows("embedded-breadth/breadth")
    lines = [["keep ratio", *columns]]
    for ratio in RATIOS:
        cells = []
        for policy, sinks, recent in columns.values():
            recent = min(recent, 16) if ratio == "0.1" else recent
            cells.append(_change(rows[f"{policy} {ratio} {sinks} {recent} ()"]))
        lines.append([ratio, *cells])
    return _markdown(lines)


def positions() -> str:
    """Both position modes on the articles."""
    true, drifting = (_rows(f"embedded-articles/ppl-{mode}") for mode in ("absolute", "cache"))
    head = "keep ratio|PPL, true positions|change|PPL, positions from the cache length|change|mean cache|peak cache"
    lines = [head.split("|")]
    for ratio, row in true.items():
        other = drifting[ratio]
        changes = ["" if ratio == "1.0" else per_cent(float(each["ratio"])) for each in (row, other)]
        ppls = [f"{float(each['ppl']):.2f}" for each in (row, other)]
        cells = [ratio, ppls[0], changes[0], ppls[1], changes[1], f"{float(row['mean_cache']):.1f}", row["peak_cache"]]
        lines.append(cells)
    return _markdown(lines)


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"breadth": lambda: breadth(SHORT)},
    ROOT / "docs/findings.md": {"positions": positions, "breadth": lambda: breadth(WHOLE)},
}


def made_anew(page: Path) -> str:
    """A page's text with its tables as the baselines have them now."""
    text = page.read_text("utf-8")
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, begun, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not (begun and ends):
            raise ValueError(f"{page.name} has no place for the table {name}: lines {begin.strip()} and {end}")
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


def _rows(table: str) -> dict[str, dict[str, str]]:
    with (MODEL / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        return {next(iter(row.values())): row for row in csv.DictReader(lines)}


def _change(row: Mapping[str, str]) -> str:
    low, high = (per_cent(float(row[name])).removesuffix(" %") for name in ("ratio_low", "ratio_high"))
    return f"{per_cent(float(row['ratio']))} [{low}, {high}]"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])).replace("| --- ", "|---")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(made_anew(page), encoding="utf-8")
