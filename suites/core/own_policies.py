"""Policies that a user might write, to be named as ``suites.core.own_policies:Name``."""

from __future__ import annotations

from dataclasses import dataclass

from knorm_core.policy import Policy


class TOVA(Policy):
    """The example of the README."""

    reads = "attention"

    def score(self, seen):
        return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0]


@dataclass(frozen=True)
class Weighted(Policy):
    """Parameters without defaults."""

    weight: float

    reads = "cache"

    def score(self, seen):
        return self.weight * seen.keys.sum(dim=-1) + seen.values.sum(dim=-1)


class Plain(Policy):
    """Parameters, and no dataclass."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def score(self, seen):
        return self.weight * seen.keys.sum(dim=-1)


HALF = Weighted(0.5)
NOT_A_POLICY = 3
