"""What surrounds compressor and evaluator in a report promises as well: timers, texts, and averages over texts.

Each check is a function of what it holds to a promise; it returns, or raises `Broken` with what was expected and got.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from knorm_core.contract import tiny_models
from knorm_core.contract.findings import Broken

PROMPT_SECONDS, STEP_SECONDS = 0.04, 0.002

# Of a text that is prose, at least so much stands in paragraphs of so many characters and two sentences.
PROSE_SHARE, PARAGRAPH = 0.5, 200
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]?(?:\s|$)")


class Timer(Protocol):
    """Times one generation; returns seconds until the first token and until the last."""

    def __call__(
        self, model: Any, input_ids: torch.Tensor, *, keep_ratio: float, new_tokens: int
    ) -> tuple[float, float]: ...


def first_token_waits_for_the_prompt(timer: Timer, keep_ratios: Sequence[float] = (1.0, 0.5)) -> None:
    """At every keep ratio, 1 included, the time to first token holds the prompt's forward pass.

    Guards against a baseline that is not timed but guessed, as a share of the whole generation: the more tokens are
    generated, the worse it looks, and the better what is compared with it.

    Raises:
        Broken: a time is shorter than the forward pass that has to lie within it.
    """
    model = tiny_models.gpt_neox()
    hook = model.register_forward_pre_hook(_slow, with_kwargs=True)
    try:
        for new_tokens in (2, 8, 60):
            for ratio in keep_ratios:
                first, total = timer(model, tiny_models.text(48), keep_ratio=ratio, new_tokens=new_tokens)
                if not PROMPT_SECONDS <= first <= total - (new_tokens - 1) * STEP_SECONDS:
                    raise Broken(
                        expected=f"a first token after at least {PROMPT_SECONDS} s, the prompt's forward pass, and at "
                        f"least {(new_tokens - 1) * STEP_SECONDS:g} s before the last",
                        got=f"{first:.4f} s of {total:.4f} s",
                        keep_ratio=ratio,
                        new_tokens=new_tokens,
                    )
    finally:
        hook.remove()


def _slow(module: Any, arguments: Any, options: Any) -> None:
    fed = options.get("input_ids", arguments[0] if arguments else None)
    time.sleep(PROMPT_SECONDS if fed.shape[-1] > 1 else STEP_SECONDS)


def average_pools_tokens(average: Callable[[Sequence[torch.Tensor]], float]) -> None:
    """The perplexity of several texts is exp of the mean loss over all their tokens.

    Guards against the arithmetic mean of the texts' perplexities, which one hard text decides, and which changes when
    a text is cut in two.

    Raises:
        Broken: texts of unequal length or difficulty give another number.
    """
    easy, hard = torch.full((90,), 2.0, dtype=torch.float64), torch.full((10,), 5.0, dtype=torch.float64)
    for texts in ([easy], [easy, hard], [easy[:45], easy[45:], hard]):
        expected, got = math.exp(torch.cat(texts).mean()), float(average(texts))
        if not math.isclose(expected, got, rel_tol=1e-6):
            lengths = " and ".join(str(len(text)) for text in texts)
            raise Broken(expected=f"{expected:.4f}", got=f"{got:.4f}", texts=f"{lengths} tokens")


def texts_are_prose(texts: Iterable[str]) -> None:
    """At least half of each text stands in paragraphs of prose.

    Guards against the front matter of books: a title page and a table of contents are told by heart or not at all, and
    what a cache holds hardly matters to them.

    Raises:
        Broken: a text is mostly something else.
    """
    for number, text in enumerate(texts, start=1):
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
        prose = [p for p in paragraphs if len(p) >= PARAGRAPH and len(_SENTENCE_END.findall(p)) >= 2]
        share = sum(map(len, prose)) / max(1, sum(map(len, paragraphs)))
        if share < PROSE_SHARE:
            raise Broken(
                expected=f"at least {PROSE_SHARE:.0%} of its characters in paragraphs of prose",
                got=f"{share:.0%}",
                text=number,
            )
