"""Any policy against what it must beat, at equal protections and equal memory.

A published policy keeps the first tokens and recent ones by itself or by its protection, and these alone explain much
of what it gains. So the first four tokens are protected in every row, and what the policy itself protects is in every
row too: what is left between two rows is what the score knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from knorm_core.evaluation import Evaluation
from knorm_core.evaluator import evaluate_rows
from knorm_core.experiments.breadth import RATIOS, SINKS, prune_after_of, seeds_of
from knorm_core.experiments.controls import averaged, pooled
from knorm_core.experiments.intervals import detectable_change, perplexity_ratio
from knorm_core.policies import LowNorm, Newest, Random
from knorm_core.policy import READS, Policy, Seen
from knorm_core.results.records import ITSELF

#: What a policy is compared with, in the order of a table.
CONTROLS = ("newest", "random", "permuted", "inverted")

Controls = Sequence[str] | Mapping[float, Sequence[str]]


@dataclass(frozen=True)
class _Derived(Policy):
    """A policy made of another one's score; it sees what that one sees, and at least the keys that are alive."""

    policy: Policy

    @property
    def reads(self) -> str:  # type: ignore[override]
        return max("cache", self.policy.reads, key=READS.index)


def _of_the_policy(name: str) -> property:
    return property(lambda self: getattr(self.policy, name))


# Whatever a policy declares but its score: its window, its protection, its memory.
for _name in sorted(set(vars(Policy)) - {"score", "reads"}):
    if not _name.startswith("_"):
        setattr(_Derived, _name, _of_the_policy(_name))


@dataclass(frozen=True)
class Inverted(_Derived):
    """The lowest scores stay: bad where the score is good, and no different where it is noise."""

    def score(self, seen: Seen) -> torch.Tensor:
        scores = self.policy.score(seen)
        return -scores if scores.is_floating_point() else ~scores  # the least integer has no negative


@dataclass(frozen=True)
class Permuted(_Derived):
    """The same scores, given to other keys at every eviction: what a choice costs that knows nothing of the keys.

    Heads that share their scores go on doing so. Protected keys keep theirs, or those scores that a policy gives its
    own window would go to keys outside it.

    Attributes:
        sinks: those that the evaluation protects.
        seed: of the permutations.
    """

    sinks: int = 0
    seed: int = 0

    def score(self, seen: Seen) -> torch.Tensor:
        scores = self.policy.score(seen)
        alive = seen.positions.shape[-1]
        scores = scores.expand(*scores.shape[:-1], alive)
        while scores.ndim < 3:
            scores = scores.unsqueeze(0)
        free = slice(self.sinks, alive - self.recent)
        heads, count = scores.shape[1], scores[..., free].shape[-1]
        # Philox counts, and takes a key of 128 bits: torch's generator on a CPU drops all but 32 of a seed.
        drawn = np.random.Philox(key=[self.seed, (seen.layer << 32) | seen.fed]).random_raw(heads * count)
        order = torch.from_numpy(drawn.reshape(1, heads, count).argsort(axis=-1)).to(scores.device)
        scores = scores.clone()
        scores[..., free] = scores[..., free].gather(-1, order.expand(scores.shape[0], -1, -1))
        return scores


class PolicyRow(NamedTuple):
    """One evaluation of every text."""

    policy: Policy
    keep_ratio: float
    sinks: int = SINKS
    recent: int = 0

    def arguments(self, index: int) -> list[dict[str, Any]]:
        """Arguments of `evaluate` on one text; two of them, with a seed each, where the row is random."""
        row = self._asdict() | {"prune_after": prune_after_of(index)}
        seeds = seeds_of(index)
        if isinstance(self.policy, Random):
            return [row | {"policy": Random(seed)} for seed in seeds]
        if isinstance(self.policy, Permuted):
            return [row | {"policy": replace(self.policy, seed=seeds[0])}]
        return [row]


UNCOMPRESSED = PolicyRow(LowNorm(), 1.0, sinks=0)


def rows_of(policy: Policy, keep_ratio: float, controls: Sequence[str] = CONTROLS) -> dict[str, PolicyRow]:
    """The policy's own row, under `ITSELF`, and that of each control."""
    sinks = max(SINKS, getattr(policy, "sinks", 0))
    rows = {
        ITSELF: PolicyRow(policy, keep_ratio, sinks, policy.recent),
        "newest": PolicyRow(Newest(), keep_ratio),
        "random": PolicyRow(Random(), keep_ratio, sinks, policy.recent),
        "permuted": PolicyRow(Permuted(policy, sinks), keep_ratio, sinks, policy.recent),
        "inverted": PolicyRow(Inverted(policy), keep_ratio, sinks, policy.recent),
    }
    return {control: rows[control] for control in (ITSELF, *controls)}


def _at(controls: Controls, ratio: float) -> Sequence[str]:
    return controls[ratio] if isinstance(controls, Mapping) else controls


def every_row(policy: Policy, keep_ratios: Sequence[float] = RATIOS, controls: Controls = CONTROLS) -> list[PolicyRow]:
    """All that `table` needs, the uncompressed row first, none twice."""
    rows = [row for ratio in keep_ratios for row in rows_of(policy, ratio, _at(controls, ratio)).values()]
    return list(dict.fromkeys([UNCOMPRESSED, *rows]))


def table(
    policy: Policy,
    evaluations: Mapping[PolicyRow, Sequence[Evaluation]],
    keep_ratios: Sequence[float] = RATIOS,
    controls: Controls = CONTROLS,
) -> list[dict[str, Any]]:
    """Per keep ratio the policy's own row and its controls'.

    ``ratio`` is perplexity over the uncompressed one, ``against`` the policy's perplexity over the control's (below 1:
    the policy is better), both with a paired interval over texts; ``detectable`` is the smallest true difference
    between the two that such texts show four times of five.

    Args:
        evaluations: one per text, of every row of `every_row`.
    """
    plain = evaluations[UNCOMPRESSED]
    lines: list[dict[str, Any]] = []
    for ratio in keep_ratios:
        rows = rows_of(policy, ratio, _at(controls, ratio))
        ours = evaluations[rows[ITSELF]]
        for control, row in rows.items():
            of_row = evaluations[row]
            lines.append(
                {"control": control, "keep_ratio": ratio, "sinks": row.sinks, "recent": row.recent}
                | pooled(of_row, plain)
                | perplexity_ratio(ours, of_row).columns("against")
                | {"detectable": detectable_change(ours, of_row)}
            )
    return lines


def compared(
    model: nn.Module,
    texts: Sequence[torch.Tensor],
    policy: Policy,
    keep_ratios: Sequence[float] = RATIOS,
    controls: Controls = CONTROLS,
) -> list[dict[str, Any]]:
    """`table` of a policy on texts, all of it evaluated here.

    Args:
        model: a causal language model.
        texts: token ids (n,) of each; fewer than eight are too few to speak of others.
        policy: what to compare.
        keep_ratios: each below 1.
        controls: of `CONTROLS`; or which of them at each keep ratio.
    """
    evaluations: dict[PolicyRow, list[Evaluation]] = {row: [] for row in every_row(policy, keep_ratios, controls)}
    for index, ids in enumerate(texts):
        results = evaluate_rows(
            model, ids, {(row, seed): a for row in evaluations for seed, a in enumerate(row.arguments(index))}
        )
        for row, of_row in evaluations.items():
            of_row.append(averaged([result for (other, _), result in results.items() if other == row]))
    return table(policy, evaluations, keep_ratios, controls)
