"""The outcome of a cell: looked up in the store, or computed and stored."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from knorm_core.evaluation import Evaluation
from knorm_core.policy_names import policy_label
from knorm_core.sweeps.cells import Cell
from knorm_core.sweeps.codec import EVALUATION
from knorm_core.sweeps.store import Store, StoreWarning


class CellFailedError(RuntimeError):
    """A cell has no result; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a cell: an evaluation, or the error that it ended with.

    ``stored`` is the time of computing (ISO 8601, UTC) of an evaluation that came from the store, else None.
    """

    cell: Cell
    evaluation: Evaluation | None = None
    error: BaseException | None = None
    stored: str | None = None

    def result(self) -> Evaluation:
        """The evaluation.

        Raises:
            CellFailedError: there is none.
        """
        if self.evaluation is None:
            raise CellFailedError(f"{self.cell}: {type(self.error).__name__}: {self.error}") from self.error
        return self.evaluation


def look_up(cell: Cell, store: Store | None, environments: Iterable[Mapping[str, Any]]) -> Outcome | None:
    """The stored outcome of a cell, computed in any of these environments; None where there is none."""
    if store is None or cell.policy_identity is None:
        return None
    stored = store.get(str(cell), *map(cell.inputs, environments), decode=EVALUATION.of_bytes)
    return None if stored is None else Outcome(cell, stored.value, stored=stored.computed)


def keep(cell: Cell, store: Store | None, around: Mapping[str, Any], evaluation: Evaluation) -> Outcome:
    """Store what was computed in the environment ``around``."""
    if store is not None and cell.policy_identity is None:
        _say_that_nothing_is_stored(policy_label(cell.arguments["policy"]))
    elif store is not None:
        store.put(str(cell), cell.inputs(around), *EVALUATION.to_bytes(evaluation))
    return Outcome(cell, evaluation)


@functools.cache  # once for each policy
def _say_that_nothing_is_stored(policy: str) -> None:
    warnings.warn(
        f"results of policy {policy} are not stored: it has no identity to find them again by; define it in a module "
        f"that can be imported, with parameters that JSON can hold",
        StoreWarning,
        stacklevel=2,
    )
