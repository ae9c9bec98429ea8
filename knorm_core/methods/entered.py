"""What entered a layer's attention: the hidden states from which it makes queries, keys and values.

The attention function that transformers calls sees them no more, so hooks note them, on a private copy of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from knorm_core.setting import UnsupportedModelError

Embeddings = tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class Entered:
    """What entered one attention module for some tokens.

    Attributes:
        module: the attention of the layer; model: the private copy that it belongs to.
        hidden_states: (rows, tokens, hidden).
        position_embeddings: cosines and sines, each (1 or rows, tokens, …); None where the model hands on none.
    """

    module: nn.Module
    model: nn.Module
    hidden_states: torch.Tensor
    position_embeddings: Embeddings = None

    def since(self, first: int, last: int) -> Entered:
        """The same of tokens ``first`` … ``last`` - 1."""
        embeddings = self.position_embeddings
        if embeddings is not None:
            embeddings = tuple(each[:, first:last] for each in embeddings)
        return Entered(self.module, self.model, self.hidden_states[:, first:last], embeddings)


_entered: ContextVar[dict[nn.Module, Entered] | None] = ContextVar("knorm_entered", default=None)


@contextlib.contextmanager
def noting(model: nn.Module | None) -> Iterator[None]:
    """Note what enters each attention module of a private copy in this thread; None notes nothing."""
    if model is None:
        yield
        return

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        noted = _entered.get()
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if noted is not None and isinstance(hidden, torch.Tensor):
            noted[module] = Entered(module, model, hidden, kwargs.get("position_embeddings"))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "layer_idx")
    ]
    token = _entered.set({})
    try:
        yield
    finally:
        _entered.reset(token)
        for hook in hooks:
            hook.remove()


def entered(module: nn.Module) -> Entered | None:
    """What last entered an attention module, while it is noted."""
    noted = _entered.get()
    if noted is None:
        return None
    if module not in noted:
        raise UnsupportedModelError(
            f"{type(module).__name__} takes no hidden_states that a policy could look at: give one that reads less"
        )
    return noted[module]


def joined(parts: Sequence[Entered]) -> Entered:
    """What entered one module token by token, together."""
    latest = parts[-1]
    embeddings: Embeddings = None
    if latest.position_embeddings is not None:
        embeddings = tuple(
            torch.cat(each, dim=1) for each in zip(*(part.position_embeddings or () for part in parts), strict=True)
        )
    return Entered(latest.module, latest.model, torch.cat([part.hidden_states for part in parts], dim=1), embeddings)
