"""What is read off a model: its configuration, the layers that slide, and the token ids that it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from knorm_core.counts import SHORTEST_TEXT
from knorm_core.setting import UnsupportedModelError


def check_input_ids(model: nn.Module, input_ids: Any) -> torch.Tensor:
    """One text's token ids as (n,) int64 on the model's device, or an error that says what is wrong."""
    ids = torch.as_tensor(input_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        if ids.numel() == 0:
            raise ValueError(f"input_ids is empty: a text needs at least {SHORTEST_TEXT} tokens")
        raise TypeError(f"input_ids has dtype {ids.dtype}; give integer token ids")
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}; one text at a time, shaped (n,) or (1, n)")
    if len(ids) < SHORTEST_TEXT:
        raise ValueError(f"input_ids has {len(ids)} tokens; a text needs at least {SHORTEST_TEXT}")
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise ValueError(f"input_ids holds {wrong}, but the model's vocabulary is 0 … {vocabulary - 1}")
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit and len(ids) > limit:
        raise ValueError(
            f"input_ids has {len(ids)} tokens, but the model has {limit} positions; cut the text (max_eval_tokens)"
        )
    return ids.long().to(model.device)  # type: ignore[arg-type]


def text_config(model: nn.Module) -> Any:
    """The configuration of the language part of a model."""
    return model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]


def sliding_windows(config: Any) -> dict[int, int]:
    """Window length by layer index, for the layers that transformers gives a sliding window.

    Raises:
        UnsupportedModelError: a layer neither attends to the whole text nor slides, or has no keys of its own.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # families in which all layers are alike, such as Mistral
        chunked = getattr(config, "attention_chunk_size", None)
        kind = "sliding_attention" if window else "chunked_attention" if chunked else "full_attention"
        kinds = [kind] * config.num_hidden_layers
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of kind {', '.join(others)}: only layers that attend to the whole text "
            f"or to a sliding window can be evaluated exactly"
        )
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise UnsupportedModelError(
            f"{config.model_type} has layers that read the keys of other layers: an eviction there has no meaning yet"
        )
    return {layer: int(window) for layer, kind in enumerate(kinds) if kind == "sliding_attention" and window}
