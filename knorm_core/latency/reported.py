"""How the report timed: a baseline that was guessed, and two loops compared as if they were one.

The keep-1 row's time to first token was never taken: it is a tenth of the whole time of `model.generate`. The others'
is that of their first forward. And throughput compares `model.generate` with a Python loop that builds a new cache
after every token, whether anything is evicted or not. Here both are run beside timers that treat all rows alike.

Source: `knorm_core.protocols.REPORT`, optimized_test.py and custom_generate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import nn

from knorm_core.compressor import l2_compress
from knorm_core.counts import check_int
from knorm_core.latency.generation import Clock, device_clock
from knorm_core.latency.quantity import Quantity, quantity
from knorm_core.latency.rounds import run_rounds
from knorm_core.methods.forward import cache_argument

GUESS = 0.1  # share of the whole generation that the report took for the time to first token
NEVER = 1 << 30  # a threshold that no cache reaches

GENERATE, PLAIN, REBUILT, COMPRESSED = "generate", "plain loop", "cache rebuilt", "cache rebuilt and compressed"
LOOPS = (GENERATE, PLAIN, REBUILT, COMPRESSED)


class Published(NamedTuple):
    """The keep-1 row of a table that the report published: seconds, tokens per second, and tokens generated."""

    document: str
    ttft_seconds: float
    tokens_per_second: float
    tokens: float

    @property
    def tokens_times_guess(self) -> float:
        """TTFT times throughput: a tenth of the tokens where TTFT was guessed, about 1 where it was timed."""
        return self.ttft_seconds * self.tokens_per_second


#: 50 tokens after a Wikitext row and 100 after a book, averaged over three rows and two books, or two and two.
PUBLISHED = (
    Published("README.md", 0.0623, 84.16, 50),
    Published("PRUNE_AFTER_BUG_FIXED_CN.md", 0.0781, 96.13, (3 * 50 + 2 * 100) / 5),
    Published("KV_ORDER_BUG_FIXED_CN.md", 0.0873, 89.17, (2 * 50 + 2 * 100) / 4),
)
#: Keep-0.9 rows of the same tables, whose first forward was timed.
PUBLISHED_TIMED = (
    Published("README.md", 0.0080, 77.69, 50),
    Published("KV_ORDER_BUG_FIXED_CN.md", 0.0086, 78.06, (2 * 50 + 2 * 100) / 4),
)


def published_rows() -> list[dict[str, Any]]:
    """The published keep-1 rows as a table: by tokens until the first one, and these as a share of all of them."""
    return [
        {
            "document": table.document,
            "tokens": table.tokens,
            "tokens_to_first": table.tokens_times_guess,
            "share_of_generation": table.tokens_times_guess / table.tokens,
        }
        for table in PUBLISHED
    ]


#: Throughput against `model.generate` in per cent: with a threshold of 512, which never fires, and in the final table.
PUBLISHED_NEVER_FIRING = tuple(100 * (each / 96.13 - 1) for each in (80.73, 79.77, 78.90, 80.16))
PUBLISHED_FIRING = (-15.0, -17.0, -18.0)


def published_throughput() -> list[dict[str, Any]]:
    """Which part of the published fall of throughput is the loop's, by the report's own figures, in per cent."""
    never, fires = fmean(PUBLISHED_NEVER_FIRING), fmean(PUBLISHED_FIRING)
    return [
        {"step": "from model.generate to the loop that never fires", "change": never},
        {
            "step": "from the loop that never fires to the one that fires",
            "change": 100 * ((100 + fires) / (100 + never) - 1),
        },
    ]


class LoopRun(NamedTuple):
    """One generation: seconds until the first token, and until the last."""

    first_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class LoopRow:
    """A loop over the rounds; ratios are paired within a round.

    Attributes:
        loop: one of `LOOPS`.
        prompt_tokens, new_tokens: of the generation.
        ttft_seconds: time to first token; its ratio is to the plain loop's, timed the same way.
        guessed_ttft_seconds: the same time, its ratio to the guessed baseline: a tenth of `generate`'s whole time.
        tokens_per_second: its ratio is to `generate`.
        step_tokens_per_second: the same, its ratio to the loop before it in `LOOPS`: what this step alone costs.
    """

    loop: str
    prompt_tokens: int
    new_tokens: int
    ttft_seconds: Quantity
    guessed_ttft_seconds: Quantity
    tokens_per_second: Quantity
    step_tokens_per_second: Quantity


def measure_loops(
    model: nn.Module,
    input_ids: torch.Tensor,
    *,
    new_tokens: int,
    keep_ratio: float = 0.5,
    prune_after: int = 256,
    repeats: int = 7,
    warmup: int = 1,
    seed: int = 0,
    clock: Clock | None = None,
) -> list[LoopRow]:
    """Generate the same number of tokens by each of `LOOPS`, in rounds of fresh random order.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: the prompt, int64 (prompt_tokens,), on the model's device.
        new_tokens: tokens to generate, at least 2.
        keep_ratio, prune_after: of the loop that compresses, which leaves layer 0 alone as the report does.
        repeats, warmup, seed: rounds that count, rounds before them, and the seed of their orders.
        clock: seconds; by default a wall clock that waits for the device first.
    """
    check_int("new_tokens", new_tokens, 2)
    loop = partial(_loop, model, input_ids, new_tokens, clock=clock or device_clock())
    never = partial(l2_compress, keep_ratio=keep_ratio, prune_after=NEVER)
    fires = partial(l2_compress, keep_ratio=keep_ratio, prune_after=prune_after, skip_layers=(0,))
    runs: dict[str, Callable[[], LoopRun]] = {
        GENERATE: partial(_generate, model, input_ids, new_tokens, clock=clock or device_clock()),
        PLAIN: partial(loop, None),
        REBUILT: partial(loop, never),
        COMPRESSED: partial(loop, fires),
    }
    rounds = run_rounds(lambda name: runs[name](), LOOPS, repeats=repeats, warmup=warmup, seed=seed).completed
    first = {name: [each[name].first_seconds for each in rounds] for name in LOOPS}
    speed = {name: [new_tokens / each[name].total_seconds for each in rounds] for name in LOOPS}
    guessed = [GUESS * each[GENERATE].total_seconds for each in rounds]
    return [
        LoopRow(
            name,
            len(input_ids),
            new_tokens,
            quantity(first[name], first[PLAIN], seed),
            quantity(first[name], guessed, seed),
            quantity(speed[name], speed[GENERATE], seed),
            quantity(speed[name], speed[before], seed),
        )
        for name, before in zip(LOOPS, (GENERATE, *LOOPS), strict=False)
    ]


@torch.inference_mode()
def _generate(model: Any, input_ids: torch.Tensor, new_tokens: int, *, clock: Clock) -> LoopRun:
    def seconds(tokens: int) -> float:
        begin = clock()
        model.generate(
            input_ids[None],
            attention_mask=torch.ones_like(input_ids[None]),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return clock() - begin

    return LoopRun(seconds(1), seconds(new_tokens))


@torch.inference_mode()
def _loop(
    model: nn.Module,
    input_ids: torch.Tensor,
    new_tokens: int,
    compress: Callable[[Any], Any] | None,
    *,
    clock: Clock,
) -> LoopRun:
    """Greedy decoding; with ``compress`` the cache is taken apart and built anew after every token."""
    from transformers import DynamicCache

    begin, first = clock(), 0.0
    cache, fed = DynamicCache(), input_ids[None]
    for token in range(new_tokens):
        position = len(input_ids) + token - fed.shape[1]
        positions = torch.arange(position, position + fed.shape[1], device=fed.device)[None]
        logits = model(input_ids=fed, position_ids=positions, use_cache=True, **cache_argument(model, cache)).logits
        fed = logits[:, -1:].argmax(-1)
        if not token:
            first = clock() - begin
        if compress is not None:
            pairs = compress([(layer.keys, layer.values) for layer in cache.layers])
            cache = DynamicCache()
            for index, (keys, values) in enumerate(pairs):
                cache.update(keys, values, index)
    return LoopRun(first, clock() - begin)


def loop_rows(rows: Sequence[LoopRow]) -> list[dict[str, Any]]:
    """The rows as a table of the results has them: medians, and paired ratios with their 95 % intervals."""
    quantities = ("ttft_seconds", "guessed_ttft_seconds", "tokens_per_second", "step_tokens_per_second")
    table = []
    for row in rows:
        columns: dict[str, Any] = {
            "loop": row.loop,
            "prompt_tokens": row.prompt_tokens,
            "new_tokens": row.new_tokens,
        }
        for name in quantities:
            measured: Quantity = getattr(row, name)
            columns[name] = measured.median
            if measured.ratio is not None:
                columns[f"{name}_ratio"] = median(measured.ratio.samples)
                columns[f"{name}_ratio_low"] = measured.ratio.low
                columns[f"{name}_ratio_high"] = measured.ratio.high
        table.append(columns)
    return table
