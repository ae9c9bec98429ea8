"""Passkey retrieval and needle in a haystack: is what was read long ago still there after compression?

A prompt is an opening and filler text with one sentence hidden in it at some depth, and a question at the end that only
this sentence answers. The answer counts when greedy decoding would give exactly its tokens; that is the
same as every one of them being the model's first choice when the ones before it are fed, so a single
teacher-forced pass decides it.

Two ways to compress:

- ``after_prefill``: phase 1 is the haystack, everything before the question. It is compressed once, before
  the question's first token is fed, as kvpress does it: what is evicted is decided without the question,
  and the question's own keys all stay.
- ``every_step``: from ``prune_after`` cached tokens on, wherever in the prompt that is, and through the
  question and the answer, as the core's evaluation does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from knorm_core.counts import check_int
from knorm_core.evaluator import Evaluator, Key
from knorm_core.methods import onepass
from knorm_core.methods.head import Head
from knorm_core.methods.prefix import Prefixes
from knorm_core.setting import Setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# As in the paper's script; without it, a needle at depth 0 would be the first token, which every head attends to.
OPENING = "There is an important piece of information hidden in this text. Find it and remember it.\n\n"


#: What the paper's passkey script repeats around the key.
PAPERS_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


class Task(NamedTuple):
    """A paragraph to hide, the question that it answers, and the answer, which continues the question."""

    needle: str
    question: str
    answer: str


class Prompt(NamedTuple):
    """Token ids (n,) of haystack, question and answer; ``haystack`` and ``answer`` count tokens."""

    input_ids: torch.Tensor
    haystack: int
    answer: int


def passkey_task(key: int) -> Task:
    """The sentence of the paper's passkey script with a 5-digit key, as a paragraph of its own.

    >>> passkey_task(48213).question
    '\\n\\nWhat is the pass key? The pass key is'
    """
    if not 10_000 <= check_int("key", key, 0) <= 99_999:
        raise ValueError(f"key={key!r} is not a number of five digits")
    sentence = f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
    return Task(sentence, "\n\nWhat is the pass key? The pass key is", f" {key}")


def needle_task() -> Task:
    """A statement that no other sentence of the haystack suggests."""
    return Task(
        "\n\nThe best thing to do in San Francisco is to eat a sandwich in Dolores Park on a sunny day.\n\n",
        "\n\nWhat is the best thing to do in San Francisco? The best thing to do in San Francisco is",
        " to eat a sandwich in Dolores Park",
    )


def passkeys(count: int, seed: int = 0) -> list[tuple[int, float]]:
    """``count`` different keys of five digits, and a depth for each, spread evenly from 0 to 1.

    >>> [depth for _, depth in passkeys(3)]
    [0.0, 0.5, 1.0]
    """
    keys = np.random.default_rng(seed).choice(90_000, size=check_int("count", count, 1), replace=False) + 10_000
    depths = np.linspace(0, 1, count) if count > 1 else [0.5]
    return [(int(key), float(depth)) for key, depth in zip(keys, depths, strict=True)]


def hide(
    tokenizer: PreTrainedTokenizerBase,
    filler: str,
    task: Task,
    context: int,
    depth: float,
    first: Sequence[int] = (),
) -> Prompt:
    """A prompt of ``context`` tokens (haystack and question) with the needle at ``depth``, then the answer.

    Args:
        tokenizer: of the model that is to read it.
        filler: prose, long enough.
        task: what to hide and to ask.
        context: tokens before the answer.
        depth: 0 hides the needle before the first sentence, 1 after the last full one.
        first: token ids before all others, as `knorm_core.inputs.texts.first_tokens` gives them: a BOS, or none.

    Raises:
        ValueError: the filler is too short, the context too short for needle and question, or the depth
            outside [0, 1].
    """

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    if not 0 <= depth <= 1:
        raise ValueError(f"depth={depth!r} is outside [0, 1]")
    opening, (needle, question, answer) = [*first, *tokens(OPENING)], map(tokens, task)
    room = check_int("context", context, 1) - len(opening) - len(needle) - len(question)
    hay = tokens(filler)
    if room < 1:
        raise ValueError(f"context={context} has no room: opening, needle and question take {context - room} tokens")
    if len(hay) < room:
        raise ValueError(f"filler has {len(hay)} tokens; a context of {context} takes {room}")
    hay = hay[:room]
    ends = [0] + [i + 1 for i, token in enumerate(hay) if tokenizer.decode([token]).rstrip().endswith((".", "?", "!"))]
    place = min(ends, key=lambda end: abs(end - depth * room))
    haystack = opening + hay[:place] + needle + hay[place:]
    return Prompt(torch.tensor(haystack + question + answer), len(haystack), len(answer))


def hide_as_the_paper(
    tokenizer: PreTrainedTokenizerBase, task: Task, context: int, depth: float, first: Sequence[int] = ()
) -> Prompt:
    """The prompt of the paper's passkey script: the filler that it repeats, and the question read before compression.

    Its script (alessiodevoto/l2compress, commit f93d6ca, eval_passkey.py and gen_utils.py) feeds the whole prompt,
    takes the first token of the answer, and compresses then. So the haystack that is compressed ends with the question.

    Args:
        tokenizer, task, first: as for `hide`.
        context: tokens of the whole prompt.
        depth: 0 hides the needle before the filler, 1 after it.
    """
    filler = " ".join([PAPERS_FILLER] * (context // 8))
    prompt = hide(tokenizer, filler, task, context, depth, first)
    return prompt._replace(haystack=len(prompt.input_ids) - prompt.answer)


def recalled(
    model: nn.Module, prompt: Prompt, rows: Mapping[Key, Mapping[str, Any]], prefixes: Prefixes | None = None
) -> dict[Key, bool]:
    """Whether greedy decoding gives exactly the answer, for every row of arguments of `evaluate`.

    Rows with ``when="after_prefill"`` take no ``prune_after``: phase 1 is the haystack. Where that is all of the
    prompt, the answer's first token comes from before the compression.

    Args:
        model, prompt, rows: as above.
        prefixes: of this model, to be given with every prompt: what a prompt begins with as the one before it, which
            in order of depth is the haystack up to the needle, is fed once. Within a prompt that is so without it.
    """
    prefixes = prefixes or Prefixes(model)
    arguments = {}
    for key, row in rows.items():
        if row.get("when") == "after_prefill":
            if "prune_after" in row:
                raise ValueError(f"prune_after={row['prune_after']!r}: after prefill, the haystack is compressed whole")
            arguments[key] = {**row, "prune_after": prompt.haystack, "adjust": False}
        else:
            arguments[key] = {**row, "adjust": False}
    evaluator = Evaluator(model, prompt.input_ids)
    ids = evaluator.ids
    wanted = ids[-prompt.answer :]
    head = Head(model)

    def says(setting: Setting, tokens: int) -> bool:
        states = onepass.final_states(model, ids, setting, prefixes.feed(ids, setting), count=tokens)
        return bool((head(states).argmax(-1) == wanted[-tokens:]).all())

    settings = evaluator.settings(arguments, one_pass=True)
    whole = prompt.haystack == len(ids) - prompt.answer
    if whole:
        first = {"keep_ratio": 1.0, "prune_after": prompt.haystack - 1, "adjust": False}
        start = evaluator.setting(first)
        states = onepass.final_states(model, ids, start, prefixes.feed(ids, start), count=prompt.answer)
        if not bool(head(states[:1]).argmax(-1) == wanted[0]):
            return dict.fromkeys(settings, False)
    tokens = prompt.answer - whole
    answered = {}
    for key, setting in settings.items():
        if len(ids) - 1 - setting.start < tokens:
            raise ValueError(f"prune_after={setting.start} lies within the answer, which ends at token {len(ids)}")
        answered[key] = says(setting, tokens)
    return answered
