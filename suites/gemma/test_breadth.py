"""Low norm and its controls on 32 texts of 512 tokens with BOS, in float32; 23 rows, one seed each.

A row takes 32 × 1.0 CPU-seconds, half of it for a vocabulary of 262,144: 710 CPU-seconds in all. Three of 18 layers
attend to the whole text and are compressed; the window of the others is as long as the text.
"""

from __future__ import annotations

import pytest

from knorm_core.experiments.breadth import TEXTS, UNCOMPRESSED, Row, paired, prune_after_of, table
from knorm_core.experiments.controls import shown_change
from knorm_core.experiments.intervals import precision
from knorm_core.inputs.tokenizers import begins_with_bos
from knorm_core.results.interval import Interval
from suites.gemma.conftest import ROWS

pytestmark = [pytest.mark.gemma, pytest.mark.xdist_group("gemma")]

FULL = {5, 11, 17}


@pytest.mark.parametrize("index", range(TEXTS))
def test_every_row_of_a_text_is_compressed_in_the_layers_that_attend_to_all(
    index, gemma, texts_and_notes, evaluation_of
):
    _, texts, _ = texts_and_notes
    if index >= len(texts):
        pytest.skip(f"{len(texts)} texts were asked for, or are here")
    assert begins_with_bos(gemma.tokenizer)
    assert int(texts[index].input_ids[0]) == gemma.tokenizer.bos_token_id
    for row, evaluation in evaluation_of(index).items():
        assert evaluation.method == "onepass"
        assert evaluation.effective_prune_after == prune_after_of(index)
        fired = {layer for layer, count in enumerate(evaluation.evictions_per_layer) if count}
        assert fired == (set() if row == UNCOMPRESSED else FULL)


@pytest.fixture
def evaluations(texts_and_notes, evaluation_of):
    """{row: one evaluation per text}"""
    by_text = [evaluation_of(index) for index in range(len(texts_and_notes[1]))]
    return {row: [text[row] for text in by_text] for row in ROWS}


def test_the_table_matches_the_baseline(evaluations, texts_and_notes, check_rows, show_table):
    name, texts, notes = texts_and_notes
    rows = table(ROWS, evaluations)
    compressed = {f"{row.name} at keep {row.keep_ratio}": evaluations[row] for row in ROWS if row != UNCOMPRESSED}
    show_table(
        f"Gemma 3 270M, {name} ({len(texts)} texts), 512 tokens with BOS, float32",
        [
            {
                "policy": row.name,
                "keep ratio": str(row.keep_ratio),
                "PPL": columns["ppl"],
                **shown_change(Interval.of(columns, "ratio")),
                "against low norm": str(Interval.of(columns, "to_low_norm")),
            }
            for row, columns in zip(ROWS, rows, strict=True)
        ],
        precision(compressed, evaluations[UNCOMPRESSED]),
        "Every text has its own prune_after (mean 256) and a seed of its own.",
        *notes,
    )
    check_rows(f"{name}/breadth", rows, list(Row._fields), texts, dtype="float32", tokens=512)


def test_paired_ratios_match_the_baseline(evaluations, texts_and_notes, check_rows):
    name, texts, _ = texts_and_notes
    check_rows(f"{name}/breadth-pairs", paired(ROWS, evaluations), ["pair"], texts, dtype="float32", tokens=512)
