"""Which policies of the suite stand in the table, and which of their controls."""

from __future__ import annotations

from knorm_core.experiments.breadth import RATIOS
from knorm_core.policies import POLICIES

#: Why a policy of the suite has no table of its own.
NOT_COMPARED = {
    "low_norm_exact": "low_norm without its rounding",
    "high_norm": "low_norm's score, inverted: a row of low_norm's table",
    "random": "a control of every table",
    "newest": "a control of every table",
    "q_filters": "fitted to a model first (`fit_q_filters`), and compared by whoever fits it",
}
COMPARED = tuple(name for name in POLICIES if name not in NOT_COMPARED)

#: The two that the sentence is about, at every keep ratio; the two made of the policy's own score, at the middle one.
CONTROLS = dict.fromkeys(RATIOS, ("newest", "random")) | {0.5: ("newest", "random", "permuted", "inverted")}

#: With four sinks and its window of 16 PyramidKV protects more than a tenth leaves to its upper layers.
NO_TENTH = {"pyramidkv"}


def ratios(name: str) -> tuple[float, ...]:
    """The keep ratios of a policy's table."""
    return tuple(ratio for ratio in CONTROLS if ratio != 0.1 or name not in NO_TENTH)


#: Of each set, the first: the fewest that an interval over texts takes. A row of one text takes about a CPU-second:
#: five rows a policy, and sixteen that all policies share.
TEXTS = 8
