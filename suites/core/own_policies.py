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


class AllQueries(Policy):
    """Attention of every query since the start, anew at each eviction."""

    reads = "queries"
    query_window = None

    def score(self, seen):
        return seen.query_attention.sum(dim=3).amax(dim=2)


class ThreeQueries(AllQueries):
    """The same of a window that nothing protects."""

    query_window = 3


class Decayed(Policy):
    """A memory in which what was received fades with every token: the order of observations matters."""

    reads = "attention"

    def observe(self, state, seen):
        for received in seen.received.amax(dim=2).unbind(dim=2):
            state = 0.9 * state + received
        return state

    def score(self, seen):
        return seen.state * seen.values.abs().sum(dim=-1) + 0.01 * seen.attention.amin(dim=2)


class HiddenStates(Policy):
    """What entered the layer's attention, of all tokens, beside the keys that were made of it."""

    reads = "hidden_states"
    query_window = None

    def score(self, seen):
        entered = seen.hidden_states.sum(dim=-1).unsqueeze(1).expand(-1, seen.positions.shape[1], -1)
        return entered.gather(-1, seen.positions) + seen.keys.sum(dim=-1) * seen.module.layer_idx


HALF = Weighted(0.5)
NOT_A_POLICY = 3


class Fails(Policy):
    """One that takes no arguments, and whose own code fails."""

    def __init__(self):
        self.weight = 1 + None

    def score(self, seen):
        return self.weight * seen.positions
