"""Which keys survive an eviction: one score per key, and the lowest scores stay.

A key's score is fixed when the key is born: it depends on the key, its head and its true position,
never on what else is in the cache. That is what lets `knorm_core.methods.onepass` know every key's death in
advance. `low_norm` is the method (Devoto et al., arXiv 2406.11430, section 3); the others are the
controls without which its perplexity says little.
"""

from __future__ import annotations

import numpy as np
import torch

POLICIES = ("low_norm", "low_norm_exact", "high_norm", "random", "recent", "sink_recent")
SINKS = 4  # StreamingLLM (arXiv 2309.17453) keeps the first four tokens

# A float64 has 53 significant bits; dropping 37 leaves 16.
_DROPPED_BITS = 53 - 16
# Below every other score, and above what a protected window is given.
_ALWAYS = -(1 << 62)


def key_scores(
    policy: str, keys: torch.Tensor, positions: torch.Tensor, *, layer: int = 0, seed: int = 0
) -> torch.Tensor:
    """Score every key; an eviction keeps the lowest, equal scores the earlier position.

    Args:
        policy: one of `POLICIES`.
        keys: (batch, kv_heads, length, head_dim), any floating dtype.
        positions: true positions of the keys in the text, int64, broadcastable to
            (batch, kv_heads, length).
        layer: layer index; only ``random`` depends on it.
        seed: only ``random`` depends on it.

    Returns:
        (batch, kv_heads, length), int64 or float64, on the keys' device.

    Raises:
        ValueError: a key is NaN or infinite, or the policy is unknown.
    """
    norms = key_norms(keys)
    positions = positions.to(keys.device).expand(norms.shape)
    match policy:
        case "low_norm":
            return round_norms(norms)
        case "low_norm_exact":
            return norms.double()
        case "high_norm":
            return -round_norms(norms)
        case "random":
            return _random_scores(positions, layer, seed)
        case "recent":
            return -positions
        case "sink_recent":
            return torch.where(positions < SINKS, _ALWAYS, -positions)
    raise ValueError(f"policy={policy!r} is not one of {', '.join(map(repr, POLICIES))}")


def survivors(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Indices of the ``kept`` lowest scores along the last axis, in temporal order.

    The sort is stable, so of equal scores the earlier position stays.

    >>> survivors(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 2)
    tensor([1, 3])

    Args:
        scores: (..., length).
        kept: how many stay, 0 … length.

    Returns:
        (..., kept), int64, ascending.
    """
    order = scores.argsort(dim=-1, stable=True)
    return order[..., :kept].sort(dim=-1).values


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """L2 norm of every key: (..., head_dim) to (...), float64 for float64 keys, else float32.

    In bfloat16 most norms of a head tie (kvpress issue 276), hence at least float32.

    Raises:
        ValueError: a key is NaN or infinite: there is no order among such keys.
    """
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(keys, dim=-1, dtype=dtype)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError("keys hold NaN or infinite values: their norms cannot be ranked")
    return norms


def round_norms(norms: torch.Tensor) -> torch.Tensor:
    """Norms rounded to 16 significant bits, as int64 in the same order.

    A token that occurs twice has the same key norm in layer 0 before rotation; without rounding, the
    last bit of the float32 rotary tables decides which of the two survives. The bit pattern of a
    non-negative double orders as the number itself, so the rounding is an add and a shift, exact on
    every device.

    >>> round_norms(torch.tensor([1.0, 1.0 + 2**-20, 1.0 + 2**-14])).diff()
    tensor([0, 2])
    """
    bits = norms.double().view(torch.int64)
    return (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS


def _random_scores(positions: torch.Tensor, layer: int, seed: int) -> torch.Tensor:
    # Philox counts, so a key's score depends on (seed, layer, head, position) alone; NumPy guarantees
    # the raw stream of a bit generator, not what is derived from it.
    batch, heads, length = positions.shape
    if length == 0:
        return positions
    count = int(positions.max()) + 1
    streams = [np.random.Philox(key=[seed, (layer << 32) | head]).random_raw(count) for head in range(heads)]
    table = torch.from_numpy((np.stack(streams) >> np.uint64(1)).astype(np.int64)).to(positions.device)
    return table.expand(batch, heads, count).gather(-1, positions)
