"""What a layer keeps under a policy that divides what is kept among the layers: PyramidKV and its like."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from knorm_core.counts import kept_count
from knorm_core.policy import Policy, PolicyError


def divided_ratio(
    policy: Policy, ratios: tuple[Fraction, ...], compressed: Sequence[int], full: int, *, once: bool
) -> tuple[Fraction, ...]:
    """Keep ratios as a policy divides them among layers: such that of ``full`` keys exactly its counts are kept.

    A layer that keeps all of them would never be compressed again and grow for ever, so only where there is one
    eviction may one do so.
    """
    if not policy.divides or ratios[:1] * len(ratios) == (Fraction(1),) * len(ratios):
        return ratios
    kept = kept_count(full, _the_same(policy, "keep_ratio", ratios))
    most = full if once else full - 1
    if kept > most or not compressed:
        return ratios
    counts = _division(policy, kept, compressed, most)
    return tuple(Fraction(counts[layer], full) if layer in counts else ratio for layer, ratio in enumerate(ratios))


def divided_budget(policy: Policy, budgets: tuple[int, ...], compressed: Sequence[int], most: int) -> tuple[int, ...]:
    """Budgets as a policy divides them among layers."""
    if not policy.divides:
        return budgets
    budget = _the_same(policy, "budget", budgets)
    if budget > most or not compressed:  # which is refused later
        return budgets
    counts = _division(policy, budget, compressed, most)
    # Layers that are not compressed have none; phase 1 is as long as the largest of the others.
    return tuple(counts.get(layer, min(counts.values())) for layer in range(len(budgets)))


def _the_same(policy: Policy, name: str, amounts: Sequence[Any]) -> Any:
    if len(set(amounts)) > 1:
        raise ValueError(
            f"policy {policy!r} divides {name} among the layers itself: give one for all, not one per layer"
        )
    return amounts[0]


def _division(policy: Policy, kept: int, compressed: Sequence[int], most: int) -> dict[int, int]:
    """How many keys each compressed layer keeps, as the policy says, checked."""
    counts = [int(count) for count in policy.kept_by_layer(kept, len(compressed), most)]
    in_all, right = kept * len(compressed), len(counts) == len(compressed)
    if not right or sum(counts) != in_all or not 1 <= min(counts) <= max(counts) <= most:
        raise PolicyError(
            f"policy {policy!r} divides {len(compressed)} layers of {kept} keys into {counts}: expected a count for "
            f"each, in 1 … {most}, {in_all} in all"
        )
    return dict(zip(compressed, counts, strict=True))
