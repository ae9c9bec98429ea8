"""A few tokens through a model's own forward: the reference for everything else."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from knorm_core.cache import Pair
from knorm_core.methods.forward import copy_sharing_weights
from knorm_core.methods.language_model import text_config, token_table
from knorm_core.setting import UnsupportedModelError

_TOKENS = 8


@dataclass(frozen=True)
class OwnForward:
    """What a model's own code makes of a few tokens.

    Attributes:
        model: a private copy, with the attention that the model has.
        ids: the tokens (1, 8); other: the same but for the later half.
        logits: (8, vocabulary).
        pairs: keys and values that its own cache holds of them, per layer, the oldest perhaps gone from a window.
        cached_windows: windows that its own cache is made for.
        name: of the model's class.
    """

    model: nn.Module
    ids: torch.Tensor
    other: torch.Tensor
    logits: torch.Tensor
    pairs: tuple[Pair, ...]
    cached_windows: frozenset[int]
    name: str

    @property
    def named_windows(self) -> frozenset[int]:
        """All numbers of the model that could be the length of a window: hints where to look, no facts."""
        return self.cached_windows | {
            value
            for name, value in vars(text_config(self.model)).items()
            if any(part in name for part in ("window", "chunk", "local"))
            and isinstance(value, int)
            and not isinstance(value, bool)
            and value > 0
        }

    @property
    def tolerance(self) -> float:
        """How far two ways of computing the same logits may part: rounding, of which half precision has much.

        Models round to float32 in places (RMSNorm, rotary tables, a softmax) even where they are float64.
        """
        return {torch.float64: 1e-5, torch.float32: 3e-4}.get(self.logits.dtype, 0.1)

    def must_be_sound(self) -> None:
        """Change later tokens, and feed them all without a cache: logits have to stay as they were.

        In this order, since transformers 4.57 makes a causal mask for any model that keeps no cache: one that attends
        in both directions differs there too, and the first reason is the cause.

        Raises:
            UnsupportedModelError: they changed.
        """
        half = self.ids.shape[1] // 2
        logits = self.model(input_ids=self.other, use_cache=True).logits[0, :half]
        if (apart := distance(logits, self.logits[:half])) > self.tolerance:
            raise UnsupportedModelError(
                f"{self.name} is not causal: where tokens that are fed later change, earlier logits part by {apart:.1%}"
            )
        logits = self.model(input_ids=self.ids, use_cache=False).logits[0]
        if (apart := distance(logits, self.logits)) > self.tolerance:
            raise UnsupportedModelError(
                f"{self.name} makes other logits where it keeps no cache: they part by {apart:.1%}, and nothing says "
                f"which are right"
            )


def own_forward(model: nn.Module) -> OwnForward:
    """Feed a few tokens through the model's own code.

    Raises:
        UnsupportedModelError: it fails, or leaves no growing keys of every token in every layer.
    """
    name = type(model).__name__
    own = copy_sharing_weights(model)
    ids, other = _tokens(model)
    parameters = inspect.signature(own.forward).parameters
    if "use_cache" not in parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise UnsupportedModelError(f"{name} keeps no cache of keys: its forward takes no use_cache")
    try:
        out = own(input_ids=ids, use_cache=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a family's own code makes of plain tokens
        raise UnsupportedModelError(
            f"{name} {_without_cache(own, ids)}: its own forward fails with {type(error).__name__}: {error}"
        ) from error
    logits = getattr(out, "logits", None)
    if logits is None:
        raise UnsupportedModelError(
            f"{name} makes no logits: give a causal language model, such as AutoModelForCausalLM loads"
        )
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise UnsupportedModelError(
            f"{name} makes logits {tuple(logits.shape)} of {ids.shape[1]} tokens: not one per token"
        )
    cache = getattr(out, "past_key_values", None) or getattr(out, "cache", None)
    cache = getattr(cache, "self_attention_cache", cache)
    pairs, windows = _read(name, cache, ids.shape[1])
    return OwnForward(own, ids, other, logits[0], pairs, windows, name)


def _without_cache(own: nn.Module, ids: torch.Tensor) -> str:
    """What a model cannot do that fails when it is fed tokens and asked for its cache."""
    try:
        own(input_ids=ids, use_cache=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return "cannot be fed token ids alone"
    return "reads a text but cannot keep a cache of it"


def _read(name: str, cache: Any, tokens: int) -> tuple[tuple[Pair, ...], frozenset[int]]:
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not isinstance(cache, Cache) or not cache.layers:
        kind = "none" if cache is None else f"a {type(cache).__name__}"
        raise UnsupportedModelError(
            f"{name} keeps no cache of keys that grows token by token (its forward hands on {kind})"
        )
    others = [
        index
        for index, layer in enumerate(cache.layers)
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)
    ]
    if others:
        kinds = sorted({type(cache.layers[index]).__name__ for index in others})
        raise UnsupportedModelError(
            f"{name} keeps something else than growing keys in layers {others} ({', '.join(kinds)}): only layers that "
            f"attend to the whole text or to a sliding window can be evaluated exactly"
        )
    empty = [index for index, layer in enumerate(cache.layers) if layer.keys is None or layer.keys.numel() == 0]
    if empty:
        raise UnsupportedModelError(
            f"{name} keeps no keys in layers {empty}, which read the keys of other layers or none: an eviction there "
            f"has no meaning yet"
        )
    if (most := max(layer.keys.shape[2] for layer in cache.layers)) > tokens:
        raise UnsupportedModelError(
            f"{name} caches {most} keys of {tokens} tokens, more than one of each (prefix tuning puts keys of its own "
            f"before a text's), and to evict those has no meaning yet"
        )
    odd = [
        i
        for i, layer in enumerate(cache.layers)
        if layer.keys.ndim != 4 or layer.keys.shape[:3] != layer.values.shape[:3]
    ]
    if odd:
        raise UnsupportedModelError(f"{name} does not cache keys and values head by head in layers {odd}")
    windows = frozenset(int(layer.sliding_window) for layer in cache.layers if type(layer) is DynamicSlidingWindowLayer)
    return tuple((layer.keys, layer.values) for layer in cache.layers), windows


def _tokens(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, each (1, 8), whose first halves are the same; without padding, which some models pass over."""
    table = token_table(model)
    padding = getattr(text_config(model), "pad_token_id", None)
    ids = torch.arange(3, 3 + 8 * _TOKENS, dtype=torch.int64) % table.num_embeddings
    ids = ids[ids != (-1 if padding is None else padding)][: _TOKENS + _TOKENS // 2].to(table.weight.device)
    half = _TOKENS // 2
    return ids[None, :_TOKENS], torch.cat([ids[:half], ids[_TOKENS:]])[None]


def distance(logits: torch.Tensor, measure: torch.Tensor) -> float:
    """The largest relative difference of any token's logits (tokens, vocabulary) from those of the measure.

    Logits are the same up to a constant. What is not finite in the measure cannot be compared.
    """
    if logits.shape != measure.shape:
        return float("inf")
    logits, measure = (each.double() - each.double().mean(-1, keepdim=True) for each in (logits, measure))
    apart = (logits - measure).norm(dim=-1) / measure.norm(dim=-1).clamp_min(1e-30)
    comparable = apart[measure.isfinite().all(-1)].nan_to_num(torch.inf)
    return float(comparable.max()) if comparable.numel() else 0.0
