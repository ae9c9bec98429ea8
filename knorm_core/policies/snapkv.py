"""SnapKV: keep the keys to which the latest queries attend, and their neighbours.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469. The paper
compresses a prompt once (``when="after_prefill"``). Choices taken where keys go at every eviction: the window is the
latest tokens then, its queries attend anew to the keys alive, and scores are pooled over neighbours in the cache, which
need not be neighbours in the text. Average pooling and the mean over query heads that share a KV head are kvpress's;
the paper pools by the maximum in some of its experiments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool1d, pad

from knorm_core.counts import check_int
from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class SnapKV(Policy):
    """Mean attention of the window's queries to each key before the window, pooled.

    Attributes:
        window: latest tokens, which observe and are protected.
        kernel: keys that are pooled together, an odd number.
    """

    window: int = 16
    kernel: int = 5

    reads = "queries"

    def __post_init__(self) -> None:
        check_int("window", self.window, 1)
        if check_int("kernel", self.kernel, 1) % 2 == 0:
            raise ValueError(f"kernel={self.kernel} is even: give an odd number, so that pooling has a middle")

    @property
    def query_window(self) -> int:  # type: ignore[override]
        return self.window

    @property
    def recent(self) -> int:  # type: ignore[override]
        return self.window

    def score(self, seen: Seen) -> torch.Tensor:
        observed = seen.query_attention.mean(dim=(2, 3))[..., : -self.window]
        pooled = avg_pool1d(observed, self.kernel, padding=self.kernel // 2, stride=1)
        return pad(pooled, (0, self.window), value=torch.inf)
