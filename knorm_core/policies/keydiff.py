"""KeyDiff: keep the keys that are least like the others.

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
Environments", 2025, arXiv 2504.15364. Choice taken: the anchor is the mean of the normalised keys that are alive, anew
at every eviction, as in kvpress.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, normalize

from knorm_core.policy import Policy, Seen


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Minus the cosine of each key and the mean direction of the alive keys of its head."""

    reads = "cache"

    def score(self, seen: Seen) -> torch.Tensor:
        keys = seen.keys.to(torch.promote_types(seen.keys.dtype, torch.float32))
        anchor = normalize(keys, dim=-1).mean(dim=-2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)
