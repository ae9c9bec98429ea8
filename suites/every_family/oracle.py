"""What compression by key norm costs, by the model's own code alone: the judge of knorm, which shares nothing with it.

The unmodified model is fed one token at a time on a real `DynamicCache`. Before each token of phase 2 every
growing layer that has reached P keys keeps the ``ceil(r L)`` of smallest norm. Nothing here knows a family.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

POSITIONS = ("absolute", "cache")


class NoAnswerError(Exception):
    """The model's own code gives no number that compression by key norm could be said to have."""


def prune_after(length: int) -> int:
    """P of a text of so many tokens, where P is to be as long as possible."""
    return max(max(length - 50, length // 2), 32)


class Oracle:
    """Losses of one text, (scored,) float64, under every setting; raises `NoAnswerError` where there are none.

    With ``table_changes``, the model's rotary table is another one beyond some position, so that a text fed token by
    token is not what it is when fed whole: then the former is the measure, as it is of generation.
    """

    def __init__(self, model: Any, ids: torch.Tensor, *, table_changes: bool = False) -> None:
        self.model, self.ids, self.table_changes = model, ids, table_changes
        parameters = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        if self.cache_name not in parameters:  # XLNet, OpenAI GPT
            raise NoAnswerError("takes no cache of keys")
        handed_on = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self.takes_positions = handed_on or "position_ids" in parameters
        self.start = prune_after(len(ids))
        self._answers: dict[tuple[float, str], torch.Tensor] = {}
        with torch.inference_mode():
            self.plain = self._losses(model(input_ids=ids[None, :-1], use_cache=False).logits[0], ids[1:])
            self.first_position = self._first_position()
            self.cache = self._cache()
        if any(
            type(layer) is not DynamicLayer and "Sliding" not in type(layer).__name__ for layer in self.cache.layers
        ):
            raise NoAnswerError("has layers without growing keys")
        self.full = [layer for layer, kind in enumerate(self.cache.layers) if type(kind) is DynamicLayer]
        if not self.full:
            raise NoAnswerError("has no layer that attends to the whole text")

    def losses(self, keep_ratio: float, positions: str) -> torch.Tensor:
        """Losses of tokens P+1 … n-1."""
        asked = (keep_ratio, positions)
        if asked not in self._answers:
            self._answers[asked] = self._losses_of(*asked)
        return self._answers[asked]

    @torch.inference_mode()
    def _losses_of(self, keep_ratio: float, positions: str) -> torch.Tensor:
        cache, losses = copy.deepcopy(self.cache), []
        for step in range(self.start, len(self.ids) - 1):
            for layer in self.full:
                self._compress(cache.layers[layer], keep_ratio)
            place = step if positions == "absolute" else cache.get_seq_length()
            if positions == "absolute" and step in (self.start, len(self.ids) - 2):
                self._check_places(cache, step)
            logits = self._feed(cache, step, place)
            losses.append(self._losses(logits, self.ids[step + 1 : step + 2]))
        return torch.cat(losses)

    def _compress(self, layer: Any, keep_ratio: float) -> None:
        length = layer.keys.shape[2]
        kept = -(-length * Fraction(str(keep_ratio)) // 1)
        if length < self.start or kept == length:
            return
        exact = layer.keys.dtype == torch.float64
        mantissa, exponent = torch.frexp(torch.linalg.vector_norm(layer.keys if exact else layer.keys.float(), dim=-1))
        norms = torch.ldexp((mantissa * 2**16).round(), exponent)  # 16 significant bits
        order = norms.sort(dim=-1, stable=True).indices[..., : int(kept)].sort(dim=-1).values
        for name in ("keys", "values"):
            every = getattr(layer, name)
            setattr(layer, name, every.take_along_dim(order[..., None], dim=2))

    def _feed(self, cache: Any, step: int, place: int) -> torch.Tensor:
        given: dict[str, Any] = {self.cache_name: cache, "use_cache": True}
        if self.takes_positions:
            given["position_ids"] = torch.tensor([[place + self.first_position]])
        # What a cache holds is meant to be seen, so no mask hides any of it: a dictionary of none, where layers differ.
        kinds = set(getattr(self.model.config.get_text_config(decoder=True), "layer_types", None) or ())
        if len(kinds) > 1 and len({layer.get_seq_length() for layer in cache.layers}) > 1:
            given["attention_mask"] = dict.fromkeys(kinds)
        return self.model(input_ids=self.ids[None, step : step + 1], **given).logits[0]

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits.double(), targets, reduction="none")

    def _first_position(self) -> int:
        """What the model counts from when nobody tells it positions: 0, or what follows the padding's."""
        if not self.takes_positions:
            return 0
        n = len(self.ids) - 1
        padding = getattr(self.model.config.get_text_config(decoder=True), "pad_token_id", None)
        for first in {0, (padding or 0) + 1}:
            given = {"position_ids": first + torch.arange(n)[None], "use_cache": False}
            logits = self.model(input_ids=self.ids[None, :-1], **given).logits[0]
            if self._agree(self._losses(logits, self.ids[1:])):
                return first
        raise NoAnswerError("counts positions in a way of its own")

    def _agree(self, losses: torch.Tensor) -> bool:
        return bool((losses - self.plain[: len(losses)]).abs().max() < 1e-4)

    def _cache(self) -> Any:
        """Phase 1, on a cache on which the model, fed token by token, gives what it gives when fed the whole text."""
        reasons = []
        for cache in self._caches():
            try:
                losses, begun = self._fed(cache)
            except Exception as error:  # a configuration may name windows that its model never reads
                reasons.append(f"fed token by token it fails with {type(error).__name__}: {error}")
                continue
            if not getattr(cache, "layers", None) or cache.layers[0].get_seq_length() == 0:
                raise NoAnswerError("leaves no keys in the cache")
            if self._agree(losses):
                return begun
            if self.table_changes:
                self.plain = losses
                return begun
            apart = float((losses - self.plain).abs().max())
            reasons.append(f"fed token by token it parts from its own forward by {apart:.1g} nats")
        raise NoAnswerError(reasons[0])

    def _fed(self, cache: Any) -> tuple[torch.Tensor, Any]:
        """Losses of the whole text, fed token by token, and the cache as it was after phase 1."""
        losses = []
        for step in range(len(self.ids) - 1):
            if step == self.start:
                begun = copy.deepcopy(cache)
            losses.append(self._losses(self._feed(cache, step, step), self.ids[step + 1 : step + 2]))
        return torch.cat(losses), begun

    def _caches(self) -> Sequence[Any]:
        configured = DynamicCache(config=self.model.config)
        config = self.model.config.get_text_config(decoder=True)
        if not configured.layers:  # transformers 4.57, where num_kv_shared_layers is 0
            configured.layers = [
                DynamicSlidingWindowLayer(sliding_window=config.sliding_window) if "sliding" in kind else DynamicLayer()
                for kind in getattr(config, "layer_types", None) or []
            ]
        return [configured, DynamicCache()]

    def _check_places(self, cache: Any, step: int) -> None:
        """The next token, at its true position, must not see how many keys there are, nor in which order.

        With every key there twice, the token's own among them, softmax attention gives what it gave, and where it has
        sinks, with these twice as heavy.
        """
        parameters = self.model.named_parameters()
        sinks = [each for name, each in parameters if "sink" in name and self._layer(name) in self.full]
        changed, fed = copy.deepcopy(cache), copy.deepcopy(cache)
        once = self._feed(fed, step, step)
        for layer in self.full:
            for name in ("keys", "values"):
                old, new = getattr(cache.layers[layer], name), getattr(fed.layers[layer], name)
                setattr(changed.layers[layer], name, torch.cat([old.flip(2), new], 2))
        for sink in sinks:
            sink.data += math.log(2)
        try:
            again = self._feed(changed, step, step)
        finally:
            for sink in sinks:
                sink.data -= math.log(2)
        if not torch.allclose(once, again, rtol=1e-3, atol=1e-3):
            raise NoAnswerError("reads positions off the cache")

    def _layer(self, parameter: str) -> int:
        return int(next(part for part in parameter.split(".") if part.isdigit()))
