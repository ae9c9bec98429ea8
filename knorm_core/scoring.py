"""The pieces of a forward pass that both methods share: a private model, its logits, their losses."""

from __future__ import annotations

import copy
import inspect
import weakref

import torch
from torch import nn

from knorm_core.setting import UnsupportedModelError

# Logits are turned into losses this many rows at a time: a few MiB of them stay in the processor's cache,
# which halves the time, and no second array of their size is made.
_ROWS = 16


# Models whose use of position_ids has been seen.
_positioned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.inference_mode()
def check_positions_are_used(model: nn.Module) -> None:
    """Refuse a model that accepts ``position_ids`` and ignores them, as BLOOM and MPT do (ALiBi).

    Such a model derives positions from the cache length, so after an eviction its numbers would be
    silently wrong. It is found out by feeding the same tokens at other positions, once per model.

    Raises:
        UnsupportedModelError: the logits do not change.
    """
    if model in _positioned:
        return
    probed = copy_sharing_weights(model)
    tokens = torch.arange(4).unsqueeze(0).to(model.get_input_embeddings().weight.device)  # type: ignore[operator]
    try:
        # With a cache, since without one transformers takes a jump in positions for a second text.
        near, far = (
            probed(input_ids=tokens, position_ids=tokens * stretch, use_cache=True).logits for stretch in (1, 3)
        )
    except TypeError as error:
        raise UnsupportedModelError(f"{type(model).__name__} takes no position_ids: {error}") from None
    if torch.equal(near, far):
        raise UnsupportedModelError(
            f"{type(model).__name__} ignores position_ids: it derives positions from the cache length, which an "
            f"eviction shortens, so its numbers would be silently wrong"
        )
    _positioned.add(model)


def private_copy(model: nn.Module, attn_implementation: str) -> nn.Module:
    """The same model in evaluation mode with another attention implementation; weights are shared.

    The module tree and the configuration are copied and the tensors are not, so the caller's model is
    never touched: nothing to restore after an exception, and two threads can evaluate it at once.
    """
    private = copy_sharing_weights(model)
    private.config._attn_implementation = attn_implementation  # type: ignore[union-attr]
    return private


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the module tree and configuration, in evaluation mode, on the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()


def last_logits(model: nn.Module, fed: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Logits of the last ``count`` tokens of one forward pass over ``fed``: (count, vocabulary)."""
    inputs = {
        "input_ids": fed.unsqueeze(0),
        "position_ids": positions.unsqueeze(0).to(fed.device),
        "use_cache": False,
    }
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = count
    return model(**inputs).logits[0, -count:]


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats: (rows, vocabulary), (rows,) to float64 (rows,) on the CPU.

    Computed in the logits' dtype, but at least float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = [
        rows.to(dtype).logsumexp(-1) - rows.gather(-1, wanted.unsqueeze(-1)).squeeze(-1).to(dtype)
        for rows, wanted in zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    ]
    return torch.cat(parts).double().cpu()
