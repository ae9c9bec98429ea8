"""Error bars: by how much perplexity changed, with its 95 % interval.

Two evaluations of the same tokens are compared token by token: pairing cancels the text's difficulty. Neighbouring
losses are correlated, so blocks of tokens are resampled. The texts are taken as they are: the interval speaks of more
prose of these kinds, not of other kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import bootstrap

from knorm_core.counts import check_int
from knorm_core.evaluation import Evaluation
from knorm_core.results.interval import Interval

BLOCK_TOKENS = 32  # longer than a sentence, short enough that a table has a hundred of them
RESAMPLES = 9_999


def perplexity_ratio(
    rows: Sequence[Evaluation],
    baseline: Sequence[Evaluation],
    *,
    block_tokens: int = BLOCK_TOKENS,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Perplexity of ``rows`` over that of ``baseline``, with a paired, blockwise bootstrap interval.

    Every text is cut into blocks of ``block_tokens`` scored tokens (the last may be shorter, and none
    spans two texts); a block carries the summed difference of losses and its number of tokens. Blocks of
    all texts are drawn with replacement, and the ratio is exp of (summed differences / summed tokens).

    The interval is the percentile one: it carries over from the log ratio to the ratio as it stands,
    and two identical rows give exactly [1, 1], where BCa's acceleration is 0/0. A single block tells
    nothing about spread: its limits are 0 and infinity.

    Args:
        rows, baseline: one evaluation per text, of the same texts in the same order. Where one scored
            more of a text than the other (a lower ``prune_after``), the tokens that both scored count.
        block_tokens: scored tokens per block, at least 1.
        confidence: of the interval, between 0 and 1.
        resamples: how often to draw, at least 1.
        seed: of the draws; the same seed gives the same limits.

    Raises:
        ValueError: the two lists do not belong together, or an argument is out of range.
    """
    check_int("block_tokens", block_tokens, 1)
    check_int("resamples", resamples, 1)
    check_int("seed", seed, 0)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not between 0 and 1")
    sums, counts = _blocks(rows, baseline, block_tokens)
    ratio = math.exp(sums.sum() / counts.sum())
    if not sums.any():
        return Interval.exact(1.0)
    if len(sums) == 1:  # nothing to draw from
        return Interval(ratio, 0.0, math.inf)
    drawn = bootstrap(
        (sums, counts),
        lambda s, c, axis: np.exp(s.sum(axis) / c.sum(axis)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        confidence_level=confidence,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(ratio, float(drawn.low), float(drawn.high))


def shared_losses(row: Evaluation, other: Evaluation) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the tokens that both scored: evaluations score a text up to its end."""
    if row.seq_len != other.seq_len:
        raise ValueError(f"a text of {row.seq_len} tokens cannot be paired with one of {other.seq_len}")
    count = min(len(row.nll), len(other.nll))
    return row.nll[-count:], other.nll[-count:]


def _blocks(
    rows: Sequence[Evaluation], baseline: Sequence[Evaluation], block_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Summed difference of losses and number of tokens of every block, float64 (blocks,) each."""
    if len(rows) != len(baseline) or not rows:
        raise ValueError(f"{len(rows)} evaluations cannot be paired with {len(baseline)}; give one per text in each")
    sums, counts = [], []
    for row, base in zip(rows, baseline, strict=True):
        losses, others = shared_losses(row, base)
        for block in (losses - others).split(block_tokens):
            sums.append(float(block.sum()))
            counts.append(float(len(block)))
    return np.array(sums), np.array(counts)
