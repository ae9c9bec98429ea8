"""Attention of queries to every key that they are given: what the stepwise evaluation puts into a private model.

Neither form takes a mask: of a cache in which everything is meant to be seen, transformers' masks hide some
keys where layers differ in length (4.57 takes every layer's length for that of layer 0).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from knorm_core.methods.forward import register_attention
from knorm_core.setting import UnsupportedModelError

#: As one pass has it; and by the model's own eager code.
PLAIN, OWN = "knorm_plain", "knorm_own"
#: The model's own eager code too, with queries and attention noted for a policy: `knorm_core.methods.watched`.
WATCHED = "knorm_watched"


def register() -> None:
    """Hand both forms to transformers."""
    register_attention(PLAIN, plain_attention)
    register_attention(OWN, own_attention)


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: queries (batch, heads, 1, head_dim) attend to every key they are given."""
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        out = scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=groups > 1)
    else:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        out = (torch.tanh(scores / softcap) * softcap).softmax(dim=-1) @ value
    return out.transpose(1, 2).contiguous(), None


def own_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **arguments: Any,
) -> tuple[torch.Tensor, Any]:
    """The same by the family's own eager code, which takes the softmax in float32."""
    return eager_attention(module, query, key, value, None, **arguments)


def eager_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **arguments: Any
) -> tuple[torch.Tensor, Any]:
    """The family's own eager code: outputs (batch, queries, heads, head_dim), weights (batch, heads, queries, keys)."""
    eager = eager_form(module)
    if eager is None:
        raise UnsupportedModelError(f"{type(module).__name__} has no eager attention")
    # A mask that hides nothing: some families add it without asking whether there is one.
    if mask is None:
        mask = query.new_zeros(query.shape[0], 1, query.shape[2], key.shape[2])
    return eager(module, query, key, value, mask, **arguments)


def eager_form(module: nn.Module) -> Callable[..., Any] | None:
    """The family's own attention function; transformers calls it the same in every modelling file."""
    name = "eager_attention_forward"
    homes = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    return next((home[name] for home in homes if name in home), None)
