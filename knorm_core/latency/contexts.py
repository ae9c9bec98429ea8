"""What compression buys in truth: cache bytes and decode throughput along the context length.

At every context length the prompt is fed once and its cache handed to every run, so that long contexts
are affordable; the prompt is compressed once, when it is in, and decoding goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from knorm_core.compressor import l2_compress
from knorm_core.counts import check_int
from knorm_core.latency.generation import Clock, feed_prompt
from knorm_core.latency.measure import Latency, check_job, check_keep_ratios, check_rounds, measure_job
from knorm_core.methods.language_model import as_ids


@dataclass(frozen=True)
class Contexts:
    """Latency by context length.

    Attributes:
        contexts: tokens in all, prompt and decoded, ascending.
        latencies: one per context length. Their time to first token is that of one prompt, fed once for
            all runs, plus each run's own compression.
    """

    contexts: tuple[int, ...]
    latencies: tuple[Latency, ...]

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """The keep ratios that compress."""
        return tuple(row.keep_ratio for row in self.latencies[0] if row.keep_ratio < 1)

    def gains_from(self, keep_ratio: float) -> int | None:
        """The shortest measured context from which on decoding is faster than at keep 1; None if never.

        Faster: at it and at every longer one, the whole 95 % interval of the paired ratio lies above 1.
        """
        gains = None
        for context, latency in zip(reversed(self.contexts), reversed(self.latencies), strict=True):
            ratio = latency.row(keep_ratio).tokens_per_second.ratio
            if ratio is None or ratio.low <= 1:
                break
            gains = context
        return gains

    def __str__(self) -> str:
        from knorm_core.latency.tables import contexts_table

        return str(contexts_table(self))


def measure_contexts(
    model: nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    contexts: Iterable[int],
    keep_ratios: Iterable[float],
    new_tokens: int = 16,
    repeats: int = 7,
    warmup: int = 1,
    seed: int = 0,
    clock: Clock | None = None,
) -> Contexts:
    """Measure decoding at several context lengths, the prompt compressed once when it is in.

    At context c, the first c - new_tokens tokens are the prompt, which is also ``prune_after``.

    Args:
        model, keep_ratios, new_tokens, repeats, warmup, seed, clock: as for `measure_latency`.
        input_ids: a text at least as long as the longest prompt.
        contexts: lengths in tokens, each above ``new_tokens`` by at least 34.

    Raises:
        TypeError, ValueError: an argument is wrong; raised before the model runs.
        MeasurementError: at some context no round went through.
    """
    if isinstance(contexts, str) or not isinstance(contexts, Iterable):
        raise TypeError(f"contexts={contexts!r} is not a collection of lengths in tokens")
    check_rounds(repeats, warmup, seed)
    check_int("new_tokens", new_tokens, 1)
    lengths = sorted({check_int("contexts", context, new_tokens + 1) for context in contexts})
    if not lengths:
        raise ValueError("contexts is empty: give at least one length in tokens")
    ids = as_ids(input_ids).flatten()
    if len(ids) < lengths[-1] - new_tokens:
        raise ValueError(
            f"input_ids has {len(ids)} tokens, but contexts={lengths!r} with new_tokens={new_tokens} "
            f"needs a prompt of {lengths[-1] - new_tokens}"
        )
    ratios = check_keep_ratios(keep_ratios)
    jobs = [
        check_job(model, ids[:prompt], ratios, prompt, new_tokens, l2_compress, False, clock)[0]
        for prompt in (length - new_tokens for length in lengths)
    ]
    feed_prompt(jobs[0])  # a first prompt, thrown away
    latencies = [
        measure_job(job, ratios, repeats=repeats, warmup=warmup, seed=seed, prompt=feed_prompt(job)) for job in jobs
    ]
    return Contexts(tuple(lengths), tuple(latencies))
