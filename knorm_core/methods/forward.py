"""The pieces of a forward pass that both methods share: a private model, its logits, their losses."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

# Logits are turned into losses this many rows at a time: a few MiB of them stay in the processor's cache,
# and no second array of their size is made.
_ROWS = 16


def private_copy(model: nn.Module, attn_implementation: str) -> nn.Module:
    """The same model in evaluation mode with another attention implementation; weights are shared.

    The module tree and the configuration are copied and the tensors are not, so the caller's model is
    never touched: nothing to restore after an exception, and two threads can evaluate it at once.
    """
    private = copy_sharing_weights(model)
    private.config._attn_implementation = attn_implementation  # type: ignore[union-attr]
    return private


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the module tree, configuration and buffers, in evaluation mode, on the same parameters.

    Buffers are not shared: some rotary tables are rewritten during a forward pass (longrope).
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()


def register_attention(name: str, forward: Callable[..., Any]) -> None:
    """Register with transformers an attention function that decides itself which keys a query sees, without a mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *args, **kwargs: None)


def last_logits(model: nn.Module, fed: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Logits of the last ``count`` tokens of one forward pass: (batch, length) to (batch, count, vocabulary)."""
    inputs = {"input_ids": fed, "use_cache": False, **position_argument(model, positions.to(fed.device))}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = count
    return model(**inputs).logits[:, -count:]


def feed_on_cache(model: nn.Module, ids: torch.Tensor, position: int, cache: Any) -> torch.Tensor:
    """Feed one token, ids (1, 1), at a position, on a cache, which grows by it; its logits (1, vocabulary)."""
    positions = torch.tensor([position], device=ids.device)
    given = {**position_argument(model, positions), **cache_argument(model, cache)}
    return model(input_ids=ids, use_cache=True, **given).logits[0]


def position_argument(module: nn.Module, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Positions (length,) or (batch, length) as a forward call of ``module`` takes them, if it does."""
    parameters = inspect.signature(module.forward).parameters
    takes = "position_ids" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {"position_ids": torch.atleast_2d(positions)} if takes else {}


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The cache as a forward call of ``module`` takes it: transformers 5.24 renamed ``past_key_values``."""
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    return {name: cache}


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats: (rows, vocabulary), (rows,) to float64 (rows,) on the CPU.

    Computed in the logits' dtype, but at least float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = [
        cross_entropy(rows.to(dtype), wanted, reduction="none")
        for rows, wanted in zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    ]
    return torch.cat(parts).double().cpu()
