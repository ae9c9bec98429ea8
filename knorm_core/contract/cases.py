"""Synthetic caches that fit on one line: what Hypothesis draws, shrinks and prints.

A `CacheCase` is a recipe. Its repr is an expression that builds it again, so a finding can hand the
very input that broke a promise to whoever has to mend it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from knorm_core.cache import Pair, take

if TYPE_CHECKING:
    from transformers import DynamicCache

DTYPES = ("float32", "float64", "bfloat16", "float16")

KEYS = {
    "distinct": "norms 10 % apart, closer beyond 25 tokens so that none is above 11, in random order",
    "tied": "norms that are exactly 1 or 2",
    "near": "norms 0.05 % apart: equal once rounded to bfloat16, different in float32",
    "noise": "norms that differ in the last bits of a float32 only, the later ones lower",
}


@dataclass(frozen=True, repr=False)
class CacheCase:
    """A synthetic cache. Every key norm is known, and every value names its layer, row, head and token.

    >>> case = CacheCase(lengths=(3,), seed=1)
    >>> [(keys, values)] = case.pairs()
    >>> keys.shape, keys.norm(dim=-1).flatten().tolist() != sorted(keys.norm(dim=-1).flatten().tolist())
    (torch.Size([1, 1, 3, 4]), True)
    >>> case
    CacheCase(lengths=(3,), seed=1)

    Attributes:
        lengths: tokens of each layer.
        batch, kv_heads, head_dim, dtype: as of the tensors, which are (batch, kv_heads, length, head_dim).
        value_dim: width of the values, at least 4; None: that of the keys.
        keys: a name from `KEYS`.
        seed: of directions and of the order of the norms.
        scale: factor on all keys.
        rotate: rotate each key as RoPE does for its index plus this; None: as drawn.
        poison: "nan" or "inf" in the last key of the last head.
        loud_values: random large numbers in the last channel of the values.
        strided: tensors that are transposed views, as attention layers produce them.
        only_layers, only_rows, heads, tokens: select or reorder after drawing.
    """

    lengths: tuple[int, ...] = (4,)
    batch: int = 1
    kv_heads: int = 1
    head_dim: int = 4
    value_dim: int | None = None
    dtype: str = "float32"
    keys: str = "distinct"
    seed: int = 0
    scale: float = 1.0
    rotate: int | None = None
    poison: str | None = None
    loud_values: bool = False
    strided: bool = False
    only_layers: tuple[int, ...] | None = None
    only_rows: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default or field.name == "lengths"
        ]
        return f"CacheCase({', '.join(changed)})"

    def but(self, **changes: object) -> CacheCase:
        """The same case with some attributes changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def pairs(self) -> list[Pair]:
        """(key, value) of every layer, fresh tensors at each call."""
        layers = range(len(self.lengths)) if self.only_layers is None else self.only_layers
        return [self._layer(layer) for layer in layers]

    def dynamic_cache(self) -> DynamicCache:
        """The same as a `transformers.DynamicCache`."""
        return dynamic_cache(self.pairs())

    def _layer(self, layer: int) -> Pair:
        generator = torch.Generator().manual_seed(self.seed * 1000 + layer)
        shape = (self.batch, self.kv_heads, self.lengths[layer])
        keys = self._draw_keys(shape, generator) * self.scale
        values = _tags(layer, shape, self.value_dim or self.head_dim)
        if self.rotate is not None:
            keys = _rotate(keys, self.rotate)
        if self.poison is not None:
            keys[-1, -1, -1, 0] = float(self.poison)
        if self.loud_values:
            values[..., -1] = torch.randint(0, 100, shape, generator=generator).double()
        dtype = getattr(torch, self.dtype)
        return self._select(keys.to(dtype)), self._select(values.to(dtype))

    def _draw_keys(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        length = shape[2]
        ranks = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(dim=-1).double()
        axis = torch.randint(0, self.head_dim, shape, generator=generator)
        sign = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        one_hot = torch.nn.functional.one_hot(axis, self.head_dim).double() * sign.unsqueeze(-1)
        if self.keys == "tied":
            return one_hot * (1 + ranks % 2).unsqueeze(-1)
        if self.keys == "noise":
            return one_hot * (1 + torch.arange(length - 1, -1, -1).double() % 4 * 2**-23).unsqueeze(-1)
        if self.keys == "near":  # |(1, e)| = 1 + e²/2: a fine step in the norm from numbers that bfloat16 holds
            return one_hot + one_hot.roll(1, dims=-1) * (2 * ranks * 2**-11).sqrt().unsqueeze(-1)
        direction = torch.randn(*shape, self.head_dim, generator=generator, dtype=torch.float64)
        return direction / direction.norm(dim=-1, keepdim=True) * (1.1 ** (ranks * min(1.0, 25 / length))).unsqueeze(-1)

    def _select(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.only_rows is not None:
            tensor = tensor[list(self.only_rows)]
        if self.heads is not None:
            tensor = tensor[:, list(self.heads)]
        if self.tokens is not None:
            tensor = tensor[:, :, list(self.tokens)]
        if self.strided:
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        return tensor.contiguous()


def dynamic_cache(pairs: Iterable[Pair]) -> DynamicCache:
    """A `DynamicCache` that holds these very tensors."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys[:, :, :1], values[:, :, :1], layer)  # makes the layer; a copy, so of one token
        cache.layers[layer].keys, cache.layers[layer].values = keys, values
    return cache


def layers_of(cache: Any) -> list[Pair]:
    """The (key, value) pair of every layer of a transformers cache or of an iterable of pairs, unchecked."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return [(keys, values) for keys, values in cache]


def row_of(pairs: list[Pair], row: int) -> list[Pair]:
    """One batch row of every layer, still four-dimensional."""
    return [(keys[row : row + 1], values[row : row + 1]) for keys, values in pairs]


def grow(pairs: list[Pair], more: list[Pair]) -> list[Pair]:
    """A cache after further tokens have been fed: ``more`` appended to every layer of ``pairs``."""
    return [
        (torch.cat([keys, new_keys], dim=2), torch.cat([values, new_values], dim=2))
        for (keys, values), (new_keys, new_values) in zip(pairs, more, strict=True)
    ]


def lowest_norms(keys: torch.Tensor, kept: int, sinks: int = 0, recent: int = 0) -> torch.Tensor:
    """What a key-norm compressor has to keep: indices (batch, kv_heads, kept), ascending.

    The first ``sinks`` and the latest ``recent`` tokens come before all others.

    Written apart from `knorm_core.policies`, in float64, so that the two can disagree. Of norms that are
    equal to 16 significant bits the earlier comes first.
    """
    norms = keys.double().square().sum(dim=-1).sqrt()
    mantissa, exponent = torch.frexp(norms)
    rounded = torch.ldexp((mantissa * 2**16).round(), exponent)
    rounded[..., :sinks] = -2.0
    rounded[..., keys.shape[2] - recent :] = -1.0
    return rounded.sort(dim=-1, stable=True).indices[..., :kept].sort(dim=-1).values


def rows_of(pair: Pair, index: torch.Tensor) -> Pair:
    """Keys and values at ``index`` (batch, kv_heads, kept)."""
    return take(pair[0], index), take(pair[1], index)


def _tags(layer: int, shape: tuple[int, int, int], width: int) -> torch.Tensor:
    """Values that name where they belong, in integers that even bfloat16 holds exactly."""
    batch, heads, length = shape
    values = torch.zeros(*shape, width, dtype=torch.float64)
    values[..., 0] = torch.arange(length) % 128
    values[..., 1] = torch.arange(length) // 128
    values[..., 2] = torch.arange(heads).view(1, -1, 1) * 16 + torch.arange(batch).view(-1, 1, 1)
    values[..., 3] = layer
    return values


def _rotate(keys: torch.Tensor, offset: int) -> torch.Tensor:
    """Rotary embedding with base 10,000 at positions ``offset + index``."""
    half = keys.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (torch.arange(keys.shape[2], dtype=torch.float64) + offset).unsqueeze(-1) * frequency
    first, second = keys[..., :half], keys[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)
