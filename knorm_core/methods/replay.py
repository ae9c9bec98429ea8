"""Playing the evictions of one layer forward: which keys die when, under a policy that looks at more than a key.

In teacher forcing the queries, keys and values of a layer are known before anything is evicted, and the product of a
query and a key does not depend on who else is alive. So one matrix product per block of queries, against the keys
alive at its start and the block's own, serves all evictions within the block: each takes its rows of the product,
leaves out the dead, and the softmax over the rest is the attention that the model itself would have given. A full
matrix of queries by keys never exists. What comes out are deaths, as `knorm_core.methods.attention` takes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from knorm_core.cache import take
from knorm_core.counts import Eviction
from knorm_core.methods.attention import NEVER
from knorm_core.methods.entered import Entered
from knorm_core.methods.rotation import Rotation
from knorm_core.policy import Policy, Seen, check_no_nan, checked_scores, checked_state
from knorm_core.selection import UNPROTECTED, Protection, survivors

BLOCK = 64  # tokens at a time

Move = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Logits:
    """Products of queries and keys as a model scales and caps them, before the softmax."""

    def __init__(self, scale: float | None = None, softcap: float | None = None) -> None:
        self.scale = scale
        self.softcap = softcap

    def factor(self, width: int) -> float:
        """What the product of a query and a key of ``width`` coordinates is multiplied with."""
        return width**-0.5 if self.scale is None else self.scale

    def __call__(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """(rows, kv_heads, group, queries, head_dim) and (rows, kv_heads, keys, head_dim) to (…, queries, keys)."""
        rows, kv_heads, group, queries, width = query.shape
        scaled = query * self.factor(width)
        product = scaled.reshape(rows, kv_heads, group * queries, width) @ key.mT
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product.view(rows, kv_heads, group, queries, -1)


def replayed_deaths(
    policy: Policy,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    schedule: Sequence[Eviction],
    *,
    layer: int = 0,
    protection: Protection = UNPROTECTED,
    logits: Logits | None = None,
    move: Move | None = None,
    rotation: Rotation | None = None,
    entered: Entered | None = None,
) -> torch.Tensor:
    """Death of every key: the index of the first query that no longer sees it, int64 (rows, kv_heads, length).

    Args:
        policy: what decides; `Policy.reads` is "cache" or more.
        query: (rows, heads, length, head_dim), of all tokens fed; heads is a multiple of kv_heads.
        key, value: (rows, kv_heads, length, head_dim).
        schedule: the layer's evictions, ascending.
        layer: the layer's index, for the policy to see.
        protection: keys that stay whatever their score.
        logits: the model's scale and soft-capping.
        move: what becomes of survivors at an eviction, from what they were when born; see
            `knorm_core.methods.attention.moving_attention`.
        rotation: for a policy that un-rotates queries.
        entered: for a policy that reads "hidden_states", of all tokens fed.

    Raises:
        PolicyError: the policy returns what cannot be scores, or looks at what it does not declare.
    """
    replay = _Replay(policy, query, key, value, layer, protection, logits or Logits(), move, rotation, entered)
    for first, last, evictions in _blocks(schedule, ends_at_evictions=move is not None):
        replay.play(first, last, evictions)
    return replay.deaths


def _blocks(schedule: Sequence[Eviction], ends_at_evictions: bool) -> list[tuple[int, int, list[Eviction]]]:
    """Tokens up to the last eviction, at most `BLOCK` at a time, with the evictions that follow one of them."""
    end = schedule[-1].step if schedule else 0
    edges = {0, end, *range(0, end, BLOCK)} | ({eviction.step for eviction in schedule} if ends_at_evictions else set())
    return [
        (first, last, [eviction for eviction in schedule if first < eviction.step <= last])
        for first, last in itertools.pairwise(sorted(edges))
    ]


class _Replay:
    """A layer's cache between two blocks."""

    def __init__(
        self,
        policy: Policy,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        protection: Protection,
        logits: Logits,
        move: Move | None,
        rotation: Rotation | None,
        entered: Entered | None,
    ) -> None:
        self.policy, self.layer, self.protection, self.logits, self.move = policy, layer, protection, logits, move
        self.rotation, self.entered = rotation, entered
        rows, kv_heads, length, _ = key.shape
        self.query = query.view(rows, kv_heads, query.shape[1] // kv_heads, length, -1)
        self.key, self.value = key.contiguous(), value.contiguous()
        self.deaths = torch.full((rows, kv_heads, length), NEVER, device=key.device)
        #: (rows, kv_heads, alive): tokens whose keys are alive.
        self.births = self.deaths[..., :0]
        self.moved = 0  # so many of them, the first, have moved
        self.state = key.new_zeros(self.births.shape, dtype=torch.promote_types(key.dtype, torch.float32))

    def play(self, first: int, last: int, evictions: Sequence[Eviction]) -> None:
        """Feed tokens ``first`` … ``last`` - 1, and evict where ``evictions`` say so."""
        block = _Block(self, first, last, evictions)
        unseen: list[torch.Tensor] = []
        for step, before, after in evictions:
            block.feed_until(step)
            seen = block.seen(after)
            shape = (*self.births.shape[:2], before)
            scores = checked_scores(self.policy, seen, shape, self.key.device)
            unseen.append(scores)
            block.evict(step, survivors(scores, after, self.protection))
        block.feed_until(last)
        for length, alike in itertools.groupby(unseen, lambda scores: scores.shape[-1]):
            del length
            check_no_nan(self.policy, torch.stack(list(alike)), self.layer)
        self.births = block.alive(block.births)
        self.deaths.scatter_(-1, block.births, block.deaths)
        if self.move is not None and evictions:
            self.moved = evictions[-1].after


class _Block:
    """Some tokens, and the columns that they may see: keys alive before them, then their own."""

    def __init__(self, replay: _Replay, first: int, last: int, evictions: Sequence[Eviction]) -> None:
        self.replay = replay
        self.first = self.fed = first
        self.before = replay.births.shape[-1]
        own = torch.arange(first, last, device=replay.key.device).expand(*replay.births.shape[:2], -1)
        #: (rows, kv_heads, columns)
        self.births = torch.cat([replay.births, own], dim=-1)
        self.deaths = torch.full_like(self.births, NEVER)
        #: Columns alive among those fed, (rows, kv_heads, alive); None as long as these are all, in order.
        self.columns: torch.Tensor | None = None
        self.attention: torch.Tensor | None = None
        # Rows of the product that may be asked for.
        policy = replay.policy
        earliest = evictions[0].step - (policy.query_window or 1) if evictions else last
        self.row = max(0, min(earliest, first if policy.observes else last))
        self.row_end = last if policy.observes or not evictions else evictions[-1].step

    @cached_property
    def keys(self) -> torch.Tensor:
        """(rows, kv_heads, columns, head_dim), as they are in the cache."""
        replay = self.replay
        keys = take(replay.key, self.births)
        if replay.move is None or not replay.moved:
            return keys
        moved = replay.move(keys[:, :, : replay.moved], self.births[..., : replay.moved])
        return torch.cat([moved, keys[:, :, replay.moved :]], dim=2)

    @cached_property
    def products(self) -> torch.Tensor:
        """(rows, kv_heads, group, queries, columns) of tokens ``self.row`` … ``self.row_end`` - 1."""
        return self.replay.logits(self.replay.query[:, :, :, self.row : self.row_end], self.keys)

    def alive(self, tensor: torch.Tensor) -> torch.Tensor:
        """The alive columns of (rows, kv_heads, …, columns)."""
        if self.columns is None:
            return tensor[..., : self.before + self.fed - self.first]
        index = self.columns
        while index.ndim < tensor.ndim:
            index = index.unsqueeze(2)
        return tensor.gather(-1, index.expand(*tensor.shape[:-1], -1))

    def feed_until(self, step: int) -> None:
        """Feed tokens up to ``step`` - 1; a policy with a memory observes them."""
        count, replay = step - self.fed, self.replay
        if not count:
            return
        if self.columns is not None:
            place = self.before - self.first
            own = torch.arange(place + self.fed, place + step, device=self.columns.device)
            self.columns = torch.cat([self.columns, own.expand(*self.columns.shape[:2], -1)], dim=-1)
        fed, self.fed, self.attention = self.fed, step, None
        if replay.policy.observes:
            state = torch.cat([replay.state, replay.state.new_zeros(*replay.state.shape[:2], count)], dim=-1)
            seen = self._seen(received=lambda: self._attention(fed, step))
            replay.state = checked_state(replay.policy, state, seen)

    def evict(self, step: int, kept: torch.Tensor) -> None:
        """Let all alive keys die at ``step`` but those of index ``kept``."""
        replay, columns = self.replay, self.columns
        if columns is None:
            self.deaths[..., : self.before + self.fed - self.first] = step
            self.columns = kept.expand(*self.births.shape[:2], -1)
        else:
            self.deaths.scatter_(-1, columns, step)
            self.columns = columns.gather(-1, kept.expand(*columns.shape[:2], -1))
        self.deaths.scatter_(-1, self.columns, NEVER)
        if replay.policy.observes:
            replay.state = replay.state.gather(-1, kept.expand(*replay.state.shape[:2], -1))

    def seen(self, kept: int) -> Seen:
        """What the policy sees at an eviction."""
        return self._seen(kept=lambda: kept, state=lambda: self._state(), attention=lambda: self._latest())

    def _seen(self, **more: Callable[[], Any]) -> Seen:
        replay, policy = self.replay, self.replay.policy
        fed = self.fed
        first = 0 if policy.query_window is None else max(0, fed - policy.query_window)
        parts: dict[str, Callable[[], Any]] = {
            "fed": lambda: fed,
            "positions": lambda: self.alive(self.births),
            "keys": lambda: self._rows(self.keys),
            "values": lambda: take(replay.value, self.alive(self.births)),
            "queries": lambda: replay.query[:, :, :, first:fed],
            "query_attention": lambda: self._query_attention(first),
            "scale": lambda: replay.logits.factor(replay.query.shape[-1]),
        }
        if replay.rotation is not None:
            parts |= rotation_parts(replay.rotation, fed, lambda: replay.query[:, :, :, first:fed], first)
        if replay.entered is not None:
            parts |= entered_parts(replay.entered.since(first, fed))
        return Seen(policy, replay.layer, {**parts, **more})

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.columns is None:
            return tensor[:, :, : self.before + self.fed - self.first]
        return take(tensor, self.columns)

    def _state(self) -> torch.Tensor:
        replay = self.replay
        if replay.policy.observes:
            return replay.state
        return replay.state.new_zeros(self.alive(self.births).shape)

    def _latest(self) -> torch.Tensor:
        if self.attention is None:
            self.attention = self.alive(self.products[..., self.fed - 1 - self.row, :]).softmax(dim=-1)
        return self.attention

    def _attention(self, first: int, last: int) -> torch.Tensor:
        """Attention of tokens ``first`` … ``last`` - 1, fed with no eviction between them, to the alive keys."""
        products = self.alive(self.products[..., first - self.row : last - self.row, :])
        attention = _causal(products, last - first).softmax(dim=-1)
        self.attention = attention[..., -1, :]
        return attention

    def _query_attention(self, first: int) -> torch.Tensor:
        """Attention of tokens ``first`` … ``self.fed`` - 1 to the alive keys."""
        replay = self.replay
        if replay.policy.query_window is None:  # too many to have been multiplied in advance
            products = replay.logits(replay.query[:, :, :, : self.fed], self._rows(self.keys))
        else:
            products = self.alive(self.products[..., first - self.row : self.fed - self.row, :])
        count = self.fed - first
        if replay.protection.recent >= count:  # then the last columns are these queries' own keys
            return _causal(products, count).softmax(dim=-1)
        return recomputed_attention(products, self.alive(self.births), first)


def rotation_parts(
    rotation: Rotation, fed: int, queries: Callable[[], torch.Tensor], first: int
) -> dict[str, Callable[[], Any]]:
    """What a policy sees of a rotation when ``fed`` tokens were fed; ``queries`` are those from ``first`` on."""
    return {
        "unrotated_queries": lambda: rotation.unrotated(queries(), first),
        "frequencies": lambda: rotation.frequencies,
        "next_position": lambda: int(rotation.positions[fed]),
    }


def entered_parts(entered: Entered) -> dict[str, Callable[[], Any]]:
    """What a policy sees of what entered a layer's attention."""
    return {
        "hidden_states": lambda: entered.hidden_states,
        "position_embeddings": lambda: entered.position_embeddings,
        "module": lambda: entered.module,
        "model": lambda: entered.model,
    }


def _causal(products: torch.Tensor, count: int) -> torch.Tensor:
    """Products of the latest ``count`` queries, of which each sees the last columns up to its own."""
    if count == 1:
        return products
    later = torch.ones(count, count, dtype=torch.bool, device=products.device).triu(1)
    products = products.clone()
    products[..., -count:].masked_fill_(later, -torch.inf)
    return products


def recomputed_attention(products: torch.Tensor, births: torch.Tensor, first: int) -> torch.Tensor:
    """Attention of some queries to keys that were perhaps not there when they were fed.

    Args:
        products: (rows, kv_heads, group, queries, alive), before the softmax.
        births: (rows, kv_heads, alive): index in the text of each key.
        first: that of the first query.

    Returns:
        Shaped as ``products``; no query sees a later key, and one that sees none has zeros.
    """
    fed = torch.arange(first, first + products.shape[3], device=products.device).unsqueeze(-1)
    later = (births.unsqueeze(-2) > fed).unsqueeze(2)
    return products.masked_fill(later, -torch.inf).softmax(dim=-1).masked_fill(later, 0.0)
