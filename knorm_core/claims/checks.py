"""How claims are tested: functions of tables, each of which says whether the numbers bear a claim out.

A check is called with the tables of one model, the name of one of them ("text set/kind"), and the arguments that
the claim's entry declares; ``expected`` and ``tolerance`` are the entry's own, in per cent where they are changes or
shares. It reads the intervals that it needs, and a rule of `knorm_core.claims.rules` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from knorm_core.results.records import Number

MORE_TEXTS = "more texts, for a narrower interval"
MORE_ROUNDS = "more rounds on a quiet machine, for a narrower interval"
MORE_PROMPTS = "more prompts, for a narrower interval"


@dataclass(frozen=True)
class Answer:
    """What the tables say of a claim.

    Attributes:
        holds: whether it holds; None where the tables leave it open.
        why: a clause with the numbers.
        numbers: those numbers.
        needs: what would settle it, where it is open.
    """

    holds: bool | None
    why: str
    numbers: tuple[Number, ...]
    needs: str = ""


Check = Callable[..., Answer]
_Function = TypeVar("_Function", bound=Check)

#: Every check by the name that an entry gives.
CHECKS: dict[str, Check] = {}

#: Checks that are about texts in general, so that a table of fewer than `FEWEST_TEXTS` gives no verdict.
OF_MANY_TEXTS = {"change", "no_loss", "no_difference", "rises", "worst", "mildest", "better"}

#: Checks whose numbers say something only of a model that has learned something.
OF_TRAINED_MODELS: set[str] = set()


def check(*, of_any_weights: bool = False) -> Callable[[_Function], _Function]:
    """Enter a check into `CHECKS`; ``of_any_weights`` where random weights are as good as trained ones."""

    def enter(function: _Function) -> _Function:
        CHECKS[function.__name__] = function
        if not of_any_weights:
            OF_TRAINED_MODELS.add(function.__name__)
        return function

    return enter
