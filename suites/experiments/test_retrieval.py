"""Passkey and needle: the prompts are what they say, one pass decides as greedy decoding does, and how it ends.

Main job, CPU-seconds in float64: after prefill, ten keys each at 256, 512, 1,024 and 2,048 tokens and three
needles at 512; at every step from 256 on, ten keys at 512 tokens. A prompt is fed from where it parts from the one
before, and then seven rows of question and answer (or four of 256 tokens) take half a second each (or two and a half):
320 in all. The long form, 50 keys in each of 20 cells of context and depth, takes 8 CPU-hours.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch

from knorm_core import l2_compress
from knorm_core.evaluator import Evaluator
from knorm_core.experiments.codecs import FLAG
from knorm_core.experiments.retrieval import OPENING, Task, hide, needle_task, passkey_task, passkeys, recalled
from knorm_core.inputs.texts import TEXT_SETS, first_tokens, load_texts
from knorm_core.methods.prefix import Prefixes, feed_prefix
from knorm_core.sweeps.codec import each
from suites.families import VOCABULARY, tiny_model

RATIOS = (1.0, 0.9, 0.7, 0.5, 0.1)
STEP_RATIOS = (0.9, 0.5, 0.1)


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
def test_a_prompt_begins_with_what_the_model_reads_first():
    task = Task(" NEEDLE.", " QUESTION", " ANSWER")
    plain, begun = (hide(Letters(), FILLER, task, 300, 0.5, first) for first in ((), (7,)))
    assert begun.input_ids[0] == 7
    assert begun.input_ids[1 : len(OPENING) + 1].tolist() == plain.input_ids[: len(OPENING)].tolist()
    assert (len(begun.input_ids), begun.haystack, begun.answer) == (len(plain.input_ids), plain.haystack, plain.answer)


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
@pytest.mark.parametrize(("when", "ratio"), [("after_prefill", 0.5), ("every_step", 0.9)])
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
@pytest.mark.parametrize(
    ("family", "tolerance"),
    [("gpt_neox", 1e-10), ("llama", 1e-6), ("gemma2", 1e-6)],  # RMSNorm rounds to float32
    ids=["gpt_neox", "llama", "gemma2"],
)
def test_what_a_prompt_begins_with_as_the_one_before_is_fed_once_and_leaves_the_same(family, tolerance):
    model = tiny_model(family)
    prefixes, fed, expected, before = Prefixes(model), [], [], None
    for depth in (0.0, 0.4, 1.0):
        prompt = hide(Letters(), FILLER, Task(" NEEDLE.", " QUESTION", " ANSW"), 150, depth)
        evaluator = Evaluator(model, prompt.input_ids)
        alike = 0 if before is None else int((before != prompt.input_ids).int().argmax())
        expected += [prompt.haystack - 1 - alike, 1]  # then nothing: a shorter phase 1 is there already
        before = prompt.input_ids
        for start in (prompt.haystack - 1, prompt.haystack, 80):
            setting = evaluator.setting({"keep_ratio": 0.5, "prune_after": start, "adjust": False})
            count = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: fed.append(ids[0].numel()))
            shared = prefixes.feed(prompt.input_ids, setting)
            count.remove()
            alone = feed_prefix(model, prompt.input_ids, setting)
            assert shared.ids.tolist() == alone.ids.tolist()
            for both in zip(shared.fed, alone.fed, strict=True):
                for ours, theirs in zip(*both, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert fed == expected


@pytest.mark.fast
def test_a_prompt_that_cannot_be_made_is_refused_with_the_reason():
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


class Way(NamedTuple):
    """What tells one row of a cell from another."""

    when: str
    keep_ratio: float
    skip_layers: tuple[int, ...] = ()

    def arguments(self):
        return self._asdict() | ({"prune_after": 256} if self.when == "every_step" else {})


UNCOMPRESSED = Way("after_prefill", 1.0)
# The paper leaves layers 0 and 1 alone.
ONCE = [
    *(Way("after_prefill", ratio) for ratio in RATIOS),
    *(Way("after_prefill", ratio, (0, 1)) for ratio in (0.5, 0.1)),
]
ALWAYS = [Way("every_step", ratio) for ratio in STEP_RATIOS]
NEEDLES = [(needle_task(), depth) for depth in (0.1, 0.5, 0.9)]


def passkey_prompts(count):
    return [(passkey_task(key), depth) for key, depth in passkeys(count)]


# name -> (context, tasks with their depths, ways to compress); arithmetic above
MAIN = {
    "passkey 256": (256, passkey_prompts(10), ONCE),
    "passkey 512": (512, passkey_prompts(10), ONCE),
    "passkey 512 every step": (512, passkey_prompts(10), [UNCOMPRESSED, *ALWAYS]),
    "passkey 1024": (1024, passkey_prompts(10), ONCE),
    "passkey 2048": (2048, passkey_prompts(10), ONCE),
    "needle 512": (512, NEEDLES, ONCE),
}
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LONG = {
    f"passkey {context} depth {depth}": (
        context,
        [(passkey_task(key), depth) for key, _ in passkeys(50)],
        ONCE + (ALWAYS if context > 256 else []),
    )
    for context in (256, 512, 1024, 2048)
    for depth in DEPTHS
}


@pytest.fixture(scope="session")
def filler():
    [(_, text)] = TEXT_SETS["embedded-narrative"].source(None)
    return text


@pytest.fixture(scope="session")
def matches(language_model, filler, remembered):
    """``matches(cell)``: per prompt of a cell, {way: recalled}; computed once per process."""

    @functools.cache
    def recalls(cell):
        context, tasks, ways = (MAIN | LONG)[cell]
        rows = {way: way.arguments() for way in ways}
        first = first_tokens(language_model.tokenizer, language_model.bos)
        prompts = [hide(language_model.tokenizer, filler, task, context, depth, first) for task, depth in tasks]
        language_model.require(
            tokens=max(len(prompt.input_ids) for prompt in prompts),
            layers=1 + max(len(way.skip_layers) for way in ways),
        )

        prefixes = Prefixes(language_model.model)  # the filler before the needle is fed once

        def answers(prompt):
            settings = {"haystack": prompt.haystack, "answer": prompt.answer, "rows": list(rows.values())}
            recall = remembered(
                "recall",
                f"a prompt of {cell}",
                prompt.input_ids,
                settings,
                lambda: list(recalled(language_model.model, prompt, rows, prefixes).values()),
                each(FLAG),
            )
            return dict(zip(rows, recall, strict=True))

        return [answers(prompt) for prompt in prompts]

    return recalls


def cells_of(names, mark):
    return pytest.mark.parametrize(
        "cell", [pytest.param(name, marks=[mark, pytest.mark.xdist_group(f"retrieval {name}")]) for name in names]
    )


@cells_of([*MAIN], pytest.mark.repro)
def test_recall_matches_the_baseline(cell, matches, language_model, check_rows, show_table):
    rows = show_cell(cell, matches(cell), show_table)
    depths = [depth for _, depth in MAIN[cell][1]]
    texts = load_texts("embedded-narrative", language_model.tokenizer)
    check_rows(f"retrieval/{cell.replace(' ', '-')}", rows, list(Way._fields), texts, depths=depths)


@cells_of([*LONG], pytest.mark.slow)
def test_recall_by_context_and_depth(cell, matches, language_model, show_table, record_table, claims):
    prompts = matches(cell)
    rows = show_cell(cell, prompts, show_table)
    record_table(f"{language_model.slug}/retrieval/{cell.replace(' ', '-')}", rows, key=Way._fields)
    assert sum(recall[UNCOMPRESSED] for recall in prompts) >= 0.8 * len(prompts)


def show_cell(cell, prompts, show_table):
    """Show the table of one cell; return its rows."""
    rows = [
        way._asdict() | {"matches": sum(recall[way] for recall in prompts), "of": len(prompts)} for way in prompts[0]
    ]
    show_table(
        f"exact matches, {cell}",
        [
            {
                "compressed": row["when"].replace("_", " "),
                "keep ratio": str(row["keep_ratio"]),
                "layers left alone": ", ".join(map(str, row["skip_layers"])) or "none",
                "exact match": f"{row['matches']} of {row['of']}",
            }
            for row in rows
        ],
        *(
            f"Contradicts the paper (passkey found with 90 % evicted, layers 0 and 1 left alone): at keep "
            f"{row['keep_ratio']} this model finds {row['matches']} of {row['of']}, uncompressed {rows[0]['matches']}."
            for row in rows
            if cell.startswith("passkey") and row["skip_layers"] and row["matches"] < rows[0]["matches"]
        ),
        *(
            f"Compressed at every step from 256 tokens on, keep {row['keep_ratio']} finds {row['matches']} of "
            f"{row['of']}; uncompressed, {rows[0]['matches']}."
            for row in rows
            if row["when"] == "every_step" and row["matches"] < rows[0]["matches"]
        ),
    )
    return rows


@cells_of([*MAIN], pytest.mark.repro)
def test_uncompressed_the_model_answers(cell, matches, claims):
    # Without this, no row below says anything about compression.
    assert all(recall[UNCOMPRESSED] for recall in matches(cell))


@cells_of([name for name in MAIN if "every" not in name], pytest.mark.repro)
def test_after_prefill_a_tenth_can_go_and_half_cannot(cell, matches, claims):
    recalls = matches(cell)
    assert all(recall[Way("after_prefill", 0.9)] for recall in recalls)
    for way in (Way("after_prefill", 0.5), Way("after_prefill", 0.5, (0, 1))):
        assert sum(recall[way] for recall in recalls) <= 0.2 * len(recalls)
    for way in (Way("after_prefill", 0.1), Way("after_prefill", 0.1, (0, 1))):
        assert not any(recall[way] for recall in recalls)


@cells_of(["passkey 512 every step"], pytest.mark.repro)
def test_at_every_step_no_keep_ratio_saves_the_key(cell, matches, claims):
    assert not any(recall[way] for recall in matches(cell) for way in ALWAYS)
