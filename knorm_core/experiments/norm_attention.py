"""Does a key of low norm draw high attention? The paper's central observation, head by head.

The text is cut in two: the first half are the cached keys, the second half the queries that come later.
Every one of these keys is seen by every one of these queries, so that no key is ahead only because it
was there for longer (over a whole causal map, early keys are seen by more queries, and by queries that
have fewer keys to share their attention between). ``received`` is the attention that a key gets, averaged
over those queries, as transformers' eager attention computes it.

ALr is the paper's measure (Devoto et al., arXiv 2406.11430, section 2): with L(m) the attention lost when
the m keys of highest norm are dropped, and L_ref(m) when the m keys of lowest attention are, it is the sum
over m of L(m) - L_ref(m). Zero is a norm that orders keys exactly as attention itself does. Dropping keys
in random order has an expected ALr in closed form, which is what tells a good value from a bad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from knorm_core.methods.forward import cache_argument, private_copy
from knorm_core.methods.head import body_of
from knorm_core.methods.language_model import check_input_ids, text_config
from knorm_core.norms import key_norms, round_norms
from knorm_core.setting import UnsupportedModelError

#: Keys that are drawn together: attention to neighbours is alike.
BLOCK = 32
DRAWS = 400


@dataclass(frozen=True)
class HeadObservation:
    """One query head. ``kv_head`` is the one whose keys it reads; ALr is in attention times keys.

    The first token draws most of the attention of most heads, and has the lowest norm by far: alone it
    decides most of ALr. The fields ``…_without_first…`` leave it out of the keys. The limits are those of `limits`:
    they speak of this text alone.
    """

    layer: int
    head: int
    kv_head: int
    spearman: float
    alr: float
    alr_random: float
    alr_without_first: float
    alr_without_first_random: float
    spearman_low: float
    spearman_high: float
    alr_low: float
    alr_high: float
    alr_random_low: float
    alr_random_high: float

    @property
    def holds(self) -> bool:
        """Whether lower norms go with higher attention in this head."""
        return self.spearman < 0


@torch.inference_mode()
def observe(model: nn.Module, input_ids: torch.Tensor | Sequence[int]) -> list[HeadObservation]:
    """Norm against later attention for every layer and query head, from one forward pass.

    Args:
        model: a causal language model of transformers.
        input_ids: one text, (n,) or (1, n), at least 34 tokens; the first n // 2 are the keys.

    Raises:
        UnsupportedModelError: (a ValueError) the model does not hand out one attention map per layer.
    """
    from transformers import DynamicCache

    ids = check_input_ids(model, input_ids)
    keys = len(ids) // 2
    model = private_copy(model, "eager")
    cache = DynamicCache()
    received: dict[int, torch.Tensor] = {}

    def watch(module: nn.Module, _arguments: Any, output: Any) -> None:
        # One map at a time: all of them together would take gigabytes at 2,048 tokens.
        if isinstance(output, tuple) and len(output) > 1 and getattr(output[1], "ndim", 0) == 4:
            received[int(module.layer_idx)] = output[1][0, :, keys:, :keys].double().mean(dim=1)  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.register_forward_hook(watch)
    body = body_of(model)
    body(input_ids=ids[None], use_cache=True, **cache_argument(body, cache))
    layers = text_config(model).num_hidden_layers
    if sorted(received) != list(range(layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {layers} layers and hands out attention maps of layers {sorted(received)}"
        )
    observations = []
    for layer in range(layers):
        norms = round_norms(key_norms(cache.layers[layer].keys[0, :, :keys])).cpu().numpy()
        attention = received[layer].cpu().numpy()
        kv_head = np.arange(len(attention)) // (len(attention) // len(norms))
        norms = norms[kv_head]
        columns = (
            spearman(norms, attention),
            alr(norms, attention),
            alr_random(attention),
            alr(norms[:, 1:], attention[:, 1:]),
            alr_random(attention[:, 1:]),
            *limits(norms, attention),
        )
        observations += [
            HeadObservation(layer, head, int(kv_head[head]), *(float(column[head]) for column in columns))
            for head in range(len(attention))
        ]
    return observations


def limits(norms: np.ndarray, attention: np.ndarray) -> list[np.ndarray]:
    """95 % limits, low and high, of Spearman's correlation, ALr and a random order's: (heads, keys) to (heads,).

    Percentiles over draws of neighbouring keys (`BLOCK` at a time), the same for all heads.
    """
    keys = norms.shape[-1]
    block = min(BLOCK, keys)
    starts = np.random.default_rng(0).integers(keys - block + 1, size=(DRAWS, -(-keys // block)))
    drawn = (starts[..., None] + np.arange(block)).reshape(DRAWS, -1)[:, :keys]
    ends = []
    for norm, received in zip(norms, attention, strict=True):
        measures = (
            spearman(norm[drawn], received[drawn]),
            alr(norm[drawn], received[drawn]),
            alr_random(received[drawn]),
        )
        ends.append([end for measure in measures for end in np.percentile(measure, (2.5, 97.5))])
    return list(np.array(ends).T)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of every row, equal values sharing their mean rank: (rows, n) twice to (rows,)."""
    ranks = [rankdata(values, axis=-1) for values in (first, second)]
    centred = [rank - rank.mean(axis=-1, keepdims=True) for rank in ranks]
    lengths = [np.sqrt((c * c).sum(axis=-1)) for c in centred]
    return (centred[0] * centred[1]).sum(axis=-1) / (lengths[0] * lengths[1])


def alr(norms: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The paper's attention loss, summed over how many keys are dropped: (rows, n) twice to (rows,)."""
    highest_first = np.argsort(-norms, axis=-1, kind="stable")
    lost = np.take_along_axis(attention, highest_first, axis=-1).cumsum(axis=-1)
    return (lost - _least_loss(attention)).sum(axis=-1)


def alr_random(attention: np.ndarray) -> np.ndarray:
    """Expected ALr of a random order: m of n keys lose m/n of the attention. (rows, n) to (rows,)."""
    n = attention.shape[-1]
    expected = attention.sum(axis=-1, keepdims=True) * np.arange(1, n + 1) / n
    return (expected - _least_loss(attention)).sum(axis=-1)


def _least_loss(attention: np.ndarray) -> np.ndarray:
    return np.sort(attention, axis=-1).cumsum(axis=-1)
