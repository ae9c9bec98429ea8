"""The sentence above a figure follows from its data: other data, other sentence."""

from __future__ import annotations

import math

import pytest

from knorm_core.report import (
    baselines,
    cache_length,
    cold_start,
    controls,
    latency,
    norm_attention,
    passkey,
    perplexity,
    precision,
    runs,
    sawtooth,
    verdicts,
)
from knorm_core.report.claimed import by_keep_ratio
from knorm_core.results.interval import Interval
from knorm_core.results.records import Baseline, ChangedCell, Results, Run, Table, Test, Verdict
from suites.report import made_up
from suites.report.recorded import recorded

pytestmark = pytest.mark.fast


def curve(*ppl, low=0.0, high=math.inf):
    points = zip((1.0, 0.9, 0.5, 0.1), ppl, strict=True)
    return [perplexity.Point(keep, p, Interval(p / ppl[0], low, high)) for keep, p in points]


def test_perplexity_says_which_way_each_curve_goes():
    assert perplexity.finding({"absolute": curve(20, 26, 24, 30), "cache": curve(20, 90, 50, 30)}) == (
        "Keep 0.9 changes perplexity by +30 % with true positions (the estimates are worst at keep 0.1 and best "
        "at 0.5) and by +350 % with positions from the cache length (the estimates fall at every step down)."
    )
    assert "+10 % with positions from the cache length (the estimates rise at every step down)" in perplexity.finding(
        {"cache": curve(20, 22, 24, 30)}
    )
    assert perplexity.finding({"cache": curve(20, 22, 24, 30)[:2]}) == (
        "Keep 0.9 changes perplexity by +10 % with positions from the cache length."
    )
    unsure = curve(4, 5, 6, 7, low=0.9, high=2)
    assert perplexity.finding({"cache": unsure}).startswith(
        "Keep 0.9 changes perplexity by +25 % [−10, +100], an interval that holds no change, with positions"
    )


def test_memory_says_what_the_lowest_keep_ratio_leaves_and_whether_anything_fired():
    def rows(*means, evictions=4, peak=256):
        keeps = zip((1.0, 0.9, 0.1), means, strict=True)
        same = {"peak_cache": peak, "evictions_per_layer": evictions}
        return [{"keep_ratio": keep, "mean_cache": mean, **same} for keep, mean in keeps]

    # Both means are over the same texts; a peak is the longest text's, and stands apart.
    assert cache_length.memory_finding({"t": rows(300, 250, 150)}) == (
        "The keep ratio is not the memory left: keep 0.1 holds on average, of what is held without compression, 50 % "
        "on t, and compressed rows peak at 256 entries."
    )
    both = cache_length.memory_finding({"t": rows(300, 250, 75), "u": rows(200, 190, 150, peak=172)})
    assert "25 % on t and 75 % on u, and compressed rows peak at 172 to 256 entries." in both
    assert cache_length.memory_finding({"t": rows(300, 250, 128, evictions=0)}) == (
        "Compression never fired on t: these rows compare nothing with nothing."
    )


def test_memory_is_shown_of_other_settings_too():
    row = {
        "keep_ratio": 0.5,
        "mean_cache": 9.0,
        "peak_cache": 10,
        "scored_tokens": 10,
        "evictions_per_layer": 1,
        "ppl": 2,
    }
    table = Table("m/t/ppl-absolute-0123abcd", ["keep_ratio"], [row | {"keep_ratio": 1.0}, row])
    section = cache_length.section(Results(tables=[table]))
    assert [figure.title for figure in section.figures] == ["m"]
    assert "mean caches and evictions" not in [absent.what for absent in section.absent]


def test_the_sawtooth_counts_its_teeth():
    assert sawtooth.finding(sawtooth.traces(made_up.trace())) == (
        "Over 1,023 tokens keep 0.9 evicts 31 times and keep 0.1 evicts 4 times, and the cache peaks at 256 entries."
    )
    assert "keep 0.1 evicts once" in sawtooth.finding(sawtooth.traces(made_up.trace(tokens=300)))
    assert "keep 0.9 never evicts" in sawtooth.finding({1.0: [(0, 1), (9, 10)], 0.9: [(0, 1), (9, 10)]})


def test_controls_say_where_low_norm_wins():
    def rows(low, random, sinks):
        policies = [("low_norm", 0, low), ("random", "mean", random), ("random", 0, 1.0), ("newest_4_sinks", 0, sinks)]
        return [
            {"policy": policy, "seed": seed, "keep_ratio": keep, "positions": "absolute", "ppl": ppl}
            for policy, seed, by_keep in policies
            for keep, ppl in zip((0.9, 0.1), by_keep if isinstance(by_keep, list) else [by_keep] * 2, strict=True)
        ]

    assert controls.finding(rows([4, 5], [6, 7], [3, 4])) == (
        "Low norm has the lower perplexity at every keep ratio than random choice, and at no keep ratio than four "
        "sinks and the most recent."
    )
    assert "at keep 0.9 than random choice, and at every keep ratio than four" in controls.finding(
        rows([4, 8], [6, 7], [9, 9])
    )


def test_norm_against_attention_counts_heads_and_names_layers():
    def rows(*spearman):
        return [{"layer": index // 2, "head": index % 2, "spearman": value} for index, value in enumerate(spearman)]

    assert norm_attention.finding(rows(0.2, 0.1, -0.5, -0.6)) == (
        "Low norm goes with high attention in 2 of 4 heads (mean Spearman −0.20); most heads disagree in layer 0."
    )
    assert norm_attention.finding(rows(-0.2, 0.1, -0.5, -0.6)).endswith("in no layer do most heads disagree.")


def test_pass_keys_are_counted_by_keep_ratio():
    def rows(when, matches_by_keep, of=10):
        return [
            {"when": when, "keep_ratio": keep, "skip_layers": "()", "matches": matches, "of": of}
            for keep, matches in matches_by_keep.items()
        ]

    tables = [
        ("passkey-256", rows("after_prefill", {1.0: 10, 0.9: 10, 0.5: 0, 0.1: 0})),
        ("passkey-512", rows("every_step", {0.9: 3}, 5)),
    ]
    assert passkey.finding(tables) == (
        "Compressed once after the prompt, 10 of 10 are found at keep 0.9, none at 0.5 and 0.1; compressed at every "
        "step, 3 of 5 are found at keep 0.9."
    )
    assert (
        passkey.finding([("needle-512", rows("after_prefill", {0.9: 3}))])
        == "No pass key was sought under compression."
    )


def test_gains_along_the_context_may_be_losses_or_nothing():
    assert latency.contexts_finding(made_up.contexts(2.86).rows) == (
        "At 8,192 tokens of context keep 0.1 decodes faster than keep 1.0, ×2.86 [2.72 … 3.00], with 36 in place of "
        "360 MiB of cache."
    )
    assert "neither faster nor slower than keep 1.0 beyond the interval" in latency.contexts_finding(
        made_up.contexts(1.01).rows
    )
    assert "slower than keep 1.0, ×0.50" in latency.contexts_finding(made_up.contexts(0.5).rows)
    assert "takes ×0.12 [0.11 … 0.13] the time to first token" in latency.short_finding(made_up.ttft(0.12).rows)


def cold_finding(first_call, honest=1.01):
    rows, calls = (table.rows for table in made_up.cold_start(first_call, honest))
    return cold_start.finding(calls[0], rows, {0.9: -88.0, 0.5: -90.0})


def test_a_cold_start_makes_the_claimed_fall_or_does_not():
    assert cold_finding(1.1) == (
        "A cold first call takes ×1.10 [1.04 … 1.16] a warm one: a cold baseline alone makes −9.1 %, not the −88 % "
        "claimed; with honest timers the best keep ratio has +1.0 %."
    )
    assert "alone makes −89 %, which is as much as the −88 % claimed" in cold_finding(9.0)
    assert "the best keep ratio has −88 %" in cold_finding(1.1, honest=0.12)


def test_a_first_call_is_told_apart_from_what_comes_before_it():
    assert cold_start.parts_finding(made_up.cold_start(1.1)[1].rows) == (
        "A first call takes 0.57 s, 0.052 s more than a warm one; imports and loading of the model, which no timer of "
        "a call sees, take 5.1 s."
    )
    assert cold_start.parts_finding(made_up.cold_start(9.0)[1].rows).startswith("A first call takes 4.7 s, 4.2 s more")
    assert "less than a warm one" in cold_start.parts_finding(made_up.cold_start(0.9)[1].rows)


def test_what_is_claimed_is_read_from_the_claims():
    def claim(name, expected):
        return Verdict(name, "report", "", "", "", "", expected, "", "refuted", "")

    claims = [
        claim("report-ttft-0.9", "-88 %"),
        claim("report-pg19-ppl-1.0", "39.72"),
        claim("report-ttft-0.1", "falls"),
    ]
    assert by_keep_ratio(claims, "ttft") == {0.9: -88.0}
    assert by_keep_ratio(claims, "pg19-ppl") == {1.0: 39.72}


def test_the_ledger_holds_the_report_s_table(results):
    for what, numbers in {
        "wikitext-ppl": [75.03, 84.55, 89.41, 161.37],
        "pg19-ppl": [39.72, 57.48, 50.59, 51.73],
        "ttft": [-88, -90, -90],
    }.items():
        assert [*by_keep_ratio(results.verdicts, what).values()] == numbers


def test_precision_names_the_largest_shift_and_share():
    assert precision.finding(made_up.precisions().rows) == (
        "Against float64, float32 moves perplexity by at most 0.03 % and evicts other keys in up to 0.4 % of "
        "evictions; bfloat16 by 2 % and in 83 %."
    )
    assert "float32 moves perplexity by at most 1.5 %" in precision.finding(made_up.precisions(-0.015).rows)


def test_baselines_say_what_changed_and_by_how_much():
    def table(status, *cells):
        return Table("m/t/x", [], [{}], baseline=Baseline(status, 1e-6, 0.0, cells))

    same = table("same")
    moved = table("same", ChangedCell("0.9", "ppl", 20.0, 20.0 * (1 + 1.3e-7)), ChangedCell("0.9", "ratio", 1.0, 1.0))
    assert baselines.finding([same, same]) == "All 2 tables agree with their baselines; no cell differs."
    assert baselines.finding([moved]) == (
        "The table agrees with its baseline; every cell is within the tolerance, the furthest by 1.3e-07."
    )
    changed = table("changed", ChangedCell("0.1", "ppl", 20.0, 30.0), ChangedCell("0.9", "ppl", 20.0, 20.0000001))
    assert baselines.finding([same, changed, table("missing")]) == (
        "Of 3 tables 1 changed and 1 without a baseline yet; the one cell beyond the tolerance is ppl at 0.1 of m/t/x "
        "(20 → 30, 5.0e-01 relative)."
    )


def test_the_outcome_counts_tests():
    run = Run("a", "", 125.0, "", 0, {}, {}, {})
    passed, failed, skipped = (Test(outcome, outcome, 1.0) for outcome in ("passed", "failed", "skipped"))
    assert runs.outcome([passed, skipped, passed], [run]) == "All 2 tests passed, 1 skipped; together 2 min 5 s."
    assert runs.outcome([passed, failed], [run]) == "1 of 2 tests failed; together 2 min 5 s."
    assert runs.outcome([], [run]) == "No test is recorded here."


def test_verdicts_are_counted():
    def verdict(kind):
        return Verdict(kind, "report", "", "", "", "", "", "", kind, "")

    assert verdicts.summary([verdict("refuted"), verdict("refuted"), verdict("explained")]) == (
        "Of 3 claims, 1 is explained and 2 are refuted."
    )
    assert verdicts.summary([verdict("reproduced")]) == "Of 1 claim, 1 is reproduced."


@pytest.mark.parametrize("section", [perplexity.section, controls.section])
def test_whoever_reads_a_conclusion_reads_what_model_and_texts_it_is_from(section):
    for figure in section(recorded()).figures:
        second = "gemma" in figure.title
        assert (
            "SmolLM2-135M-Instruct: tuned to follow instructions, and de-quantised from Q4_1" in figure.note
        ) != second
        assert ("Gemma 3 270M: a base model, de-quantised from Q4_K_M" in figure.note) == second
        assert ("written for this project" in figure.note) == ("embedded" in figure.title)
