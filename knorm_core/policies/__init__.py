"""The policies that come with the suite, one to a file: what `knorm_core.policy` describes, a few lines each."""

from __future__ import annotations

from knorm_core.policies.expected_attention import ExpectedAttention
from knorm_core.policies.h2o import H2O
from knorm_core.policies.high_norm import HighNorm
from knorm_core.policies.keydiff import KeyDiff
from knorm_core.policies.lagkv import LagKV
from knorm_core.policies.low_norm import LowNorm
from knorm_core.policies.low_norm_exact import LowNormExact
from knorm_core.policies.newest import Newest
from knorm_core.policies.pyramidkv import PyramidKV
from knorm_core.policies.q_filters import QFilters
from knorm_core.policies.random import Random
from knorm_core.policies.snapkv import SnapKV
from knorm_core.policies.tova import TOVA
from knorm_core.policy import Policy

#: Policies by the name that `evaluate` and ``--knorm-policy`` take: that of their file.
POLICIES: dict[str, type[Policy]] = {
    policy.__module__.rpartition(".")[2]: policy
    for policy in (
        LowNorm,
        LowNormExact,
        HighNorm,
        Random,
        Newest,
        H2O,
        TOVA,
        SnapKV,
        PyramidKV,
        KeyDiff,
        ExpectedAttention,
        LagKV,
        QFilters,
    )
}

__all__ = [
    "H2O",
    "POLICIES",
    "TOVA",
    "ExpectedAttention",
    "HighNorm",
    "KeyDiff",
    "LagKV",
    "LowNorm",
    "LowNormExact",
    "Newest",
    "PyramidKV",
    "QFilters",
    "Random",
    "SnapKV",
]
