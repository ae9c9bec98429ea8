"""A language model's configuration, and the token ids that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from knorm_core.counts import SHORTEST_TEXT
from knorm_core.setting import UnsupportedModelError


def check_input_ids(model: nn.Module, input_ids: Any) -> torch.Tensor:
    """One text's token ids as (n,) int64 on the model's device, or an error that says what is wrong."""
    _check_model(model)
    ids = as_ids(input_ids)
    if ids.is_meta or ids.layout != torch.strided:
        where = "the device meta, where tensors have no numbers" if ids.is_meta else f"the layout {ids.layout}"
        raise ValueError(f"input_ids is on {where}: give a plain tensor of token ids")
    if ids.is_floating_point() or ids.is_complex() or ids.is_quantized or ids.dtype == torch.bool:
        if ids.numel() == 0:
            raise ValueError(f"input_ids is empty: a text needs at least {SHORTEST_TEXT} tokens")
        raise TypeError(f"input_ids has dtype {ids.dtype}; give integer token ids")
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}; one text at a time, shaped (n,) or (1, n)")
    if len(ids) < SHORTEST_TEXT:
        raise ValueError(f"input_ids has {len(ids)} tokens; a text needs at least {SHORTEST_TEXT}")
    ids = ids.long()  # of unsigned ones torch finds no smallest
    vocabulary = token_table(model).num_embeddings
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise ValueError(f"input_ids holds {wrong}, but the model's vocabulary is 0 … {vocabulary - 1}")
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit and 0 < limit < len(ids):
        raise ValueError(
            f"input_ids has {len(ids)} tokens, but the model has {limit} positions; cut the text (max_eval_tokens)"
        )
    return ids.to(model.device)  # type: ignore[arg-type]


def as_ids(input_ids: Any) -> torch.Tensor:
    """Token ids as a tensor of whatever shape and dtype they have.

    Raises:
        TypeError: they are text, or what a tokenizer made of one with more than the ids in it, or no numbers.
        ValueError: they are texts of several lengths.
    """
    kind = type(input_ids).__name__
    if isinstance(input_ids, Mapping):
        raise TypeError(f"input_ids is a {kind}: give its input_ids alone, as in tokenizer(text).input_ids")
    first = input_ids[0] if isinstance(input_ids, Sequence) and len(input_ids) else input_ids
    if isinstance(first, str | bytes):
        raise TypeError(f"input_ids is text (a {kind}): tokenise it first, as in tokenizer(text).input_ids")
    try:
        return torch.as_tensor(input_ids)
    except (TypeError, RuntimeError):
        raise TypeError(f"input_ids is a {kind} that holds no integers: give token ids") from None


def check_late_positions(model: nn.Module, ids: torch.Tensor, first_position: int, new_tokens: int = 0) -> None:
    """Refuse a text, and what is generated after it, that is too long for positions that start after the padding's.

    Such a model (RoBERTa and its like) has so many positions fewer, and gives padding no position of its own, so that
    every later token's would be another.
    """
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if first_position and limit and len(ids) + new_tokens > limit - first_position > 0:
        more = f", with new_tokens={new_tokens} {len(ids) + new_tokens}" if new_tokens else ""
        raise ValueError(
            f"input_ids has {len(ids)} tokens{more}, but the model has {limit} positions, the first {first_position} "
            f"of them not for tokens; cut the text (max_eval_tokens)"
        )
    padding = text_config(model).pad_token_id if first_position else None
    if padding is not None and bool((ids == padding).any()):
        raise ValueError(
            f"input_ids holds the padding token {padding}, to which {type(model).__name__} gives no position of its "
            f"own: leave it out of the text"
        )


def token_table(model: nn.Module) -> nn.Embedding:
    """The embedding of token ids.

    Raises:
        UnsupportedModelError: there is not one such table.
    """
    table = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(table, "num_embeddings"):
        return table
    raise UnsupportedModelError(
        f"{type(model).__name__} has a {type(table).__name__} for its input embeddings, not one table of tokens: a "
        f"text of one token at a place cannot be fed to it"
    )


def _check_model(model: nn.Module) -> None:
    if hasattr(model, "config") and hasattr(model, "get_input_embeddings"):
        return
    within = ": give the model within it (.module)" if isinstance(getattr(model, "module", None), nn.Module) else ""
    raise TypeError(f"model is a {type(model).__name__}, not a causal language model of transformers{within}")


def text_config(model: nn.Module) -> Any:
    """The configuration of the language part of a model."""
    return model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
