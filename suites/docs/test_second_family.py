"""What findings.md says of Gemma 3 270M is held against its tables, and against what the ledger makes of them."""

from __future__ import annotations

from statistics import fmean

import pytest

from suites.claims.readme import ledger
from suites.docs.pages import ROOT
from suites.docs.tables import COMPRESSED, HUMAN, SECOND, change, rows_of

pytestmark = pytest.mark.fast

FINDINGS = (ROOT / "docs/findings.md").read_text("utf-8")


def test_what_is_said_of_the_second_family_follows_from_its_intervals():
    pairs = rows_of(f"{HUMAN}/breadth-pairs", SECOND)
    rows = rows_of(f"{HUMAN}/breadth", SECOND)
    against_low, controlled = "{} {} {} 0 () over low_norm {} 0 0 ()", "low_norm {0} 4 0 () over random {0} 4 0 ()"
    # better (-) or worse (+) at keep 0.9, 0.5 and 0.1, or not to be told
    expected = {("random", 0): "??-", ("low_norm", 4): "---", ("high_norm", 0): "++?", "both with sinks": "++?"}
    for policy, directions in expected.items():
        for ratio, direction in zip(("0.9", "0.5", "0.1"), directions, strict=True):
            label = controlled if isinstance(policy, str) else against_low
            row = pairs[label.format(*([ratio] if isinstance(policy, str) else [policy[0], ratio, policy[1], ratio]))]
            assert sign_of(row) == direction, (policy, ratio)
            assert change(row) in FINDINGS
    assert change(rows["random 0.1 4 0 ()"]) in FINDINGS
    assert change(rows["low_norm 0.98 0 0 (0, 1)"]) in FINDINGS
    assert change(pairs["random 0.98 0 0 (0, 1) over low_norm 0.98 0 0 (0, 1)"]) in FINDINGS
    for text_set in ("wikitext-short", "pg19"):
        uncompressed, steps = (rows_of(f"{text_set}/ppl-absolute{kind}", SECOND) for kind in ("", "-pairs"))
        for step in (uncompressed["0.9"], steps["0.5 over 0.9"], steps["0.1 over 0.5"]):
            assert sign_of(step) == "+"
            assert change(step) in FINDINGS
    bos = rows_of("pg19/bos", SECOND)
    assert f"perplexity is {bos['on']['ppl']:.1f} with BOS and {bos['off']['ppl']:.1f} without" in FINDINGS


def test_the_second_familys_first_token_is_as_long_as_the_findings_say():
    layers = rows_of(f"{HUMAN}/first-tokens", SECOND)
    paid = [f"{100 * layers[layer]['attention']:.0f}" for layer in COMPRESSED]
    assert f"it gets {paid[0]}, {paid[1]} and {paid[2]} % of their attention" in FINDINGS
    five, eleven, seventeen = (layers[layer] for layer in COMPRESSED)
    for layer in (five, eleven):
        assert layer["rank_before_high"] < 0.01
        assert layer["after_low"] > 1
    for when, said in (("before", "({:.2f} and {:.2f} of the median)"), ("after", "({:.2f} and {:.2f})")):
        assert said.format(five[when], eleven[when]) in FINDINGS
    assert f"it stays for {eleven['stays_90']:.0%}".replace("%", " %") in FINDINGS
    assert eleven["stays_50_high"] < 0.01
    assert (seventeen["stays_10"], seventeen["rank_after_high"] < 0.01) == (1, True)
    assert f"becomes the shortest ({seventeen['after']:.2f})" in FINDINGS
    assert [layer for layer, row in layers.items() if row["rank_after_high"] > 0.5] == ["5", "11", "12", "15"]
    assert f"In {len(layers) - 4} of {len(layers)} layers BOS is shorter than the median" in FINDINGS
    following = [row["next_after"] for row in layers.values()]
    assert f"keys of {min(following):.2f} to {max(following):.2f} times the median" in FINDINGS
    heads = rows_of(f"{HUMAN}/norm-attention", SECOND)
    assert f"in {fmean(head['spearman'] < 0 for head in heads.values()):.0%} of heads".replace("%", " %") in FINDINGS
    by_layer = {
        layer: [head["spearman"] for label, head in heads.items() if label.startswith(f"{layer} ")] for layer in layers
    }
    disagreeing = [layer for layer, of_layer in by_layer.items() if fmean(value < 0 for value in of_layer) < 0.5]
    assert disagreeing == ["5", "11", "12", "15"]
    assert "Most heads disagree in layers 5, 11, 12 and 15, and in no other" in FINDINGS
    first, second = (fmean(by_layer[layer]) for layer in COMPRESSED[:2])
    assert f"Spearman {first:+.2f} and {second:+.2f} in 5 and 11, mean over heads" in FINDINGS


def test_the_short_of_the_ledger_says_of_the_second_family_what_the_ledger_says():
    answers = {
        verdict.id: transfer.answer
        for verdict in ledger()
        for transfer in verdict.transfers
        if transfer.model == SECOND.name
    }
    carries = {"report-wikitext-rises", "paper-correlation"}
    assert {name for name, answer in answers.items() if answer == "carries over"} == carries
    failing = {"paper-lm-50", "paper-lm-50-llama", "paper-low-beats-random-by-norm"}
    assert {name for name, answer in answers.items() if answer == "does not carry over"} == failing
    assert answers["paper-low-beats-random"] == answers["report-ppl-rises"] == "open"
    assert "paper-needle-50" not in answers


def sign_of(row: dict[str, float]) -> str:
    return "-" if row["ratio_high"] < 1 else "+" if row["ratio_low"] > 1 else "?"
