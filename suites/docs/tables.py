"""The tables of README and docs that are made from baselines: ``python -m suites.docs.tables`` writes them anew."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from knorm_core.report.solved import HEADINGS, solved
from knorm_core.results.families import FAMILIES, answer_of
from knorm_core.results.interval import per_cent
from suites.claims.readme import ledger
from suites.claims.recorded import recorded_tables
from suites.docs.pages import ROOT

MODEL, SECOND = (ROOT / "baselines" / family for family in FAMILIES)
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
#: Rows of the second family, where low norm does not keep the first tokens by itself.
CONTROLS = {
    "low norm": ("low_norm", 0),
    "random": ("random", 0),
    "high norm": ("high_norm", 0),
    "four sinks and low norm": ("low_norm", 4),
    "four sinks and random": ("random", 4),
    "four sinks and the latest": ("newest", 4),
}
#: Its layers that attend to the whole text, and so are compressed.
COMPRESSED = ("5", "11", "17")
#: Claims that README shows family by family, by their ids in the ledger.
CLAIMS = {
    "paper-low-beats-random": "low norm beats random",
    "paper-low-beats-random-by-norm": "with the first tokens kept, too",
    "paper-lm-50": "half the cache goes without loss",
    "paper-correlation": "low norm, high attention",
    "paper-needle-50": "half goes, needle found",
}


#: Of few windows of one book, what the others are held against.
FEW = {
    "low norm": ("low_norm", 0, 0),
    "random": ("random", 0, 0),
    "four sinks and random": ("random", 4, 0),
    "four sinks and the latest": ("newest", 4, 0),
}
HUMAN, BOOK, EMBEDDED = "wikitext-breadth", "pg19-windows", "embedded-breadth"


def breadth(text_set: str, columns: Mapping[str, tuple[str, int, int]]) -> str:
    """Policies against keep ratio on many texts: change of perplexity with its interval."""
    rows = rows_of(f"{text_set}/breadth")
    lines = [["keep ratio", *columns]]
    for ratio in RATIOS:
        cells = []
        for policy, sinks, recent in columns.values():
            recent = min(recent, 16) if ratio == "0.1" else recent
            cells.append(change(rows[f"{policy} {ratio} {sinks} {recent} ()"]))
        lines.append([ratio, *cells])
    return _markdown(lines)


def with_what_it_can_show(text_set: str, columns: Mapping[str, tuple[str, int, int]]) -> str:
    """The same, and the minimal detectable effect of its rows."""
    rows = rows_of(f"{text_set}/breadth")
    effects = {
        f"{name}, keep {ratio}": rows[f"{policy} {ratio} {sinks} 0 ()"]["detectable"]
        for name, (policy, sinks, recent) in columns.items()
        for ratio in RATIOS
        if not recent
    }
    least, most = min(effects, key=effects.__getitem__), max(effects, key=effects.__getitem__)
    return (
        f"{breadth(text_set, columns)}\n\nMinimal detectable effect (80 % power): {per_cent(effects[least])} ({least}) "
        f"to {per_cent(effects[most])} ({most})."
    )


def positions() -> str:
    """Both position modes on the articles."""
    true, drifting = (rows_of(f"wikitext-articles/ppl-{mode}") for mode in ("absolute", "cache"))
    head = "keep ratio|PPL, true positions|change|PPL, positions from the cache length|change|mean cache|peak cache"
    lines = [head.split("|")]
    for ratio, row in true.items():
        other = drifting[ratio]
        changes = ["" if ratio == "1.0" else per_cent(each["ratio"]) for each in (row, other)]
        ppls = [f"{each['ppl']:.2f}" for each in (row, other)]
        memory = [f"{row['mean_cache']:.1f}", f"{row['peak_cache']:.0f}"]
        lines.append([ratio, ppls[0], changes[0], ppls[1], changes[1], *memory])
    return _markdown(lines)


def how_it_came_about() -> str:
    """What the report printed, how that came about, and the numbers that show it."""
    return _markdown([HEADINGS, *solved(recorded_tables())])


def second_family() -> str:
    """Gemma's policies against keep ratio on human texts: change of perplexity with its interval."""
    rows = rows_of(f"{HUMAN}/breadth", SECOND)
    lines = [["keep ratio", *CONTROLS]]
    for ratio in RATIOS:
        cells = [change(rows[f"{policy} {ratio} {sinks} 0 ()"]) for policy, sinks in CONTROLS.values()]
        lines.append([ratio, *cells])
    return _markdown(lines)


def norms() -> str:
    """Gemma's first tokens, layer by layer; how long BOS stays in the layers that are compressed."""
    head = "layer|BOS, before QK-norm|lower|BOS, after|lower|next three, before|after|BOS stays|attention to BOS"
    lines = [head.split("|")]
    for layer, row in rows_of(f"{HUMAN}/first-tokens", SECOND).items():
        full = layer in COMPRESSED
        stays = ", ".join(f"{row[f'stays_{kept}']:.0%}".replace("%", " %") for kept in (90, 50, 10))
        lines.append(
            [
                f"**{layer}**" if full else layer,
                *(
                    cell
                    for when in ("before", "after")
                    for cell in (
                        f"{row[when]:.2f} [{row[f'{when}_low']:.2f}, {row[f'{when}_high']:.2f}]",
                        f"{row[f'rank_{when}']:.0%}".replace("%", " %"),
                    )
                ),
                *(f"{row[f'next_{when}']:.2f}" for when in ("before", "after")),
                stays if full else "",
                f"{row['attention']:.0%}".replace("%", " %"),
            ]
        )
    return _markdown(lines)


def families() -> str:
    """What each family shows of some of the paper's claims, from the ledger."""
    verdicts = {verdict.id: verdict for verdict in ledger()}
    lines = [["the paper's claim", *FAMILIES.values()]]
    for name, claim in CLAIMS.items():
        lines.append([claim, *(answer_of(verdicts[name], family) for family in FAMILIES)])
    return _markdown(lines)


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"breadth": lambda: breadth(HUMAN, SHORT), "ledger": families},
    ROOT / "docs/findings.md": {
        "solved": how_it_came_about,
        "positions": positions,
        "breadth": lambda: with_what_it_can_show(HUMAN, WHOLE),
        "breadth within one book": lambda: with_what_it_can_show(BOOK, FEW),
        "breadth on embedded texts": lambda: with_what_it_can_show(EMBEDDED, WHOLE),
        "second family": second_family,
        "norms of the second family": norms,
    },
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


def rows_of(table: str, model: Path = MODEL) -> dict[str, dict[str, float]]:
    """The rows of a golden file, by their label."""
    with (model / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        read = list(csv.reader(lines))
    return {row[0]: dict(zip(read[0][1:], map(float, row[1:]), strict=True)) for row in read[1:]}


def change(row: Mapping[str, float], name: str = "ratio", least: int = 0) -> str:
    """A change and its interval as pages have them; limits without signs where all are rises from ``least`` on."""
    low, high = (per_cent(row[f"{name}_{end}"]).removesuffix(" %") for end in ("low", "high"))
    if 100 * (row[f"{name}_low"] - 1) > least > 0:
        low, high = low.removeprefix("+"), high.removeprefix("+")
    return f"{per_cent(row[name])} [{low}, {high}]"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])).replace("| --- ", "|---")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(made_anew(page), encoding="utf-8")
