"""Tables with the first layers left uncompressed, and the cost of each layer alone.

CPU-seconds in float64: two texts × (1 prefix + 13 rows) of 512 tokens, 80; a text of 384 tokens × 32 rows from
128 on, 85.
"""

from __future__ import annotations

import functools

import pytest

from knorm_core.experiments.controls import pooled, shown_change
from knorm_core.experiments.intervals import perplexity_ratio, precision
from knorm_core.experiments.layers_skipped import SkipRow, only, skip_rows
from knorm_core.results.interval import Interval
from suites.experiments.conftest import on_both_texts

RATIOS = (0.9, 0.5, 0.1)
SKIPPED = ((), (0,), (0, 1))
ROWS = [SkipRow((), 1.0), *skip_rows(SKIPPED, RATIOS, ("absolute", "cache"))]

both_texts = on_both_texts("layers", pytest.mark.slow)


@pytest.mark.fast
def test_only_is_everything_else():
    assert [only(layer, 3) for layer in range(3)] == [(1, 2), (0, 2), (0, 1)]
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=f"layer={layer} is not one of 0 … 2"):
            only(layer, 3)


@pytest.fixture(scope="session")
def skip_table(language_model, rows_of, short_texts):
    """``skip_table(text_set)``: {row: Evaluation} of the set's first text, computed once per process."""

    @functools.cache
    def table(text_set):
        language_model.require(layers=1 + max(map(len, SKIPPED)))
        text = short_texts(text_set)[0]
        return rows_of(f"{text_set}: {text.title}", text.input_ids, {row: row.arguments() for row in ROWS})

    return table


@both_texts
def test_tables_with_layers_skipped_match_the_baseline(text_set, skip_table, short_texts, check_rows, show_table):
    table = skip_table(text_set)
    plain = [table[ROWS[0]]]
    rows = [row._asdict() | pooled([table[row]], plain) for row in ROWS]
    show_table(
        f"layers skipped, {text_set}, 512 tokens",
        [
            {
                "skipped": str(row["skip_layers"]),
                "keep ratio": str(row["keep_ratio"]),
                "positions": row["positions"],
                "PPL": row["ppl"],
                **shown_change(Interval.of(row, "ratio")),
                "mean cache": f"{row['mean_cache']:.1f}",
            }
            for row in rows
        ],
        precision({"all layers": [table[SkipRow((), 0.5)]]}, plain),
        *what_skipping_does(table),
    )
    texts = short_texts(text_set)[:1]
    check_rows(f"{text_set}/layers-skipped", rows, list(SkipRow._fields), texts, prune_after=256, tokens=512)


def what_skipping_does(table):
    """Per keep ratio, what skipping layer 0 does to the cache and what it does to the positions."""
    for ratio in RATIOS:
        cache, both = (
            perplexity_ratio([table[SkipRow((0,), ratio)]], [table[SkipRow((), ratio, mode)]])
            for mode in ("absolute", "cache")
        )
        yield (
            f"Keep {ratio}: skipping layer 0 changes perplexity by {cache.change} ({cache.limits}) where true "
            f"positions are passed, and by {both.change} ({both.limits}) where they are taken from the cache length."
        )


# Keep ratios at which skipping layer 0 lowers perplexity in a program that passes no positions, beyond the
# interval: the rarer the evictions, the less drift there is to take away.
SKIPPING_MENDS = {"embedded-articles": {0.9, 0.5, 0.1}, "embedded-narrative": {0.9, 0.5}}


@both_texts
@pytest.mark.parametrize("ratio", RATIOS)
def test_skipping_layer_0_gives_true_positions_to_a_program_that_passes_none(text_set, ratio, skip_table, claims):
    table = skip_table(text_set)
    for skipped in ((0,), (0, 1)):
        assert table[SkipRow(skipped, ratio)].nll.equal(table[SkipRow(skipped, ratio, "cache")].nll)
    drifted, skipped = table[SkipRow((), ratio, "cache")], table[SkipRow((0,), ratio, "cache")]
    assert (perplexity_ratio([skipped], [drifted]).high < 1) == (ratio in SKIPPING_MENDS[text_set])


@both_texts
@pytest.mark.parametrize("ratio", RATIOS)
def test_with_true_positions_skipping_layer_0_makes_no_difference(text_set, ratio, skip_table, claims):
    table = skip_table(text_set)
    skipped, all_layers = table[SkipRow((0,), ratio)], table[SkipRow((), ratio)]
    assert not perplexity_ratio([skipped], [all_layers]).excludes_no_change


# --- one layer at a time

TOKENS, PRUNE_AFTER, RATIO = 384, 128, 0.5


@pytest.fixture(scope="session")
def one_text(language_model, texts_of):
    return texts_of(language_model, "embedded-articles", TOKENS, 1)


@pytest.fixture(scope="session")
def layer_table(language_model, rows_of, one_text):
    """{layer: Evaluation with that layer alone compressed}, with None uncompressed and "all" all of them."""
    layers = language_model.model.config.num_hidden_layers
    rows = {None: {"keep_ratio": 1.0}, "all": {"keep_ratio": RATIO}}
    rows |= {layer: {"keep_ratio": RATIO, "skip_layers": only(layer, layers)} for layer in range(layers)}
    rows = {key: row | {"prune_after": PRUNE_AFTER} for key, row in rows.items()}
    return rows_of(f"embedded-articles: {one_text[0].title}", one_text[0].input_ids, rows)


@pytest.mark.slow
@pytest.mark.xdist_group("layers alone")
def test_the_cost_of_each_layer_alone_matches_the_baseline(layer_table, one_text, check_rows, show_table):
    changes = {
        layer: perplexity_ratio([row], [layer_table[None]]) for layer, row in layer_table.items() if layer is not None
    }
    alone = {layer: change for layer, change in changes.items() if layer != "all"}
    costly = [layer for layer, change in alone.items() if change.excludes_no_change]
    product = 1.0
    for change in alone.values():
        product *= change.value
    show_table(
        f"one layer compressed at a time, keep {RATIO}, {TOKENS} tokens, prune_after {PRUNE_AFTER}",
        [
            {"layer": str(layer), "PPL": layer_table[layer].ppl, **shown_change(change)}
            for layer, change in changes.items()
        ],
        precision({"all layers": [layer_table["all"]]}, [layer_table[None]]),
        f"Alone, layers {costly} change perplexity beyond their interval; the dearest is layer "
        f"{max(alone, key=lambda layer: alone[layer].value)}. All layers together change it by "
        f"{changes['all'].change}, the single changes multiply to {product - 1:+.1%}.",
    )
    rows = [
        {"layer": layer, "ppl": layer_table[layer].ppl, "ratio_low": change.low, "ratio_high": change.high}
        for layer, change in changes.items()
    ]
    settings = {"tokens": TOKENS, "prune_after": PRUNE_AFTER, "keep_ratio": RATIO}
    check_rows("embedded-articles/layers-alone", rows, ["layer"], one_text, **settings)


@pytest.mark.slow
@pytest.mark.xdist_group("layers alone")
def test_only_the_layer_that_is_named_was_compressed(layer_table):
    for layer, row in layer_table.items():
        fired = [index for index, evictions in enumerate(row.evictions) if evictions]
        assert fired == ([] if layer is None else list(range(len(row.evictions))) if layer == "all" else [layer])
