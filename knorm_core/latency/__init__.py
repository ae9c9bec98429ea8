"""How long and how much memory: honest timers for a compressed generation.

`measure_latency` times one prompt at several keep ratios; `measure_contexts` does so along the context
length; `measure_cold_start` times fresh processes, with and without what a first call pays once.
Nothing here decides beforehand what a keep ratio ought to cost.
"""

from knorm_core.latency.cold_start import ColdStart, measure_cold_start
from knorm_core.latency.contexts import Contexts, measure_contexts
from knorm_core.latency.measure import Latency, LatencyRow, measure_latency
from knorm_core.latency.quantity import Quantity, Ratio
from knorm_core.latency.rounds import Failure, MeasurementError

__all__ = [
    "ColdStart",
    "Contexts",
    "Failure",
    "Latency",
    "LatencyRow",
    "MeasurementError",
    "Quantity",
    "Ratio",
    "measure_cold_start",
    "measure_contexts",
    "measure_latency",
]
