"""Moving cached keys to other positions: what the mode ``positions="rerotated"`` needs.

After an eviction the survivors are rotated to positions 0 … k-1, as StreamingLLM (arXiv 2309.17453) and
kvpress's ``KeyRerotationPress`` do, so that the cache never shows a gap and the next token's position is
the cache length. A rotary embedding turns each pair of a key's coordinates by position × frequency, so a
key moves by being turned by the difference of positions. Models make their tables in float32; the
difference is turned in at least the keys' precision with angles in float64, so that moving a key twice
equals moving it once. Norms do not change: who survives is decided by the key as it was first cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from knorm_core.methods.forward import feed_on_cache, private_copy
from knorm_core.methods.language_model import text_config
from knorm_core.setting import UnsupportedModelError

RE_ROTATED = "positions='rerotated'"
_ANGLE = 1e-3  # radians that a float32 table may be off at the positions probed


def rotate(keys: torch.Tensor, by: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Turn keys as if they had been fed ``by`` positions later.

    Args:
        keys: (..., length, head_dim), any floating dtype; only the first ``2 * len(frequencies)``
            coordinates turn, the first half of these paired with the second, as in GPT-NeoX and Llama.
        by: positions to move by, int64, broadcastable to (..., length); negative moves back.
        frequencies: radians per position, float64 (pairs,).

    Returns:
        Shaped and typed as ``keys``; computed in at least float32.
    """
    pairs = len(frequencies)
    angles = by.to(torch.float64).unsqueeze(-1) * frequencies
    dtype = torch.promote_types(keys.dtype, torch.float32)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    wide = keys.to(dtype)
    first, second, still = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, still], dim=-1).to(keys.dtype)


@dataclass(frozen=True)
class Rotation:
    """How the tokens of a text were rotated.

    Attributes:
        frequencies: radians per position, float64 (pairs,).
        positions: what each token is fed with, int64 (tokens,), on the device of `frequencies`.
    """

    frequencies: torch.Tensor
    positions: torch.Tensor

    def unrotated(self, queries: torch.Tensor, first: int) -> torch.Tensor:
        """Queries (..., w, head_dim) of the tokens from ``first`` on, as they were before they were rotated."""
        return rotate(queries, -self.positions[first : first + queries.shape[-2]], self.frequencies)


def rotary_frequencies(model: nn.Module, wanted_by: str = RE_ROTATED) -> torch.Tensor:
    """Radians per position of every pair of coordinates, float64 (pairs,), read off the model.

    Args:
        wanted_by: what needs them, for the message.

    Raises:
        UnsupportedModelError: no rotary positions, several kinds of them, or ones that change with length.
    """
    config = text_config(model)
    tables = [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name.rsplit(".", 1)[-1].endswith("inv_freq") and not name.endswith("original_inv_freq")
    ]
    if not tables:
        raise UnsupportedModelError(
            f"{wanted_by} needs rotary positions, and {type(model).__name__} has none: use {_instead(wanted_by)}"
        )
    kinds = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = kinds.get("rope_type", "default") if isinstance(kinds, dict) else "default"
    if kind in ("dynamic", "longrope") or len(tables) > 1:
        raise UnsupportedModelError(
            f"{wanted_by} needs one table of frequencies for all layers and lengths; "
            f"{type(model).__name__} has {len(tables)} of type {kind!r}: use {_instead(wanted_by)}"
        )
    return tables[0][1].float().double()


@torch.inference_mode()
def check_rotation(model: nn.Module, frequencies: torch.Tensor, wanted_by: str = RE_ROTATED) -> None:
    """See that the model's own keys move as `rotate` says, in every layer.

    A single token attends to itself alone, so its hidden states do not depend on its position, and two
    such keys differ by their rotation and nothing else.

    Raises:
        UnsupportedModelError: they do not (interleaved pairs, layers without rotation, …).
    """
    from transformers import DynamicCache

    probed = private_copy(model, "eager")
    caches = []
    for position in (0, 5):
        cache = DynamicCache()
        feed_on_cache(probed, torch.tensor([[1]], device=frequencies.device), position, cache)
        caches.append(cache)
    by = torch.tensor([5], device=frequencies.device)
    for layer, (start, moved) in enumerate(zip(caches[0].layers, caches[1].layers, strict=True)):
        expected, size = rotate(start.keys.double(), by, frequencies), moved.keys.double().norm()
        tolerance = max(_ANGLE, 4 * torch.finfo(moved.keys.dtype).eps)
        if float((expected - moved.keys).norm()) > tolerance * float(size):
            raise UnsupportedModelError(
                f"{wanted_by} cannot turn the keys of {type(model).__name__}: layer {layer} does not rotate them by "
                f"halves with the model's own frequencies; use {_instead(wanted_by)}"
            )


def _instead(wanted_by: str) -> str:
    return "'absolute'" if wanted_by == RE_ROTATED else "another policy"
