"""Expected Attention: keep the keys that future queries are expected to attend to, times the size of their values.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
2025, arXiv 2510.00636. Queries before their rotation are taken for Gaussian. Their mean and covariance are those of the
queries so far, turned by the mean of the rotations of the positions to come; then exp(q·k) has a closed form for every
key. It needs to know how the model rotates: other models are refused. Choices taken:

- Statistics are those of the latest ``window`` queries at each eviction, as many as kvpress holds while decoding. After
  a prompt no longer than that they are the paper's own, all queries of the prompt.
- Queries and keys of the first ``sinks`` tokens are outliers: those tokens are protected, and have no part in
  statistics and in the softmax, as in kvpress.
- The position to come is the one that the model is really fed with. Its soft-capping is left out of the closed form.
- Query heads that share a KV head are averaged; the size of a value is its norm, in place of the norm after the output
  projection; no constant is added to the expectation. These are kvpress's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from knorm_core.counts import check_int
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Expected attention of future queries, times the norm of the value.

    Attributes:
        future: positions to come over which the rotation is averaged.
        window: latest queries that the statistics are made of; None for all since the start of the text.
        sinks: first tokens of the text, which are protected and left out.
    """

    future: int = 512
    window: int | None = 256
    sinks: int = 4

    reads = "queries"
    unrotates = True

    def __post_init__(self) -> None:
        check_int("future", self.future, 1)
        check_int("sinks", self.sinks, 0)
        if self.window is not None:
            check_int("window", self.window, 1)

    @property
    def query_window(self) -> int | None:  # type: ignore[override]
        return self.window

    def score(self, seen: Seen) -> torch.Tensor:
        dtype = torch.promote_types(seen.keys.dtype, torch.float32)
        queries, keys, values = (
            each.to(dtype) for each in (seen.unrotated_queries, seen.keys[:, :, self.sinks :], seen.values)
        )
        first = seen.fed - queries.shape[-2]
        queries = queries[..., max(0, self.sinks - first) :, :]
        mean, deviations = queries.mean(dim=-2, keepdim=True), queries - queries.mean(dim=-2, keepdim=True)
        covariance = deviations.mT @ deviations / queries.shape[-2]
        covariance = self._turned(self._turned(covariance, seen).mT, seen)
        keys = keys.unsqueeze(2)  # (rows, kv_heads, 1, alive, head_dim)
        expected = seen.scale * (keys @ self._turned(mean, seen).mT).squeeze(-1)
        spread = seen.scale**2 / 2 * ((keys @ covariance) * keys).sum(dim=-1)
        attention = (expected + spread).softmax(dim=-1).mean(dim=2)
        sizes = torch.linalg.vector_norm(values[:, :, self.sinks :], dim=-1)
        return pad(attention * sizes, (self.sinks, 0), value=torch.inf)

    def _turned(self, vectors: torch.Tensor, seen: Seen) -> torch.Tensor:
        """Vectors along the last axis, turned by the mean of the rotations of the positions to come."""
        positions = seen.next_position + torch.arange(self.future, device=vectors.device).double()
        angles = positions.unsqueeze(-1) * seen.frequencies
        cosine, sine = (each.mean(dim=0).to(vectors.dtype) for each in (angles.cos(), angles.sin()))
        pairs = len(seen.frequencies)
        former, latter = vectors[..., :pairs], vectors[..., pairs : 2 * pairs]
        return torch.cat(
            [former * cosine - latter * sine, latter * cosine + former * sine, vectors[..., 2 * pairs :]], dim=-1
        )
