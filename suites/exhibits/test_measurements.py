"""Faults around the evaluator, each caught by a check that what is sound passes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import DynamicCache

from knorm_core import REPORT_PROTOCOL
from knorm_core.contract.findings import Broken
from knorm_core.contract.measurements import average_pools_tokens, first_token_waits_for_the_prompt, texts_are_prose
from knorm_core.inputs.text_sources import pg19_whole
from knorm_core.inputs.texts import TEXT_SETS

pytestmark = pytest.mark.fast

CONTENTS = "\n\n".join(
    [
        "THE HOUSE BY THE RIVER",
        "A NOVEL IN TWO PARTS",
        "CONTENTS",
        *(f"CHAPTER {number}\nOf What Was Lost ...... {10 * number}" for number in range(1, 30)),
        "PART I",
    ]
)


@torch.no_grad()
def timed(model, input_ids, *, keep_ratio, new_tokens):
    """A sound timer: one clock around one loop, at every keep ratio."""
    begin, cache, fed = time.perf_counter(), DynamicCache(), input_ids[None]
    for token in range(new_tokens):
        fed = model(input_ids=fed, past_key_values=cache).logits[:, -1:].argmax(-1)
        if not token:
            first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def guessed(model, input_ids, *, keep_ratio, new_tokens):
    """The baseline's first token is a tenth of the whole; see optimized_test.py of the report."""
    first, total = timed(model, input_ids, keep_ratio=keep_ratio, new_tokens=new_tokens)
    return (0.1 * total if keep_ratio == 1 else first), total


def test_a_guessed_baseline_is_caught_and_a_timed_one_is_not():
    first_token_waits_for_the_prompt(timed)
    with pytest.raises(Broken, match=r"expected a first token after at least 0.04 s"):
        first_token_waits_for_the_prompt(guessed)


def pooled(losses):
    return float(torch.cat(list(losses)).mean().exp())


def arithmetic(losses):
    return fmean(float(text.mean().exp()) for text in losses)


def test_an_arithmetic_mean_of_perplexities_is_caught_and_pooling_is_not():
    average_pools_tokens(pooled)
    with pytest.raises(Broken, match=r"expected 9\.9742, got 77\.9011"):
        average_pools_tokens(arithmetic)


def test_a_table_of_contents_is_caught_and_prose_is_not():
    texts_are_prose(
        text for name in ("embedded-articles", "embedded-short") for _, text in TEXT_SETS[name].source(None)
    )
    texts_are_prose(text for _, text in TEXT_SETS["embedded-narrative"].source(None))
    with pytest.raises(Broken, match=r"at least 50% of its characters in paragraphs of prose, got 0%"):
        texts_are_prose([CONTENTS])


def test_what_the_report_takes_of_a_book_is_front_matter():
    folder = os.environ.get("KNORM_TEXT_DIR")
    if not folder:
        pytest.skip("a book's front matter is in the text mirror: KNORM_TEXT_DIR")
    books = [text for _, text in pg19_whole(Path(folder))]
    with pytest.raises(Broken, match="in paragraphs of prose"):
        texts_are_prose(REPORT_PROTOCOL.pg19(books))
