"""What findings.md says in figures and directions is held against the baselines, sentence by sentence.

What it says of a second family is held in `suites/docs/test_second_family.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from knorm_core import eviction_schedule
from knorm_core.results.interval import per_cent
from suites.docs.pages import ROOT
from suites.docs.tables import BOOK, EMBEDDED, HUMAN, MODEL, RATIOS, SECOND, change, rows_of

pytestmark = pytest.mark.fast

FINDINGS = (ROOT / "docs/findings.md").read_text("utf-8")
PLAIN, SINKS, PAPER = "0 0 ()", "4 0 ()", "0 0 (0, 1)"
#: What is history, or somebody else's.
OF_OLD = (
    "gave +144 %",
    "where 5 % are allowed",
    "the report's +45 %",
    "95 % interval",
    "30 % go without loss",
    "512 of 512",
    "slows generation by 15 to 18 %",
    "is worth 11 % at keep 0.5",
)


def against(text_set: str, policy: str, other: str, ratio: str, least: int = 0) -> str:
    """The paired change from one row to another with four sinks, or to low norm."""
    reference = f"{other} {ratio} {PLAIN if other == 'low_norm' else SINKS}"
    return change(rows_of(f"{text_set}/breadth-pairs")[f"{policy} {ratio} {SINKS} over {reference}"], least=least)


def inversion(text_set: str, recent: int) -> str:
    return change(rows_of(f"{text_set}/inversion")[str(recent)])


def in_the_papers_setting(policy: str, kept: str = PAPER) -> str:
    return change(rows_of(f"{HUMAN}/breadth")[f"{policy} 0.98 {kept}"], least=10)


def every(text_set: str, policy: str, other: str) -> str:
    return ", ".join(against(text_set, policy, other, ratio) for ratio in RATIOS)


def recall(table: str, row: str) -> tuple[float, float]:
    counts = rows_of(f"retrieval/{table}")[row]
    return counts["matches"], counts["of"]


def sentences() -> Iterator[str]:
    """Every piece of a sentence that has a figure, made from the baselines."""
    articles, pg19 = rows_of("wikitext-articles/ppl-absolute"), rows_of("pg19/ppl-absolute")
    embedded = {mode: rows_of(f"embedded-articles/ppl-{mode}") for mode in ("absolute", "cache")}
    yield f"perplexity {embedded['absolute']['1.0']['ppl']:.0f} against {articles['1.0']['ppl']:.0f} on articles"
    yield (
        f"On the four embedded articles, which pin regressions, keep 0.9 has "
        f"{per_cent(embedded['absolute']['0.9']['ratio'])} and {per_cent(embedded['cache']['0.9']['ratio'])}"
    )
    yield f"0.7 against 0.9 has {change(rows_of('wikitext-articles/ppl-absolute-pairs')['0.7 over 0.9'])}"
    yield ", ".join(f"{per_cent(pg19[ratio]['ratio'])} at {ratio}" for ratio in RATIOS)
    held = {ratio: articles[ratio]["mean_cache"] / 256 for ratio in RATIOS}
    yield f"keep 0.1 holds {held['0.1']:.0%} of 256".replace("%", " %")
    yield f"keep 0.9 {held['0.9']:.0%}, and every row peaks at 256".replace("%", " %")
    first, second, third = (against(HUMAN, "random", "low_norm", ratio) for ratio in RATIOS)
    yield f"better than low norm at 0.9 and 0.5 ({first}, {second}) and cannot be told from it at 0.1 ({third})"
    yield f"worse than random at every keep ratio ({every(HUMAN, 'high_norm', 'random')})"
    first, second, third = (against(HUMAN, "high_norm", "low_norm", ratio) for ratio in RATIOS)
    yield f"worse than low norm at 0.9 and 0.1 ({first}, {third}; at 0.5, {second} shows neither)"
    recency = rows_of("wikitext-articles/recency")
    by_recent = {recent: change(row) for recent, row in rows_of("wikitext-articles/recency-inversion").items()}
    yield f"keep 0.9 against 0.5 has {by_recent['0']}. With the latest 16, 32 or 64 tokens protected"
    yield f"the inversion is gone: {', '.join(by_recent[recent] for recent in ('16', '32', '64'))}."
    yield f"take {per_cent(recency['0.1 0']['ratio'])} to {per_cent(recency['0.1 16']['ratio'])}"
    ours = {recent: change(row) for recent, row in rows_of("embedded-articles/recency-inversion").items()}
    yield f"the same, {ours['0']} without protection and {ours['32']} with 32."
    yield f"no inversion to explain ({inversion(HUMAN, 0)})"
    yield f"0.9 is better, as one would expect ({inversion(HUMAN, 32)})"
    first, second, third = (against(HUMAN, "newest", "random", ratio) for ratio in RATIOS)
    yield f"random ones at 0.9 and 0.5 ({first}, {second}), and are better at 0.1 ({third})"
    truncated = rows_of("report/truncation-pairs")
    for sinks, which in ((0, "against truncation at keep 0.9 and 0.6"), (4, "against truncation that keeps them")):
        first, second = (
            change(truncated[f"low_norm_exact {ratio} 0 over newest {ratio} {sinks}"]) for ratio in ("0.9", "0.6")
        )
        yield f"{first} and {second} {which}"
    yield f"below keep 0.6 ({change(rows_of('report/u-curve-pairs')['0.3 over 0.6'])} at 0.3)"
    low, random, high = map(in_the_papers_setting, ("low_norm", "random", "high_norm"))
    with_sinks = in_the_papers_setting("random", "4 0 (0, 1)")
    yield f"low norm {low}, four sinks and random {with_sinks}, random {random}, high norm {high}"
    yield f"beats low norm everywhere ({every(BOOK, 'newest', 'low_norm')})"
    first, second, third = (against(BOOK, "random", "low_norm", ratio) for ratio in RATIOS)
    yield f"at 0.5 alone ({second}), cannot be told from it at 0.9 ({first}), and is worse at 0.1 ({third})"
    yield f"protected ({inversion(BOOK, 32)}) or without ({inversion(BOOK, 0)})"
    yield f"without loss ({in_the_papers_setting('low_norm')} in the paper's own setting"
    second, label = rows_of(f"{HUMAN}/breadth", SECOND), f"0.98 {PAPER}"
    yield f"half of the cache goes without loss ({change(second[f'low_norm {label}'])}), do not"
    yield f"is open ({change(rows_of(f'{HUMAN}/breadth-pairs', SECOND)[f'random {label} over low_norm {label}'])})"
    yield f"({change(articles['0.7'])} on four articles)"
    yield f"({change(pg19['0.9'])} within one book)"
    right, of = recall("passkey-paper-512", "after_prefill 0.1 (0,)")
    yield f"{right:.0f} of {of:.0f} are found at keep 0.1"
    right, of = recall("needle-512", "after_prefill 0.5 ()")
    yield f"without losing the needle ({right:.0f} of {of:.0f})"


@pytest.mark.parametrize("piece", sentences())
def test_a_figure_of_the_findings_is_that_of_the_baselines(piece):
    assert piece in FINDINGS


def test_no_figure_of_the_findings_is_held_by_nothing():
    elsewhere = r"## A second family.*?(?=\n## )|```.*?```|<!-- (\w[\w ]*) -->.*?<!-- end of \1 -->"
    text = re.sub(elsewhere, "", FINDINGS, flags=re.DOTALL)
    for piece in (*sentences(), *OF_OLD):
        text = text.replace(piece, "")
    assert re.findall(r".{30}\d %.{10}|.{30}\d of \d.{10}", text) == []


def test_keep_nine_tenths_evicts_every_25_tokens_and_a_tenth_every_230():
    for ratio, tokens in ((0.9, 25), (0.1, 230)):
        steps = [eviction.step for eviction in eviction_schedule(1024, 256, ratio)]
        assert {later - earlier for earlier, later in pairwise(steps)} == {tokens}
        assert f"0.{ratio * 10:.0f} {'evicts ' if ratio > 0.5 else ''}every {tokens}" in FINDINGS


@pytest.mark.parametrize("text_set", ["wikitext-articles", "pg19", "embedded-articles", "embedded-narrative"])
def test_with_true_positions_nine_tenths_are_worse_than_seven_on_long_texts(text_set):
    assert rows_of(f"{text_set}/ppl-absolute-pairs")["0.7 over 0.9"]["ratio_high"] < 1


def test_drift_inverts_the_curve_and_nine_tenths_are_the_worst_within_the_novel():
    drifting = [row["ppl"] for row in rows_of("wikitext-articles/ppl-cache").values()][1:]
    assert drifting == sorted(drifting, reverse=True)
    novel = rows_of("pg19/ppl-absolute")
    assert max(novel, key=lambda ratio: novel[ratio]["ppl"]) == "0.9"


def test_the_report_has_its_order_without_drift_and_neither_column_with_it():
    columns = {"wikitext-short": ["1.0", "0.9", "0.5", "0.1"], "pg19": ["1.0", "0.5", "0.1", "0.9"]}

    def in_order(mode):
        for text_set, ratios in columns.items():
            rows = rows_of(f"{text_set}/ppl-{mode}")
            ppls = [rows[ratio]["ppl"] for ratio in ratios]
            yield ppls == sorted(ppls)

    assert (list(in_order("absolute")), list(in_order("cache"))) == ([True, True], [False, False])
    tie = rows_of("pg19/ppl-absolute-pairs")["0.1 over 0.5"]
    assert tie["ratio_low"] < 1 < tie["ratio_high"]


#: Four sinks and …, at keep 0.9, 0.5 and 0.1: better (-), worse (+), or not told apart (?).
DIRECTIONS = {
    (HUMAN, "random", "low_norm"): "--?",
    (HUMAN, "high_norm", "random"): "+++",
    (HUMAN, "high_norm", "low_norm"): "+?+",
    (HUMAN, "newest", "random"): "??-",
    (EMBEDDED, "high_norm", "low_norm"): "--?",
    (EMBEDDED, "newest", "random"): "---",
    (BOOK, "newest", "low_norm"): "---",
    (BOOK, "random", "low_norm"): "?-+",
}


@pytest.mark.parametrize(("text_set", "policy", "other"), DIRECTIONS)
def test_what_is_better_and_what_is_worse_is_so_in_the_baselines(text_set, policy, other):
    pairs, signs = rows_of(f"{text_set}/breadth-pairs"), ""
    for ratio in RATIOS:
        row = pairs[f"{policy} {ratio} {SINKS} over {other} {ratio} {PLAIN if other == 'low_norm' else SINKS}"]
        signs += "-" if row["ratio_high"] < 1 else "+" if row["ratio_low"] > 1 else "?"
    assert signs == DIRECTIONS[text_set, policy, other]


def test_random_alone_is_worse_than_low_norm_at_every_keep_ratio_and_in_the_papers_setting():
    pairs = rows_of(f"{HUMAN}/breadth-pairs")
    rows = [f"{ratio} {PLAIN}" for ratio in RATIOS] + [f"0.98 {PAPER}"]
    assert min(pairs[f"random {row} over low_norm {row}"]["ratio_low"] for row in rows) > 1


@pytest.mark.parametrize("text_set", ["wikitext-articles", "embedded-articles"])
def test_the_inversion_is_there_without_protected_tokens_and_gone_with_them(text_set):
    rows = rows_of(f"{text_set}/recency-inversion")
    assert {recent: row["ratio_low"] > 1 for recent, row in rows.items()} == {
        "0": True, "16": False, "32": False, "64": False,
    }  # fmt: skip


def test_of_the_policies_on_human_texts_the_newest_tokens_beat_the_one_that_the_findings_name():
    policies = {
        path.stem: rows_of(f"wikitext-breadth/{path.stem}") for path in MODEL.glob("wikitext-breadth/policy-*.csv")
    }
    beaten = [name for name, rows in policies.items() if rows["newest 0.9"]["against_low"] > 1]
    assert (len(policies), beaten) == (8, ["policy-low_norm"])


def test_pass_keys_and_needles_are_found_where_the_short_of_the_ledger_says_so():
    assert recall("passkey-paper-512", "after_prefill 0.5 (0,)") == (10, 10)
    for context in (256, 512, 1024, 2048):
        assert recall(f"passkey-{context}", "after_prefill 0.5 ()") == (0, 10)
