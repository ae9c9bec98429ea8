"""Pass keys in the paper's own setting: its filler, the question compressed with the prompt, layer 0 left alone.

Main job, CPU-seconds in float64: ten prompts of 512 tokens, of which each is fed from where it parts from the one
before, and five rows of the answer's tokens each, 40 in all.
"""

from __future__ import annotations

import pytest

from knorm_core.experiments.codecs import FLAG
from knorm_core.experiments.retrieval import PAPERS_FILLER, Task, hide_as_the_paper, passkey_task, passkeys, recalled
from knorm_core.inputs.texts import first_tokens
from knorm_core.methods.prefix import Prefixes
from knorm_core.sweeps.codec import each
from suites.experiments.test_retrieval import Letters, Way, greedy
from suites.families import VOCABULARY, tiny_model

CONTEXT, KEYS = 512, 10
WAYS = [Way("after_prefill", ratio, (0,)) for ratio in (1.0, 0.9, 0.5, 0.3, 0.1)]


@pytest.mark.fast
def test_the_papers_prompt_repeats_its_filler_and_is_compressed_with_the_question():
    prompt = hide_as_the_paper(Letters(), Task(" NEEDLE.", " QUESTION", " ANSWER"), 400, 0.5)
    assert len(prompt.input_ids) == 400 + prompt.answer
    assert prompt.haystack == 400
    filler = [ord(letter) % VOCABULARY for letter in PAPERS_FILLER]
    ids = prompt.input_ids.tolist()
    assert sum(ids[start : start + len(filler)] == filler for start in range(len(ids))) >= 2


@pytest.mark.fast
@pytest.mark.parametrize("keep_ratio", [0.5, 0.1])
def test_the_first_token_comes_from_before_the_compression_and_the_others_from_after(keep_ratio):
    model = tiny_model("gpt_neox")
    prompt = hide_as_the_paper(Letters(), Task(" NEEDLE.", " QUESTION", " ANSW"), 150, 0.4)
    row = {"keep_ratio": keep_ratio, "when": "after_prefill"}
    said = greedy(model, prompt, keep_ratio, "after_prefill", 0)
    for position in range(prompt.answer):
        right, wrong = prompt.input_ids.clone(), prompt.input_ids.clone()
        right[-prompt.answer :] = wrong[-prompt.answer :] = said
        wrong[position - prompt.answer] = (said[position] + 1) % VOCABULARY
        assert recalled(model, prompt._replace(input_ids=right), {"row": row}) == {"row": True}
        assert recalled(model, prompt._replace(input_ids=wrong), {"row": row}) == {"row": False}


@pytest.mark.repro
@pytest.mark.xdist_group("retrieval paper")
def test_recall_in_the_papers_setting_matches_the_baseline(language_model, remembered, check_rows, show_table):
    rows = {way: way.arguments() for way in WAYS}
    prefixes = Prefixes(language_model.model)

    def answers(key, depth):
        first = first_tokens(language_model.tokenizer, language_model.bos)
        prompt = hide_as_the_paper(language_model.tokenizer, passkey_task(key), CONTEXT, depth, first)
        settings = {"haystack": prompt.haystack, "answer": prompt.answer, "rows": list(rows.values())}
        return remembered(
            "recall",
            "a prompt of the paper's passkeys",
            prompt.input_ids,
            settings,
            lambda: list(recalled(language_model.model, prompt, rows, prefixes).values()),
            each(FLAG),
        )

    recalls = [answers(*task) for task in passkeys(KEYS)]
    table = [
        {**way._asdict(), "matches": sum(recall[index] for recall in recalls), "of": KEYS}
        for index, way in enumerate(WAYS)
    ]
    show_table(
        "pass keys in the paper's own setting",
        [{"keep ratio": str(row["keep_ratio"]), "found": f"{row['matches']} of {row['of']}"} for row in table],
        "Its filler; the question, and the answer's first token, come before the compression; layer 0 is left alone.",
    )
    check_rows("retrieval/passkey-paper-512", table, list(Way._fields), [], tokens=CONTEXT)
