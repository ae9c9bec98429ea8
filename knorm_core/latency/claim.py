"""The report's claim on latency, and the verdict on it: a function of measured figures and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

EXPLAINED = "explained by a cold start"
REPRODUCED = "reproduced"
REFUTED = "refuted here, cause not established"


class Claim(NamedTuple):
    """Changes relative to keep 1.0 that the report claims: -0.88 is a fall by 88 %."""

    ttft: float
    throughput: float


CLAIM = {0.9: Claim(-0.88, -0.15), 0.5: Claim(-0.90, -0.17), 0.1: Claim(-0.90, -0.18)}


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about a claimed fall of the time to first token.

    Attributes:
        outcome: `EXPLAINED`, `REPRODUCED` or `REFUTED`.
        claimed_fall: as a share of the baseline, such as 0.88.
        cold_fall: what a cold baseline alone makes of two equal times: 1 - warm / cold.
        honest_fall: the largest that any keep ratio shows with honest timers; negative is a rise.
    """

    outcome: str
    claimed_fall: float
    cold_fall: float
    honest_fall: float

    def __str__(self) -> str:
        return (
            f"TTFT {-self.claimed_fall:+.0%}: {self.outcome}. A cold baseline alone makes {-self.cold_fall:+.1%}; "
            f"with honest timers the best keep ratio has {-self.honest_fall:+.1%}."
        )


def judge_ttft_claim(cold_over_warm: float, honest_ratio: float, claimed_fall: float = 0.88) -> Verdict:
    """Judge a claimed fall of the time to first token by what was measured.

    "Reproduced" if a keep ratio reaches it with honest timers; else "explained" if a cold baseline alone
    reaches it; else it is refuted on this machine, and its cause remains unknown.

    >>> print(judge_ttft_claim(cold_over_warm=1.1, honest_ratio=1.01))
    TTFT -88%: refuted here, cause not established. A cold baseline alone makes -9.1%; with honest timers the best \
keep ratio has +1.0%.
    >>> judge_ttft_claim(cold_over_warm=9.0, honest_ratio=1.01).outcome
    'explained by a cold start'

    Args:
        cold_over_warm: first call over warm call, at keep 1.0.
        honest_ratio: the smallest paired ratio of any keep ratio to keep 1.0.
        claimed_fall: in (0, 1).
    """
    cold_fall, honest_fall = 1 - 1 / cold_over_warm, 1 - honest_ratio
    if honest_fall >= claimed_fall:
        outcome = REPRODUCED
    elif cold_fall >= claimed_fall:
        outcome = EXPLAINED
    else:
        outcome = REFUTED
    return Verdict(outcome, claimed_fall, cold_fall, honest_fall)
