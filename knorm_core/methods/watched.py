"""The model's own eager attention on a real cache, which records what a policy may see of it.

The stepwise evaluation, the oracle of one pass, gets queries and attention from here: from the code of the model's
own family, which nobody here wrote.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softmax
from torch.overrides import TorchFunctionMode

from knorm_core.methods.cached_attention import WATCHED, eager_attention
from knorm_core.methods.entered import Entered, entered, joined
from knorm_core.methods.forward import register_attention


class Watched:
    """Queries of one layer and attention of its latest, one text at a time."""

    def __init__(self, module: nn.Module, arguments: dict[str, Any]) -> None:
        self._module, self._arguments = module, arguments
        self._queries: list[torch.Tensor] = []  # each (1, heads, 1, head_dim)
        self._kv_heads = 1
        self._weights = torch.empty(0)
        self._entries: list[Entered] = []

    def note(self, query: torch.Tensor, kv_heads: int, weights: torch.Tensor, entry: Entered | None) -> None:
        """One token fed: its query (1, heads, 1, head_dim) and what it gave to every key (1, heads, 1, keys)."""
        self._queries.append(query)
        self._kv_heads, self._weights = kv_heads, weights
        if entry is not None:
            self._entries.append(entry)

    @property
    def scale(self) -> float:
        """What the model multiplies the product of a query and a key with."""
        scale = self._arguments.get("scaling")
        return float(self._queries[-1].shape[-1] ** -0.5 if scale is None else scale)

    def entered(self, window: int | None) -> Entered:
        """What entered the layer for the latest ``window`` tokens, or all."""
        return joined(self._entries[-(window or 0) :])

    @property
    def latest(self) -> torch.Tensor:
        """(1, kv_heads, group, alive): attention of the latest query."""
        return self._weights.view(1, self._kv_heads, -1, self._weights.shape[-1])

    def queries(self, window: int | None) -> torch.Tensor:
        """(1, kv_heads, group, w, head_dim): the latest ``window``, or all."""
        queries = self._latest_queries(window)
        return queries.view(1, self._kv_heads, -1, *queries.shape[2:])

    def query_attention(
        self, window: int | None, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """(1, kv_heads, group, w, alive): what the latest queries would give to the keys alive now."""
        queries = self._latest_queries(window)
        fed = torch.arange(len(self._queries) - queries.shape[2], len(self._queries), device=keys.device)
        later = positions.unsqueeze(-2) > fed.unsqueeze(-1)  # (1, kv_heads, w, alive)
        later = later.repeat_interleave(queries.shape[1] // self._kv_heads, dim=1)
        mask = torch.zeros(later.shape, dtype=queries.dtype, device=keys.device)
        mask = mask.masked_fill(later, torch.finfo(queries.dtype).min)
        with _Float64Softmax():
            _, weights = eager_attention(self._module, queries, keys, values, mask, **self._arguments)
        weights = weights.masked_fill(later, 0.0)  # a query that sees none has zeros
        return weights.view(1, self._kv_heads, -1, *weights.shape[2:])

    def _latest_queries(self, window: int | None) -> torch.Tensor:
        return torch.cat(self._queries[-(window or 0) :], dim=2)


_watched: ContextVar[dict[int, Watched]] = ContextVar("knorm_watched")


@contextlib.contextmanager
def watching(watched: dict[int, Watched] | None) -> Iterator[None]:
    """Record what the attention calls of this thread see, per layer; with None nothing is recorded."""
    if watched is None:
        yield
        return
    register_attention(WATCHED, _watched_attention)
    token = _watched.set(watched)
    try:
        yield
    finally:
        _watched.reset(token)


def _watched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' attention interface: one query (1, heads, 1, head_dim) attends to every key it is given."""
    with _Float64Softmax():
        out, weights = eager_attention(module, query, key, value, None, **arguments)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    watched = _watched.get().setdefault(layer, Watched(module, arguments))
    watched.note(query, key.shape[1], weights, entered(module))
    return out, weights


class _Float64Softmax(TorchFunctionMode):
    """Take a softmax of float64 in float64, where a family's code says float32.

    One pass does so too: float32 would let the last bit of a weight decide who is evicted.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is softmax and args[0].dtype == torch.float64:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)
