"""What an evaluation gives: the losses of one text, and the record of what was evicted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import torch

from knorm_core.counts import Eviction, cache_lengths
from knorm_core.setting import Setting


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The losses of one text, and what was evicted on the way.

    Attributes:
        nll: negative log-likelihood in nats of every scored token, float64, shape (scored,), on the CPU.
        effective_prune_after: P, the length of phase 1 and the cache length that triggers an eviction.
        seq_len: n, the tokens of the text.
        evictions: per layer, its evictions in order, each (step, before, after).
        sliding_layers: layers with a sliding window, which are never compressed and not counted below.
        method: "onepass" or "stepwise", the one that ran.
    """

    nll: torch.Tensor
    effective_prune_after: int
    seq_len: int
    evictions: tuple[tuple[Eviction, ...], ...]
    sliding_layers: tuple[int, ...] = ()
    method: str = "onepass"

    @classmethod
    def of(
        cls, setting: Setting, nll: torch.Tensor, evictions: tuple[tuple[Eviction, ...], ...] | None = None
    ) -> Evaluation:
        """The evaluation that has these losses.

        Args:
            setting: what was evaluated.
            nll: float64 (scored,).
            evictions: as they were read off a real cache; None for one pass, whose evictions are the schedule's.

        Raises:
            ValueError: a loss is not finite.
        """
        if not bool(torch.isfinite(nll).all()):
            index = int((~torch.isfinite(nll)).nonzero()[0])
            raise ValueError(
                f"the loss of token {setting.first_scored + index} is {float(nll[index])}: the model overflows"
            )
        method = "onepass" if evictions is None else "stepwise"
        evictions = setting.schedules if evictions is None else evictions
        return cls(nll, setting.start, setting.seq_len, evictions, tuple(sorted(setting.sliding)), method)

    def __repr__(self) -> str:
        """One line: what came out, of how much text, and what was evicted."""
        fewest, most = min(counts := self.evictions_per_layer), max(counts)
        evictions = str(most) if fewest == most else f"{fewest} to {most}"
        perplexity = f"ppl={self.ppl:.6g}, " if len(self.nll) else ""
        return (
            f"Evaluation({perplexity}{len(self.nll)} of {self.seq_len} tokens scored, prune_after "
            f"{self.effective_prune_after}, {evictions} evictions per layer, peak cache {self.peak_cache}, "
            f"{self.method})"
        )

    @property
    def ppl(self) -> float:
        """Perplexity: exp of the mean negative log-likelihood."""
        return perplexity([self])

    @property
    def evictions_per_layer(self) -> tuple[int, ...]:
        """How often each layer was compressed."""
        return tuple(map(len, self.evictions))

    @property
    def cache_trace(self) -> tuple[tuple[int, ...], ...]:
        """Per full-attention layer, the cache length after each token fed in phase 2."""
        return tuple(
            tuple(cache_lengths(self.seq_len, self.effective_prune_after, evictions))
            for layer, evictions in enumerate(self.evictions)
            if layer not in self.sliding_layers
        )

    @property
    def mean_cache(self) -> float:
        """Cache length in tokens, averaged over full-attention layers and the tokens fed in phase 2."""
        trace = self.cache_trace
        return fmean(map(fmean, trace)) if trace[0] else math.nan

    @property
    def peak_cache(self) -> int:
        """The longest cache, in tokens, that any full-attention layer held at any time."""
        phase_1 = min(self.effective_prune_after, self.seq_len - 1)
        return max(phase_1, *(max(lengths, default=0) for lengths in self.cache_trace))


def perplexity(evaluations: Iterable[Evaluation]) -> float:
    """exp of the mean negative log-likelihood over all scored tokens of all texts."""
    losses = [evaluation.nll for evaluation in evaluations]
    if not losses:
        raise ValueError("no evaluations: perplexity of an empty list of texts is undefined")
    return math.exp(torch.cat(losses).mean())
