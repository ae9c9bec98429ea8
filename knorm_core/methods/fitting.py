"""Fitting a policy to a model: what has to be known of its queries beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from knorm_core.methods.anatomy import anatomy
from knorm_core.methods.fed import Fed
from knorm_core.methods.forward import private_copy
from knorm_core.methods.language_model import check_input_ids
from knorm_core.methods.onepass import ATTENTION, feed_plainly
from knorm_core.policies.q_filters import Directions, QFilters, passages, some_weights
from knorm_core.setting import UnsupportedModelError


def fit_q_filters(model: nn.Module, texts: Iterable[Any]) -> QFilters:
    """The policy `q_filters` for a model: the direction of the queries of every head, from some texts.

    Args:
        model: a causal language model of transformers, as for `evaluate`; left as it is.
        texts: token ids, each (n,) or (1, n), or `Text`; not those that are evaluated. The authors take 20 texts of
            2,048 tokens.

    Returns:
        A policy whose identity is the hash of its directions.

    Raises:
        TypeError, ValueError: there are no texts, or they are no token ids of this model.
        UnsupportedModelError: (a ValueError) one pass cannot serve the model.
    """
    ids = [check_input_ids(model, getattr(text, "input_ids", text)) for text in texts]
    if not ids:
        raise ValueError("texts is empty: the directions of queries need at least one text")
    seen = anatomy(model, max(map(len, ids)))
    if seen.refusal or seen.obstacle:
        raise UnsupportedModelError(
            f"fit_q_filters needs one pass, which cannot serve {type(model).__name__}: {seen.refusal or seen.obstacle}"
        )
    private = private_copy(model, ATTENTION)
    statistics: list[_Queries] = [_Queries() for _ in range(seen.layers)]
    for text in ids:
        positions = torch.arange(len(text)) + seen.first_position
        _, fed = feed_plainly(private, text[None], positions, layers=seen.layers, windows=seen.windows, count=1)
        for layer, each in zip(statistics, fed, strict=True):
            layer.add(each)
    vectors = torch.stack([layer.direction() for layer in statistics])
    return QFilters(Directions(vectors, some_weights(model), frozenset().union(*map(passages, ids))))


class _Queries:
    """Sums over the queries of one layer, in float64."""

    def __init__(self) -> None:
        self.kv_heads = 1
        self.total: torch.Tensor | float = 0.0  # (heads, head_dim)
        self.products: torch.Tensor | float = 0.0  # (heads, head_dim, head_dim)

    def add(self, fed: Fed) -> None:
        queries, self.kv_heads = fed[0][0].double(), fed[1].shape[1]
        self.total = self.total + queries.sum(dim=1)
        self.products = self.products + queries.mT @ queries

    def direction(self) -> torch.Tensor:
        """(kv_heads, head_dim): the main right singular vector of all queries, averaged over the heads of a group."""
        vectors = torch.linalg.eigh(torch.as_tensor(self.products)).eigenvectors[..., -1]
        signs = (vectors * self.total).sum(dim=-1, keepdim=True).sign()
        return (vectors * signs).unflatten(0, (self.kv_heads, -1)).mean(dim=1).cpu()
