"""Gemma needs its BOS: without it the first token of the text takes its place, and perplexity rises."""

from __future__ import annotations

import pytest

from knorm_core import evaluate
from suites.human_texts import human_or_embedded

pytestmark = [pytest.mark.gemma, pytest.mark.xdist_group("gemma")]

TOKENS = 600


def test_perplexity_is_lower_with_bos(gemma, single_precision, texts_of, check_rows, show_table):
    def load(name):
        return texts_of(gemma, name, TOKENS + 1, 1)  # BOS among them

    name, notes = human_or_embedded(load, "pg19", "embedded-narrative")
    [text] = load(name)
    assert int(text.input_ids[0]) == gemma.tokenizer.bos_token_id
    # The first token of the text has nothing before it without BOS: both are scored from the second one on.
    rows = {
        "on": evaluate(single_precision, text.input_ids, keep_ratio=1, score_from="start"),
        "off": evaluate(single_precision, text.input_ids[1:], keep_ratio=1, score_from="start"),
    }
    losses = {bos: evaluation.nll[-(TOKENS - 1) :] for bos, evaluation in rows.items()}
    ppl = {bos: float(nll.double().mean().exp()) for bos, nll in losses.items()}
    show_table(
        f"Gemma 3 270M with and without BOS, the first {TOKENS} tokens of {name}, keep 1.0, float32",
        [{"BOS": bos, "PPL": ppl[bos]} for bos in rows],
        *notes,
    )
    assert ppl["off"] > 1.2 * ppl["on"]
    check_rows(
        f"{name}/bos", [{"bos": bos, "ppl": ppl[bos]} for bos in rows], ["bos"], [text], of_one_text=True, tokens=TOKENS
    )
