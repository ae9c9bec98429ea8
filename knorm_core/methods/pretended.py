"""A cache that claims to be longer than it is: how a model treats a long text, for the price of one token.

Whatever a model reads off the length of its cache (the mask, a window, positions, a temperature) it reads as
it would far out in a text, while attention sees the few keys that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from knorm_core.cache import Pair

if TYPE_CHECKING:
    from transformers import DynamicCache


def pretended_cache(pairs: Sequence[Pair], length: int) -> DynamicCache:
    """A DynamicCache that holds ``pairs``, each (batch, kv_heads, few, head_dim), and says that it holds ``length``."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Pretended(DynamicLayer):  # type: ignore[misc]
        missing = 0

        def get_seq_length(self, *_: Any) -> int:
            return int(super().get_seq_length()) + self.missing

        def get_mask_sizes(self, query: Any) -> tuple[int, int]:  # transformers 4.57 gives the queries' positions
            return (query if isinstance(query, int) else len(query)) + self.get_seq_length(), 0

    cache = DynamicCache()
    cache.layers = [Pretended() for _ in pairs]
    for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
        layer.update(keys, values)
        layer.missing = length - keys.shape[2]
    return cache


def repeated_cache(pairs: Sequence[Pair], length: int) -> DynamicCache:
    """A DynamicCache of about ``length`` keys that holds every key equally often, and the last token's one time fewer.

    ``pairs`` holds a text's keys, the last token's included. Fed that token again, at its own position, the cache
    holds each of them equally often, so softmax attention, which knows no order and no number, answers as it did.
    """
    from transformers import DynamicCache

    tokens = pairs[0][0].shape[2]
    times = max(length // tokens, 1)
    cache = DynamicCache()
    for layer, pair in enumerate(pairs):
        backwards = [every.flip(2).repeat(1, 1, times, 1)[:, :, 1:] for every in pair]
        cache.update(*backwards, layer)
    return cache
