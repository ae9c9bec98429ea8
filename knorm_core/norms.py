"""Key norms, and the rounding that makes their order the same on every machine."""

from __future__ import annotations

import torch

# A float64 has 53 significant bits; dropping 37 leaves 16.
_DROPPED_BITS = 53 - 16


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
