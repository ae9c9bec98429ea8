"""Q-Filters: keep the keys that lie in the direction in which a head's queries lie.

Godey et al., "Q-Filters: Leveraging QK Geometry for Efficient Key-Value Cache Compression", 2025, arXiv 2503.02812. The
queries of a head share a direction u, and the projection of a key on it estimates the attention that the key will get.
The directions are made once for a model, from texts: `knorm_core.fit_q_filters`. Choices taken: u is the main singular
vector of all queries of those texts, as they are after their rotation, with the sign that makes their mean projection
positive; those of query heads that share a KV head are averaged, as in the authors' code, which draws 3,000 of the
queries. A policy without directions is refused, and so are another model, and a text that shares a passage with those
that the directions come from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from knorm_core.policy import Policy, PolicyError, Seen

#: Of so many tokens each are the passages by which a text is known again; one of twice as many is never missed.
PASSAGE = 32


@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """The directions of a model's queries, and where they come from. Two are equal where their numbers are.

    Attributes:
        vectors: (layers, kv_heads, head_dim), float64, on the CPU.
        weights: a few of the model's weights, float64, by which it is known again.
        passages: hashes of the passages of the texts that the directions were fitted on.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    passages: frozenset[bytes]

    @cached_property
    def identity(self) -> str:
        """Hash of the numbers."""
        return "sha256:" + hashlib.sha256(self.vectors.contiguous().numpy().tobytes()).hexdigest()

    def __repr__(self) -> str:
        return f"<{self.identity[:15]}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directions) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


@dataclass(frozen=True)
class QFilters(Policy):
    """Projection of a key on the direction of the queries.

    Attributes:
        directions: from `knorm_core.fit_q_filters`; None is refused.
    """

    directions: Directions | None = None

    def check(self, model: nn.Module, input_ids: torch.Tensor) -> None:
        if self.directions is None:
            raise PolicyError(
                f"policy {self!r} has no directions: make it with knorm_core.fit_q_filters(model, texts), from texts "
                f"that are not evaluated"
            )
        weights = some_weights(model)
        if weights.shape != self.directions.weights.shape or not torch.allclose(
            weights, self.directions.weights, rtol=2**-6, atol=1e-6
        ):
            raise PolicyError(
                f"policy {self!r} has the directions of another model than this {type(model).__name__}: fit it on "
                f"this one"
            )
        if fitted := passages_from_anywhere(input_ids) & self.directions.passages:
            raise PolicyError(
                f"policy {self!r} was fitted on this text: {len(fitted)} passages of {PASSAGE} tokens are the same; "
                f"fit it on texts that are not evaluated"
            )

    def score(self, seen: Seen) -> torch.Tensor:
        if self.directions is None:
            raise PolicyError(f"policy {self!r} has no directions: make it with knorm_core.fit_q_filters")
        direction = self.directions.vectors[seen.layer].unsqueeze(0).unsqueeze(-1)  # (1, kv_heads, head_dim, 1)
        dtype = torch.promote_types(seen.keys.dtype, torch.float32)
        return (seen.keys.to(dtype) @ direction.to(seen.keys.device, dtype)).squeeze(-1)


def some_weights(model: nn.Module) -> torch.Tensor:
    """The first entry of every weight that is a matrix: the same in any precision, up to that precision."""
    first = [each.detach().flatten()[0].double() for each in model.parameters() if each.ndim >= 2]
    return torch.stack(first).cpu()


def passages(input_ids: torch.Tensor) -> frozenset[bytes]:
    """Hashes of a text's passages, one after the other."""
    return frozenset(_hashes(input_ids, PASSAGE))


def passages_from_anywhere(input_ids: torch.Tensor) -> frozenset[bytes]:
    """Hashes of a text's passages from every token on."""
    return frozenset(_hashes(input_ids, 1))


def _hashes(input_ids: torch.Tensor, stride: int) -> list[bytes]:
    tokens = input_ids.detach().to("cpu", torch.int64).numpy()
    starts = range(0, len(tokens) - PASSAGE + 1, stride)
    return [hashlib.blake2b(tokens[start : start + PASSAGE].tobytes(), digest_size=8).digest() for start in starts]
