"""Rounds: every keep ratio once, in a fresh random order, so that a machine's drift hits all alike.

Rounds are the unit of everything that follows: warm-up rounds are thrown away whole, ratios are paired
within a round, and a round in which one measurement fails is recorded and left out whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from knorm_core.inputs.garbage import no_garbage_collection

T = TypeVar("T")
Case = TypeVar("Case", float, str)


class MeasurementError(RuntimeError):
    """No round went through, so there is nothing to report; the message has the first failure."""


@dataclass(frozen=True)
class Failure:
    """A round that failed and was not counted.

    Attributes:
        round: index among the warm-up rounds, or among the measured ones, from 0.
        warmup: which of the two.
        case: the keep ratio (or other case) at which the error arose.
        error: its type and message.
    """

    round: int
    warmup: bool
    case: float | str
    error: str


@dataclass(frozen=True)
class Rounds(Generic[Case, T]):
    """What was measured: per round that went through, the result by case, in the order it was run.

    Attributes:
        completed: the measured rounds that went through.
        failures: the rounds that did not, warm-up rounds too.
    """

    completed: tuple[dict[Case, T], ...]
    failures: tuple[Failure, ...]


def run_rounds(
    measure: Callable[[Case], T], cases: Sequence[Case], *, repeats: int, warmup: int, seed: int
) -> Rounds[Case, T]:
    """Measure every case once per round, in an order drawn afresh for each, warm-up rounds first.

    Args:
        measure: runs one case.
        cases: what is compared: keep ratios, mostly.
        repeats, warmup: rounds to measure, and rounds before them to throw away.
        seed: of the orders.

    Raises:
        MeasurementError: no measured round went through.
    """
    order = random.Random(seed)
    completed: list[dict[Case, T]] = []
    failures: list[Failure] = []
    first_error: Exception | None = None
    for index in range(-warmup, repeats):
        results: dict[Case, T] = {}
        for case in order.sample(cases, len(cases)):
            try:
                with no_garbage_collection():
                    results[case] = measure(case)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                failures.append(Failure(index + warmup if index < 0 else index, index < 0, case, message))
                first_error = first_error or error
                break
        else:
            if index >= 0:
                completed.append(results)
    if not completed:
        raise MeasurementError(
            f"none of the {repeats} measured rounds went through; first failure, at {failures[0].case}: "
            f"{failures[0].error}"
        ) from first_error
    return Rounds(tuple(completed), tuple(failures))
