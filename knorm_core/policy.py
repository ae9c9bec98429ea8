"""What an eviction policy is: a score for every key that may go. The highest stay.

A policy says what its score looks at (`Policy.reads`), and sees nothing else: above all nothing that is fed
later. That is what lets one pass play all evictions of a layer forward (`knorm_core.methods.replay`).

    class TOVA(Policy):
        reads = "attention"

        def score(self, seen):
            return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from knorm_core.seen import READS as READS
from knorm_core.seen import NaNScoresError as NaNScoresError
from knorm_core.seen import PolicyError as PolicyError
from knorm_core.seen import Seen as Seen


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
            - ``"hidden_states"``: also what entered the layer's attention, and its module.
        query_window: with ``"queries"`` and more, how many of the latest queries ``seen.queries`` holds; None for
            all since the start of the text.
        unrotates: whether ``score`` looks at ``seen.unrotated_queries``, ``seen.frequencies`` or
            ``seen.next_position``. A model whose rotation is not known is then refused.
        sinks, recent: first and latest tokens that the policy itself protects; where `evaluate` is told to protect
            more, it protects those.
    """

    reads: str = "key"
    query_window: int | None = 1
    unrotates: bool = False
    sinks: int = 0
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

    def kept_by_layer(self, kept: int, layers: int, most: int) -> Sequence[int]:
        """How many keys each layer keeps, for a policy that does not keep equally many in all of them.

        Asked before anything runs, with nothing but numbers: kept counts are known in advance.

        Args:
            kept: keys that each layer would keep if all kept equally many; a budget with ``when="fixed_budget"``.
            layers: how many layers are compressed.
            most: what no layer may exceed.

        Returns:
            One count per compressed layer, each in 1 … ``most``, ``layers * kept`` in all.
        """
        raise NotImplementedError

    def check(self, model: nn.Module, input_ids: torch.Tensor) -> None:
        """Refuse what the policy cannot be evaluated on; called once per text before anything runs.

        Args:
            model: the model; not to be changed, nor run.
            input_ids: the text, int64 (n,).

        Raises:
            PolicyError: the model or the text does not go with this policy.
        """

    @property
    def observes(self) -> bool:
        """Whether the policy has a memory."""
        return type(self).observe is not Policy.observe

    @property
    def divides(self) -> bool:
        """Whether the policy divides what is kept among layers."""
        return type(self).kept_by_layer is not Policy.kept_by_layer


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
        raise NaNScoresError(f"policy {policy!r} returned NaN in layer {layer}; expected scores that can be ranked")


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
