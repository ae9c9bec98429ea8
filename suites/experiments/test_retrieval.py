"""Passkey and needle: the prompts are what they say, one pass decides as greedy decoding does, and how it ends.

Main job, CPU-seconds in float64: after prefill, ten keys at 256 and 512 tokens and five at 1,024 (a prefill of
each: 25 + 50 + 50, the rows after it a second per prompt); at every step from 256 on, ten keys at 512 tokens
(three rows of 256 more tokens each: 100). Together 240. The long form takes some hours.
"""

from __future__ import annotations

import functools

import pytest
import torch

from knorm_core import l2_compress
from knorm_core.experiments.retrieval import OPENING, Task, hide, needle_task, passkey_task, passkeys, recalled
from knorm_core.texts import TEXT_SETS, load_texts
from suites.families import VOCABULARY, tiny_model

RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)
STEP_RATIOS = (1.0, 0.9, 0.5, 0.1)


class Letters:
    """A tokenizer of one token per character."""

    def __call__(self, text, **_):
        return type("Encoding", (), {"input_ids": [ord(c) % VOCABULARY for c in text]})

    def decode(self, tokens):
        return "".join(chr(t) if chr(t) in ".?!" else "x" for t in tokens)


FILLER = "abc def gh. ijkl mnopq rst. uvw xyz ab cdef! ghij klm nopq rs. tuv wxyz? " * 8


@pytest.mark.fast
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
def test_a_prompt_has_the_length_it_says_and_the_needle_at_its_depth(depth):
    task = Task(" NEEDLE.", " QUESTION", " ANSWER")
    prompt = hide(Letters(), FILLER, task, 300, depth)
    text = "".join(chr(t) if 32 <= t < 97 else chr(t + VOCABULARY) for t in prompt.input_ids.tolist())
    assert len(text) == 300 + prompt.answer
    assert text.endswith(" QUESTION ANSWER")
    assert prompt.haystack == 300 - len(" QUESTION")
    assert text.startswith(OPENING.replace("\n", "k"))  # the letters' tokenizer wraps around
    before, after = text[len(OPENING) :].split(" NEEDLE.")
    assert not before or before[-1] in ".?!"
    assert abs(len(before) - depth * (300 - len(OPENING + " NEEDLE. QUESTION"))) <= 20
    assert (before + after).startswith(FILLER[: prompt.haystack - len(OPENING + " NEEDLE.")])


@pytest.mark.fast
def test_keys_are_different_and_the_same_every_time():
    keys = passkeys(50)
    assert len({key for key, _ in keys}) == 50
    assert all(10_000 <= key <= 99_999 for key, _ in keys)
    assert keys == passkeys(50) != passkeys(50, seed=1)
    assert [depth for _, depth in passkeys(5)] == [0, 0.25, 0.5, 0.75, 1]


@torch.inference_mode()
def greedy(model, prompt, ratio, when, prune_after):
    """Greedy decoding as a user would do it: a real cache, compressed by `l2_compress`, no answer in sight."""
    from transformers import DynamicCache

    ids = prompt.input_ids[: -prompt.answer]
    cache, said = DynamicCache(), []
    for step in range(len(ids) + prompt.answer - 1):
        if when == "after_prefill" and step == prompt.haystack:
            cache = l2_compress(cache, ratio, 1)
        if when == "every_step" and step >= prune_after:
            cache = l2_compress(cache, ratio, prune_after)
        token = ids[step] if step < len(ids) else said[-1]
        logits = model(
            input_ids=token.view(1, 1), position_ids=torch.tensor([[step]]), past_key_values=cache, use_cache=True
        ).logits[0, -1]
        if step >= len(ids) - 1:
            said.append(logits.argmax())
    return torch.stack(said)


@pytest.mark.fast
@pytest.mark.parametrize(("when", "ratio"), [("after_prefill", 0.5), ("every_step", 0.5), ("every_step", 0.9)])
def test_one_pass_decides_as_greedy_decoding_does(when, ratio):
    # A random model answers nonsense; so what it does answer is made the answer, and then a wrong one.
    model = tiny_model("gpt_neox")
    prompt = hide(Letters(), FILLER, Task(" NEEDLE.", " QUESTION", " ANSW"), 150, 0.4)
    row = {"keep_ratio": ratio, "when": when} | ({"prune_after": 80} if when == "every_step" else {})
    said = greedy(model, prompt, ratio, when, 80)
    right, wrong = prompt.input_ids.clone(), prompt.input_ids.clone()
    right[-prompt.answer :] = said
    wrong[-prompt.answer :] = said
    wrong[-1] = (said[-1] + 1) % VOCABULARY
    assert recalled(model, prompt._replace(input_ids=right), {"row": row}) == {"row": True}
    assert recalled(model, prompt._replace(input_ids=wrong), {"row": row}) == {"row": False}


@pytest.mark.fast
def test_bad_input_is_named():
    task, model = Task(" N.", " Q", " A"), tiny_model("llama")
    for context, depth, message in [
        (200, 1.5, "depth=1.5 is outside"),
        (4, 0.5, "context=4 has no room"),
        (9999, 0.5, "filler has .* tokens; a context of 9999 takes 9"),
        (0, 0.5, "context=0 is below 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            hide(Letters(), FILLER, task, context, depth)
    for key in (1234, 123456):
        with pytest.raises(ValueError, match="five digits"):
            passkey_task(key)
    prompt = hide(Letters(), FILLER, task, 150, 0.5)
    for row, message in [
        ({"keep_ratio": 0.5, "when": "after_prefill", "prune_after": 40}, "the haystack is compressed whole"),
        ({"keep_ratio": 0.5, "prune_after": 150}, "lies within the answer"),
    ]:
        with pytest.raises(ValueError, match=message):
            recalled(model, prompt, {"row": row})


# --- the embedded model

ONCE = {("after_prefill", ratio): {"when": "after_prefill", "keep_ratio": ratio} for ratio in RATIOS}
ALWAYS = {("every_step", ratio): {"keep_ratio": ratio, "prune_after": 256} for ratio in STEP_RATIOS}
NEEDLES = [(needle_task(), depth) for depth in (0.1, 0.5, 0.9)]


def passkey_prompts(count):
    return [(passkey_task(key), depth) for key, depth in passkeys(count)]


# name -> (context, tasks with their depths, ways to compress); arithmetic above
MAIN = {
    "passkey 256": (256, passkey_prompts(10), ONCE),
    "passkey 512": (512, passkey_prompts(10), ONCE | ALWAYS),
    "passkey 1024": (1024, passkey_prompts(5), ONCE),
    "needle 512": (512, NEEDLES, ONCE),
}
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LONG = {
    f"passkey {context} depth {depth}": (
        context,
        [(passkey_task(key), depth) for key, _ in passkeys(50)],
        ONCE | (ALWAYS if context > 256 else {}),
    )
    for context in (256, 512, 1024, 2048)
    for depth in DEPTHS
}


@pytest.fixture(scope="session")
def filler():
    [(_, text)] = TEXT_SETS["embedded-narrative"].source(None)
    return text


@pytest.fixture(scope="session")
def matches(language_model, filler):
    """``matches(cell)``: per prompt of a cell, {(when, keep ratio): recalled}; computed once per process."""

    @functools.cache
    def found(cell):
        context, tasks, ways = (MAIN | LONG)[cell]
        model, tokenizer = language_model.model, language_model.tokenizer
        return [recalled(model, hide(tokenizer, filler, task, context, depth), ways) for task, depth in tasks]

    return found


def cells_of(names, mark):
    return pytest.mark.parametrize(
        "cell", [pytest.param(name, marks=[mark, pytest.mark.xdist_group(f"retrieval {name}")]) for name in names]
    )


@cells_of([*MAIN], pytest.mark.repro)
def test_recall_matches_the_baseline(cell, matches, language_model, check_rows, show_table):
    check_cell(cell, matches(cell), language_model, check_rows, show_table)


@cells_of([*LONG], pytest.mark.slow)
def test_recall_by_context_and_depth_matches_the_baseline(cell, matches, language_model, check_rows, show_table):
    check_cell(cell, matches(cell), language_model, check_rows, show_table)


def check_cell(cell, prompts, language_model, check_rows, show_table):
    ways = list(prompts[0])
    rows = [
        {"when": when, "keep_ratio": ratio, "matches": sum(found[when, ratio] for found in prompts), "of": len(prompts)}
        for when, ratio in ways
    ]
    show_table(
        f"{cell} tokens: exact matches",
        [
            {
                "compressed": row["when"].replace("_", " "),
                "keep ratio": str(row["keep_ratio"]),
                "exact match": f"{row['matches']} of {row['of']}",
            }
            for row in rows
        ],
        *(
            f"Contradicts the paper (passkey retrieval unharmed by evicting 90 %): compressed {row['when']}, keep "
            f"{row['keep_ratio']} finds {row['matches']} of {row['of']}, uncompressed {rows[0]['matches']}."
            for row in rows
            if cell.startswith("passkey") and row["matches"] < rows[0]["matches"]
        ),
    )
    depths = [depth for _, depth in (MAIN | LONG)[cell][1]]
    texts = load_texts("embedded-narrative", language_model.tokenizer)
    check_rows(f"retrieval/{cell.replace(' ', '-')}", rows, ["when", "keep_ratio"], texts, depths=depths)


@cells_of([*MAIN], pytest.mark.repro)
def test_uncompressed_the_model_answers(cell, matches, claims):
    # Without this, no row below says anything about compression.
    assert all(found["after_prefill", 1.0] for found in matches(cell))
