"""Rows that use the same memory: what a keep ratio is worth once its cache is as long as another's.

The keep ratio is not the memory saved. A cache breathes between its kept count and ``prune_after``: at
``prune_after`` 256 keep 0.1 still averages about 140 keys, keep 0.9 about 243, and both peak at 256. So
rows of one ``prune_after`` are at equal peak, and a row at equal mean has a ``prune_after`` of its own.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from knorm_core.counts import cache_lengths, check_int, eviction_schedule, kept_count
from knorm_core.evaluation import Evaluation


def cycle_mean(keep_ratio: float, prune_after: int) -> float:
    """Mean cache length over one full cycle, from right after an eviction to the next.

    The cache holds kept + 1 keys once the first token after an eviction is fed, and ``prune_after`` when
    the last one is: each length in between once.

    >>> cycle_mean(0.5, 256), cycle_mean(0.1, 256), cycle_mean(0.9, 256)
    (192.5, 141.5, 244.0)
    """
    return (kept_count(prune_after, keep_ratio) + 1 + prune_after) / 2


def mean_over_last(seq_len: int, prune_after: int, keep_ratio: float, tokens: int) -> float:
    """Mean cache length over the last ``tokens`` tokens fed, by the schedule of a text of ``seq_len``."""
    schedule = eviction_schedule(seq_len, prune_after, keep_ratio)
    return fmean(cache_lengths(seq_len, prune_after, schedule)[-tokens:])


def prune_after_for_mean(seq_len: int, keep_ratio: float, mean: float, tokens: int) -> int:
    """The ``prune_after`` whose mean cache over the last ``tokens`` tokens fed is nearest to ``mean``.

    Not the closed form of `cycle_mean`, because a text rarely ends with a cycle.

    >>> prune_after_for_mean(512, 0.5, mean_over_last(512, 256, 0.1, 255), 255)
    176

    Raises:
        ValueError: no ``prune_after`` leaves ``tokens`` to score.
    """
    longest = check_int("seq_len", seq_len, 0) - 1 - check_int("tokens", tokens, 1)
    if longest < 1:
        raise ValueError(f"tokens={tokens!r} is not below seq_len - 1 = {seq_len - 1}: phase 1 would be empty")
    return min(
        range(1, longest + 1),
        key=lambda prune_after: abs(mean_over_last(seq_len, prune_after, keep_ratio, tokens) - mean),
    )


def mean_cache_over_last(evaluation: Evaluation, tokens: int) -> float:
    """Cache length as it was, averaged over full-attention layers and the last ``tokens`` tokens fed."""
    return fmean(fmean(trace[-tokens:]) for trace in evaluation.cache_trace)


def scored_last(evaluation: Evaluation, tokens: int) -> Evaluation:
    """The same evaluation with the losses of the last ``tokens`` tokens alone.

    A lower ``prune_after`` scores more of a text; only what all rows scored is compared.
    """
    if tokens > len(evaluation.nll):
        raise ValueError(f"tokens={tokens} is more than the {len(evaluation.nll)} that were scored")
    return replace(evaluation, nll=evaluation.nll[-tokens:])
