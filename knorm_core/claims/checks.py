"""How claims are tested: pure functions of tables, each of which says whether the data bear a claim out.

A check is called with the tables of one model, the name of one of them ("text set/what"), and the arguments that
the claim's entry declares; ``expected`` and ``tolerance`` are the entry's own, in per cent where they are changes or
shares. It answers with an `Outcome`: the claim holds, does not hold, or (None) these data leave it open. Two rows
differ only where a 95 % interval excludes no change.
"""

from __future__ import annotations

from collections.abc import Mapping

from knorm_core.claims import observation_checks, perplexity_checks
from knorm_core.claims.answer import Check

#: Every check by the name that an entry gives: the public functions of the two modules.
CHECKS: Mapping[str, Check] = {
    name: value
    for module in (perplexity_checks, observation_checks)
    for name, value in vars(module).items()
    if callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
}
