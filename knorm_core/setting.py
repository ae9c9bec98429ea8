"""A setting: what to evaluate, checked and spelled out for one text and one model. Both methods take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch

from knorm_core.counts import Eviction, budget_schedule, eviction_schedule, kept_count
from knorm_core.policies import LowNorm
from knorm_core.policy import Policy, key_scores
from knorm_core.selection import UNPROTECTED, Protection

_LOW_NORM = LowNorm()


class NoEvictionError(ValueError):
    """An evaluation that was asked to compress never evicted a key: its result would say nothing."""


class ProtectedKeysError(ValueError):
    """More keys are protected than an eviction keeps; the message names both, and what protects them."""


class UnsupportedModelError(ValueError):
    """The model's attention cannot be evaluated exactly; the message says why."""


class SlowFallbackWarning(UserWarning):
    """One pass cannot serve the model, so it is evaluated token by token; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What to evaluate, all of it checked. Lengths are in tokens.

    Attributes:
        seq_len: n, tokens of the text.
        start: P, tokens of phase 1 (at most ``seq_len`` - 1 of them are fed).
        keep_ratio: of each layer, in (0, 1], the exact decimal that the user wrote; None with
            ``when="fixed_budget"``.
        budget: of each layer, in keys, with ``when="fixed_budget"``; else None.
        protection: keys that stay whatever the policy says.
        sliding: window length of every sliding-window layer; these are never compressed.
        skip_layers: full-attention layers to leave alone.
        first_scored: index of the first token that is scored.
        first_eviction_after, method, compressor, allow_no_eviction: as `knorm_core.Arguments` has them.
        first_position: what the model counts positions from: 0, or for RoBERTa and its like what follows the padding's.
    """

    seq_len: int
    layers: int
    start: int
    keep_ratio: tuple[Fraction, ...] | None = None
    budget: tuple[int, ...] | None = None
    positions: str = "absolute"
    policy: Policy = _LOW_NORM
    protection: Protection = UNPROTECTED
    skip_layers: frozenset[int] = frozenset()
    sliding: Mapping[int, int] = field(default_factory=dict, hash=False)
    when: str = "every_step"
    first_eviction_after: int = 0
    first_scored: int = 1
    method: str = "onepass"
    compressor: Callable[..., Any] | None = None
    allow_no_eviction: bool = False
    first_position: int = 0

    @property
    def compresses(self) -> bool:
        """Whether it is asked for evictions at all."""
        return self.keep_ratio is None or min(self.keep_ratio) < 1

    def schedule(self, layer: int) -> tuple[Eviction, ...]:
        """Evictions of one layer; empty if it is skipped or slides, or if nothing is evicted."""
        return self.schedules[layer]

    @cached_property
    def schedules(self) -> tuple[tuple[Eviction, ...], ...]:
        """Evictions of every layer."""
        amounts: tuple[Fraction | int, ...] = self.budget or self.keep_ratio or ()
        made = {amount: self._schedule(amount) for amount in set(amounts)}
        return tuple(
            () if layer in self.skip_layers or layer in self.sliding else made[amount]
            for layer, amount in enumerate(amounts)
        )

    def _schedule(self, amount: Fraction | int) -> tuple[Eviction, ...]:
        late = self.first_eviction_after
        if self.budget is not None:
            return budget_schedule(self.seq_len, int(amount), self.start, late)
        return eviction_schedule(self.seq_len, self.start, amount, when=self.when, first_eviction_after=late)

    def kept(self, layer: int, length: int) -> int:
        """How many of ``length`` keys of a layer stay when it is compressed; all of them if it is not full yet."""
        if self.budget is not None:
            return min(length, self.budget[layer] - 1)
        if self.keep_ratio is None or length < self.start:
            return length
        return kept_count(length, self.keep_ratio[layer])

    def scores(self, layer: int, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Scores by a policy that reads "key" alone, fixed at birth."""
        return key_scores(self.policy, keys, positions, layer=layer)

    def fed_positions(self) -> torch.Tensor:
        """Position of every fed token, int64 (seq_len - 1,).

        "cache" is what transformers derives when nobody passes positions: the length of layer 0's cache.
        "rerotated" feeds the same ones, and moves the survivors so that they are right.
        """
        positions = torch.arange(self.seq_len - 1) + self.first_position
        if self.positions != "absolute":
            for step, before, after in self.schedule(0):
                positions[step:] -= before - after
        return positions

    @property
    def plainest(self) -> Setting:
        """The simplest setting that is the same evaluation by definition."""
        if not self.compresses:
            whole = (Fraction(1),) * self.layers
            return Setting(
                self.seq_len,
                self.layers,
                self.start,
                whole,
                sliding=self.sliding,
                first_scored=self.first_scored,
                first_position=self.first_position,
            )
        if self.positions == "cache" and not self.schedule(0):  # layer 0 never shrinks
            return replace(self, positions="absolute")
        return self

    def check_evictions(self, evictions: Sequence[Sequence[Eviction]]) -> None:
        """Raise a NoEvictionError if evictions were asked for and there are none."""
        if self.allow_no_eviction or not self.compresses or any(evictions):
            return
        raise NoEvictionError(
            f"nothing is ever evicted: {self.seq_len} tokens with an effective prune_after of {self.start} and "
            f"keep_ratio={self.given_ratio}, so the result would be the uncompressed one. Lower prune_after, "
            f"use adjust=True, or pass allow_no_eviction=True if that is what you want to measure"
        )

    @property
    def given_ratio(self) -> float | list[float] | None:
        """The keep ratio as it was given: a number, or one per layer."""
        if self.keep_ratio is None:
            return None
        ratios = [float(ratio) for ratio in self.keep_ratio]
        return ratios[0] if len(set(ratios)) == 1 else ratios
