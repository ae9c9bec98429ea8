"""What a policy sees of a layer's cache, and that it sees no more than it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

#: What a score may look at. Each sees all that the one before it sees.
READS = ("key", "cache", "queries", "attention", "hidden_states")
_READER = {
    "keys": "key",
    "positions": "key",
    "values": "cache",
    "fed": "cache",
    "kept": "cache",
    "state": "cache",
    "queries": "queries",
    "query_attention": "queries",
    "scale": "queries",
    "unrotated_queries": "queries",
    "frequencies": "queries",
    "next_position": "queries",
    "attention": "attention",
    "received": "attention",
    "hidden_states": "hidden_states",
    "position_embeddings": "hidden_states",
    "module": "hidden_states",
    "model": "hidden_states",
}
# What only some policies are shown, and the declaration that asks for it.
_ROTATION = ("unrotated_queries", "frequencies", "next_position")


class PolicyError(ValueError):
    """A policy does not do what the engine needs of it; the message names policy, layer and what was expected."""


class NaNScoresError(PolicyError):
    """Scores that cannot be ranked."""


class Declares(Protocol):
    """What a policy says that it looks at; see `knorm_core.policy.Policy`."""

    reads: str
    unrotates: bool


class Seen:
    """What a policy sees of one layer at one eviction. Tensors are not to be modified.

    ``rows`` are texts of a batch, ``group`` the query heads that share a KV head, ``alive`` the keys in the
    cache, in temporal order. Attention is what the model's own is, with its scale and soft-capping.
    """

    layer: int
    _readable: ClassVar[Mapping[str, frozenset[str]]] = {
        reads: frozenset(name for name, reader in _READER.items() if READS.index(reader) <= depth)
        for depth, reads in enumerate(READS)
    }

    def __init__(self, policy: Declares, layer: int, parts: Mapping[str, Callable[[], Any]]) -> None:
        """``parts`` makes each attribute when it is first looked at: nobody pays for what is not."""
        self.layer = layer
        self._policy = policy
        self._parts = parts

    @cached_property
    def keys(self) -> torch.Tensor:
        """(rows, kv_heads, alive, head_dim), as cached: rotated where the model rotates."""
        return self._part("keys")

    @cached_property
    def positions(self) -> torch.Tensor:
        """(rows, kv_heads, alive), int64: each key's index in the text, whatever position it was fed with."""
        return self._part("positions")

    @cached_property
    def values(self) -> torch.Tensor:
        """(rows, kv_heads, alive, head_dim)."""
        return self._part("values")

    @cached_property
    def fed(self) -> int:
        """Tokens fed so far."""
        return self._part("fed")

    @cached_property
    def kept(self) -> int:
        """Keys that this eviction keeps, protected ones included."""
        return self._part("kept")

    @cached_property
    def state(self) -> torch.Tensor:
        """(rows, kv_heads, alive): what `Policy.observe` made of the tokens fed so far; zero without it."""
        return self._part("state")

    @cached_property
    def queries(self) -> torch.Tensor:
        """(rows, kv_heads, group, w, head_dim): the latest w queries, as fed; fewer at the start of a text.

        w is `Policy.query_window`.
        """
        return self._part("queries")

    @cached_property
    def query_attention(self) -> torch.Tensor:
        """(rows, kv_heads, group, w, alive): attention of `queries` to the keys alive now, anew at each eviction.

        Each query sees no key later than itself; one that sees none has zeros.
        """
        return self._part("query_attention")

    @cached_property
    def scale(self) -> float:
        """What the model multiplies the product of a query and a key with."""
        return self._part("scale")

    @cached_property
    def unrotated_queries(self) -> torch.Tensor:
        """`queries` as they were before the model rotated them to their positions; needs `Policy.unrotates`."""
        return self._part("unrotated_queries")

    @cached_property
    def frequencies(self) -> torch.Tensor:
        """Radians per position of each pair of coordinates that rotates, float64 (pairs,); needs `Policy.unrotates`.

        Coordinate i pairs with i + pairs, and those from 2 pairs on do not rotate.
        """
        return self._part("frequencies")

    @cached_property
    def next_position(self) -> int:
        """Position that the next token is fed with; needs `Policy.unrotates`."""
        return self._part("next_position")

    @cached_property
    def attention(self) -> torch.Tensor:
        """(rows, kv_heads, group, alive): attention of the latest query, which saw exactly these keys."""
        return self._part("attention")

    @cached_property
    def received(self) -> torch.Tensor:
        """(rows, kv_heads, group, fed since the last call, alive): in `Policy.observe`, attention of each token fed.

        Zero where a key is later than the query.
        """
        return self._part("received")

    @cached_property
    def hidden_states(self) -> torch.Tensor:
        """(rows, w, hidden): what entered the layer's attention for the tokens of `queries`."""
        return self._part("hidden_states")

    @cached_property
    def position_embeddings(self) -> tuple[torch.Tensor, ...] | None:
        """Cosines and sines that the model handed to the layer for these tokens, each (rows, w, …); None without."""
        return self._part("position_embeddings")

    @cached_property
    def module(self) -> nn.Module:
        """The layer's attention, of a private copy of the model."""
        return self._part("module")

    @cached_property
    def model(self) -> nn.Module:
        """That private copy."""
        return self._part("model")

    def _part(self, name: str) -> Any:
        policy = self._policy
        if name not in self._readable[policy.reads]:
            raise PolicyError(
                f"policy {policy!r} looks at seen.{name} in layer {self.layer} and declares reads={policy.reads!r}: "
                f"declare reads={_READER[name]!r}"
            )
        if name in _ROTATION and not policy.unrotates:
            raise PolicyError(
                f"policy {policy!r} looks at seen.{name} in layer {self.layer} and does not say so: declare "
                f"unrotates=True"
            )
        if name not in self._parts:
            raise PolicyError(
                f"policy {policy!r} looks at seen.{name} in layer {self.layer}, which only "
                f"{'observe' if name == 'received' else 'score'} sees"
            )
        return self._parts[name]()
