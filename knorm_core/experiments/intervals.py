"""Error bars: by how much perplexity changed, with its 95 % interval.

Two evaluations of the same tokens are compared token by token: pairing cancels the text's difficulty. From eight
texts on, texts are resampled, and the interval speaks of other texts of these kinds. Fewer do not show how far texts
differ: then blocks of tokens within them are resampled, and the interval speaks of these texts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from knorm_core.counts import check_int
from knorm_core.evaluation import Evaluation
from knorm_core.experiments.resampling import RESAMPLES, detectable, mean_over_texts
from knorm_core.results.interval import FEWEST_TEXTS, Interval, per_cent
from knorm_core.results.records import pair

# Of the differences of losses the autocorrelation is at most 0.04 from lag 4 on, so blocks of 32 are long enough.
BLOCK_TOKENS = 32


def perplexity_ratio(
    rows: Sequence[Evaluation],
    baseline: Sequence[Evaluation],
    *,
    block_tokens: int = BLOCK_TOKENS,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Perplexity of ``rows`` over that of ``baseline``, with a paired bootstrap interval.

    With at least `FEWEST_TEXTS` texts, texts are drawn with replacement: exp of the studentised interval of the
    log ratio (see `mean_over_texts`).

    With fewer, every text is cut into blocks of ``block_tokens`` scored tokens (the last may be shorter, and
    none spans two texts), and blocks of all texts are drawn with replacement. That interval is the percentile
    one: it carries over from the log ratio to the ratio as it stands, and two identical rows give exactly
    [1, 1], where BCa's acceleration is 0/0. A single block tells nothing about spread: its limits are 0 and
    infinity.

    Args:
        rows, baseline: one evaluation per text, of the same texts in the same order. Where one scored
            more of a text than the other (a lower ``prune_after``), the tokens that both scored count.
        block_tokens: scored tokens per block, at least 1; of fewer than `FEWEST_TEXTS` texts.
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
    if len(rows) >= FEWEST_TEXTS:
        mean = mean_over_texts(*_texts(rows, baseline), confidence=confidence, resamples=resamples, seed=seed)
        with np.errstate(over="ignore"):  # a limit that is no finite ratio is infinite
            return Interval(*(float(np.exp(log)) for log in (mean.value, mean.low, mean.high)))
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


def perplexity_interval(rows: Sequence[Evaluation]) -> Interval:
    """Perplexity with its own sampling interval, which spreads as widely as texts are differently hard."""
    return perplexity_ratio(rows, [replace(row, nll=torch.zeros_like(row.nll)) for row in rows])


def paired_rows(
    evaluations: Mapping[str, Sequence[Evaluation]], pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Rows of a table ``…-pairs``, which claims are tested with: paired ratios of one row to another.

    Args:
        evaluations: one per text, by the label of their row (`knorm_core.results.records.Table.label`).
        pairs: (label, label of the row that it is held against).
    """
    return [
        {"pair": pair(label, reference)} | perplexity_ratio(evaluations[label], evaluations[reference]).columns("ratio")
        for label, reference in pairs
    ]


def shared_losses(row: Evaluation, other: Evaluation) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the tokens that both scored: evaluations score a text up to its end."""
    if row.seq_len != other.seq_len:
        raise ValueError(f"a text of {row.seq_len} tokens cannot be paired with one of {other.seq_len}")
    count = min(len(row.nll), len(other.nll))
    return row.nll[-count:], other.nll[-count:]


def detectable_change(rows: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> float:
    """The smallest true rise of perplexity, as a ratio, that such texts tell from none four times of five.

    Infinite with fewer than `FEWEST_TEXTS` texts: they say nothing of others.
    """
    sums, counts = _texts(rows, baseline)
    if len(sums) < FEWEST_TEXTS:
        return math.inf
    return math.exp(detectable(mean_over_texts(sums, counts, resamples=1).standard_error, len(sums)))


def precision(rows: Mapping[str, Sequence[Evaluation]], baseline: Sequence[Evaluation]) -> str:
    """The sentence below a table that says what its intervals speak of, and the smallest effect that it can show.

    Args:
        rows: evaluations by what the table calls their row; the same texts as in ``baseline``.
    """
    texts = "1 text" if len(baseline) == 1 else f"{len(baseline)} texts"
    if len(baseline) < FEWEST_TEXTS:
        return (
            f"{texts}, too few for a verdict: blocks of {BLOCK_TOKENS} tokens are resampled, so the intervals speak "
            f"of {'this text' if len(baseline) == 1 else 'these texts'} alone. A verdict on others takes at least "
            f"{FEWEST_TEXTS} texts."
        )
    changes = {name: detectable_change(evaluations, baseline) for name, evaluations in rows.items()}
    least, most = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)
    return f"{texts} are resampled. Minimal detectable effect (80 % power): {per_cent(changes[least])} ({least})" + (
        f" to {per_cent(changes[most])} ({most})." if least != most else "."
    )


def _pairs(rows: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if len(rows) != len(baseline) or not rows:
        raise ValueError(f"{len(rows)} evaluations cannot be paired with {len(baseline)}; give one per text in each")
    return [shared_losses(row, base) for row, base in zip(rows, baseline, strict=True)]


def _texts(rows: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> tuple[np.ndarray, np.ndarray]:
    """Summed difference of losses and number of tokens of every text, float64 (texts,) each."""
    differences = [losses - others for losses, others in _pairs(rows, baseline)]
    return np.array([float(d.sum()) for d in differences]), np.array([float(len(d)) for d in differences])


def _blocks(
    rows: Sequence[Evaluation], baseline: Sequence[Evaluation], block_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Summed difference of losses and number of tokens of every block, float64 (blocks,) each."""
    sums, counts = [], []
    for losses, others in _pairs(rows, baseline):
        for block in (losses - others).split(block_tokens):
            sums.append(float(block.sum()))
            counts.append(float(len(block)))
    return np.array(sums), np.array(counts)
