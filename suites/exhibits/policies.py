"""Broken policies, one known fault each. What they are made of is right."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core.contract import PolicyClaims, as_policy
from knorm_core.policies import H2O, TOVA, KeyDiff, LowNorm, Newest, Random, SnapKV
from knorm_core.policy import Policy
from suites.exhibits.exhibit import Exhibit

EXHIBITS: list[Exhibit] = []


def exhibit(caught_by: str, source: str, *, sound: Policy, claims: PolicyClaims | None = None) -> Any:
    """Add an instance of the class to `EXHIBITS`."""

    def add(kind: Any) -> Any:
        story = " ".join((kind.__doc__ or "").split())
        EXHIBITS.append(Exhibit(as_policy(kind(), claims), as_policy(sound, claims), caught_by, source, story))
        return kind

    return add


@exhibit("scores_can_be_ranked", "squeeze() and mean() without keepdim, where a batch has one text", sound=TOVA())
class LostAxis(Policy):
    """The mean over KV heads and groups takes both axes with it: rows stand where heads should."""

    reads = "attention"

    def score(self, seen: Any) -> Any:
        return seen.attention.mean(dim=(1, 2))


@exhibit("scores_can_be_ranked", "min-max normalisation of scores before they are added to others", sound=H2O())
class MinMax(Policy):
    """Norms of values are scaled to 0 … 1 between the least and the largest, which may be the same."""

    reads = "cache"

    def score(self, seen: Any) -> Any:
        norms = seen.values.norm(dim=-1)
        low, high = norms.amin(-1, keepdim=True), norms.amax(-1, keepdim=True)
        return (norms - low) / (high - low)


@exhibit("scores_are_finite", "log-probabilities in place of probabilities", sound=SnapKV(window=4))
class LogAttention(Policy):
    """The logarithm of attention is minus infinity for keys that none of the latest queries could see."""

    reads = "queries"
    query_window = 4

    def score(self, seen: Any) -> Any:
        return seen.query_attention[..., 0, :].mean(dim=2).log()


@exhibit("sees_no_future", "KeyDiff declared to read keys alone, which scores the whole text at once", sound=KeyDiff())
class WholeTextAnchor(Policy):
    """The mean direction of all keys that come with the call: in one pass, those of the whole text."""

    def score(self, seen: Any) -> Any:
        anchor = seen.keys.mean(dim=2, keepdim=True)
        return -torch.cosine_similarity(seen.keys, anchor, dim=-1)


@exhibit("same_answer_twice", "kvpress's RandomPress without a seed: the global generator", sound=Random())
class FreshNoise(Policy):
    """Random scores, others at every call."""

    def score(self, seen: Any) -> Any:
        return torch.rand(seen.keys.shape[:3])


@exhibit("same_answer_twice", "accumulated attention in an attribute of the module, which nobody resets", sound=H2O())
class KeepsItsOwnMemory(Policy):
    """What was seen is counted in the policy itself, and the next text begins where the last one ended."""

    reads = "cache"

    def __init__(self) -> None:
        self.calls = [0]

    def __hash__(self) -> int:
        return id(self)

    def score(self, seen: Any) -> Any:
        self.calls[0] += 1
        return (seen.positions * (7919 * self.calls[0] + 13)) % 101


@exhibit("rows_are_independent", "sum over batch and queries at once", sound=H2O())
class MeanOverRows(Policy):
    """Attention is averaged over texts as well, so that a text's evictions depend on its neighbours."""

    reads = "attention"

    def score(self, seen: Any) -> Any:
        return seen.attention.mean(dim=(0, 2)).expand(seen.attention.shape[0], -1, -1)


@exhibit(
    "heads_are_independent", "attention averaged over all heads, then expanded, as in kvpress's TOVA", sound=TOVA()
)
class ExpandedMean(Policy):
    """All heads keep the same tokens, which the shape of the scores does not say."""

    reads = "attention"

    def score(self, seen: Any) -> Any:
        return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0].expand(seen.keys.shape[:3])


@exhibit(
    "protected_keys_stay",
    "a window's indices kept from the prefill",
    sound=Newest(),
    claims=PolicyClaims(finite=False, recent=2),
)
class StaleWindow(Policy):
    """The window is where it was at the first eviction, and later tokens are not in it."""

    reads = "cache"

    def __init__(self) -> None:
        self.first: dict[int, int] = {}

    def __hash__(self) -> int:
        return id(self)

    def score(self, seen: Any) -> Any:
        end = self.first.setdefault(seen.layer, seen.fed)
        window = (seen.positions >= end - 2) & (seen.positions < end)
        return torch.where(window, 1e9, -seen.positions.double())


@exhibit("kept_counts_are_exact", "positions made relative, in place", sound=LowNorm())
class PositionsFromZero(Policy):
    """Positions are shifted in place, and they are the engine's own."""

    reads = "cache"

    def score(self, seen: Any) -> Any:
        positions = seen.positions.sub_(seen.positions[..., :1] + 1)
        return seen.keys.norm(dim=-1) + 0 * positions


@exhibit("one_pass_is_stepwise", "a mean over the queries of a block, where the sum is meant", sound=H2O())
class MeanPerCall(Policy):
    """The memory adds a mean over the tokens fed since the last call: one for a block, many token by token."""

    reads = "attention"

    def observe(self, state: Any, seen: Any) -> Any:
        return state + seen.received.mean(dim=(2, 3))

    def score(self, seen: Any) -> Any:
        return seen.state


LATEST: dict[str, float] = {}


@exhibit("reads_what_it_declares", "a hook that leaves attention in a global for the compressor", sound=LowNorm())
class PeeksAtAGlobal(Policy):
    """The scale of the scores comes from a global that a hook of the script fills."""

    def score(self, seen: Any) -> Any:
        return _scale() * seen.keys.norm(dim=-1)


def _scale() -> float:
    return LATEST.get("scale", 1.0)


@exhibit("reads_what_it_declares", "private attributes are open to everybody in Python", sound=KeyDiff())
class ReachesPastItsDeclaration(Policy):
    """The latest query is taken from where the engine keeps it, past the declaration."""

    reads = "cache"

    def score(self, seen: Any) -> Any:
        query = seen._parts["queries"]()[:, :, :1, -1]
        return (seen.keys * query).sum(dim=-1)
