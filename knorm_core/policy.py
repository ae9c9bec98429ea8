"""What an eviction policy is: a score for every key that may go. The highest stay.

A policy says what its score looks at (`Policy.reads`), and sees nothing else: above all nothing that is fed
later. That is what lets one pass play all evictions of a layer forward (`knorm_core.methods.replay`).

    class TOVA(Policy):
        reads = "attention"

        def score(self, seen):
            return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch

#: What a score may look at. Each sees all that the one before it sees.
READS = ("key", "cache", "queries", "attention")
_READER = {
    "keys": "key",
    "positions": "key",
    "values": "cache",
    "fed": "cache",
    "state": "cache",
    "queries": "queries",
    "query_attention": "queries",
    "attention": "attention",
    "received": "attention",
}


class PolicyError(ValueError):
    """A policy does not do what the engine needs of it; the message names policy, layer and what was expected."""


class Policy:
    """Base class of all eviction policies: declare ``reads`` and write ``score``.

    A subclass with parameters is best a frozen dataclass: its fields are then part of its identity.

    Attributes:
        reads: what ``score`` looks at.

            - ``"key"``: the key itself, its position, layer and head. A key's score is fixed when the key is
              born, and ``score`` is asked for all keys of the text at once.
            - ``"cache"``: all keys and values that are alive at the eviction.
            - ``"queries"``: also the layer's latest queries.
            - ``"attention"``: also the attention that the alive keys received.
        query_window: with ``"queries"`` and ``"attention"``, how many of the latest queries ``seen.queries``
            holds; None for all since the start of the text.
        recent: latest tokens that the policy itself protects, beside those that `evaluate` is told to.
    """

    reads: str = "key"
    query_window: int | None = 1
    recent: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def score(self, seen: Seen) -> torch.Tensor:
        """Score of every key in ``seen``, broadcastable to (rows, kv_heads, alive); the highest stay.

        Any real dtype, on the keys' device, infinite where it must be, never NaN. Of equal scores the
        earlier position stays. ``seen`` is not to be modified.
        """
        raise NotImplementedError

    def observe(self, state: torch.Tensor, seen: Seen) -> torch.Tensor:
        """Memory of a policy: what it knows of each alive key after some tokens were fed.

        Called for every token fed until the last eviction, and perhaps for many tokens at once, but never
        for tokens on both sides of an eviction. What it returns is ``state`` next time and ``seen.state``
        in `score`; evicted keys are taken out of it, and keys just born come in as zero.

        Args:
            state: (rows, kv_heads, alive), at least float32.
            seen: with ``seen.received`` for the tokens fed since the last call.

        Returns:
            Shaped as ``state``.
        """
        raise NotImplementedError

    @property
    def observes(self) -> bool:
        """Whether the policy has a memory."""
        return type(self).observe is not Policy.observe


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

    def __init__(self, policy: Policy, layer: int, parts: Mapping[str, Callable[[], Any]]) -> None:
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
    def attention(self) -> torch.Tensor:
        """(rows, kv_heads, group, alive): attention of the latest query, which saw exactly these keys."""
        return self._part("attention")

    @cached_property
    def received(self) -> torch.Tensor:
        """(rows, kv_heads, group, fed since the last call, alive): in `Policy.observe`, attention of each token fed.

        Zero where a key is later than the query.
        """
        return self._part("received")

    def _part(self, name: str) -> Any:
        policy = self._policy
        if name not in self._readable[policy.reads]:
            raise PolicyError(
                f"policy {policy!r} looks at seen.{name} in layer {self.layer} and declares reads={policy.reads!r}: "
                f"declare reads={_READER[name]!r}"
            )
        if name not in self._parts:
            raise PolicyError(
                f"policy {policy!r} looks at seen.{name} in layer {self.layer}, which only "
                f"{'observe' if name == 'received' else 'score'} sees"
            )
        return self._parts[name]()


def checked_scores(policy: Policy, seen: Seen, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The policy's scores, of ``shape`` (rows, kv_heads, alive) on ``device``.

    NaN is not looked for: see `check_no_nan`.

    Raises:
        PolicyError: what ``score`` returns cannot be scores of these keys.
    """
    scores = policy.score(seen)
    if not isinstance(scores, torch.Tensor):
        raise PolicyError(
            f"policy {policy!r} returned a {type(scores).__name__} in layer {seen.layer}; expected a tensor that "
            f"broadcasts to (rows, kv_heads, alive) = {shape}"
        )
    _check_tensor(policy, "scores", scores, seen.layer, device)
    if scores.shape != shape:
        try:
            scores = scores.expand(shape)
        except RuntimeError:
            raise PolicyError(
                f"policy {policy!r} returned scores of shape {tuple(scores.shape)} in layer {seen.layer}; expected "
                f"what broadcasts to (rows, kv_heads, alive) = {shape}"
            ) from None
    return scores


def checked_state(policy: Policy, state: torch.Tensor, seen: Seen) -> torch.Tensor:
    """What the policy's memory becomes.

    Raises:
        PolicyError: it is not a tensor like the one that ``observe`` was given.
    """
    observed = policy.observe(state, seen)
    if not isinstance(observed, torch.Tensor) or observed.shape != state.shape:
        got = f"shape {tuple(observed.shape)}" if isinstance(observed, torch.Tensor) else type(observed).__name__
        raise PolicyError(
            f"policy {policy!r} returned a state of {got} from observe in layer {seen.layer}; expected the shape of "
            f"the state that it was given, {tuple(state.shape)}"
        )
    _check_tensor(policy, "a state", observed, seen.layer, state.device)
    return observed


def check_no_nan(policy: Policy, scores: torch.Tensor, layer: int) -> None:
    """Raise a PolicyError where a score is NaN: there is no order among such keys."""
    if scores.is_floating_point() and bool(scores.isnan().any()):
        raise PolicyError(f"policy {policy!r} returned NaN in layer {layer}; expected scores that can be ranked")


def _check_tensor(policy: Policy, what: str, tensor: torch.Tensor, layer: int, device: torch.device) -> None:
    if tensor.device != device:
        raise PolicyError(
            f"policy {policy!r} returned {what} on {tensor.device} in layer {layer}; expected the keys' device, "
            f"{device}"
        )
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise PolicyError(
            f"policy {policy!r} returned {what} of {tensor.dtype} in layer {layer}; expected real numbers"
        )


def key_scores(policy: Policy, keys: torch.Tensor, positions: torch.Tensor, *, layer: int = 0) -> torch.Tensor:
    """Score of every key by a policy that reads "key"; an eviction keeps the highest, of equal ones the earlier.

    Args:
        keys: (rows, kv_heads, length, head_dim), any floating dtype.
        positions: int64, broadcastable to (rows, kv_heads, length).
        layer: index of the layer.

    Returns:
        (rows, kv_heads, length), on the keys' device.

    Raises:
        ValueError: a key's norm cannot be ranked.
        PolicyError: what the policy returns cannot be scores of these keys.
    """
    shape = tuple(keys.shape[:3])
    positions = positions.to(keys.device).expand(shape)
    seen = Seen(policy, layer, {"keys": lambda: keys, "positions": lambda: positions})
    scores = checked_scores(policy, seen, shape, keys.device)
    check_no_nan(policy, scores, layer)
    return scores
