"""Causes that are tried before an evaluator's losses are called wrong: exactly one of them explains most.

Each is a change of claims. The losses of the definition under the changed claims are compared with the
evaluator's, in several runs on two models; where they agree to the last token, the cause is named once, by
the check that it belongs to, and all other checks go on as if it had been claimed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from knorm_core.contract import variants
from knorm_core.contract.attempts import ATOL, Attempt, TinyRun, definition
from knorm_core.contract.claims import EvaluatorClaims
from knorm_core.contract.evaluators import LossFunction
from knorm_core.contract.findings import Broken, Counterexample, Diagnosis

LENGTHS = (35, 64)  # a text of two scored tokens, and one that every evaluator should take


@dataclass(frozen=True)
class Cause:
    """One thing that an evaluator may do differently from its claims.

    Attributes:
        reported_by: name of the check that it belongs to.
        does: what such an evaluator does, to follow "an evaluator that".
        change: the claims of such an evaluator, from those that were made; {} where it changes nothing.
    """

    reported_by: str
    does: str
    change: Callable[[EvaluatorClaims], dict[str, Any]]


def _variant(variant: Callable[[Any], Any]) -> Callable[[EvaluatorClaims], dict[str, Any]]:
    return lambda claims: {"compressor": variant(claims.compressor)}


CAUSES = (
    Cause(
        "positions_do_not_drift",
        "feeds tokens at the length of layer 0's cache, not at their true positions (position drift)",
        lambda claims: {"positions": "cache"},
    ),
    Cause(
        "compresses_before_feeding",
        "compresses after feeding a token instead of before: its first eviction comes one token later",
        lambda claims: {"first_eviction_after": claims.first_eviction_after + 1},
    ),
    Cause("goes_on_evicting", "evicts once and then never again", lambda claims: {"when": "after_prefill"}),
    Cause("evicts_while_scoring", "never evicts anything", _variant(variants.nothing_evicted)),
    Cause(
        "compresses_as_claimed",
        "compresses only beyond prune_after keys, not from there on (off by one)",
        _variant(variants.above_threshold),
    ),
    Cause("compresses_as_claimed", "rounds kept counts down (floor)", _variant(variants.keeping_floor)),
    Cause("compresses_as_claimed", "keeps one key less (off by one)", _variant(variants.keeping_one_less)),
    Cause("compresses_as_claimed", "keeps one key more (off by one)", _variant(variants.keeping_one_more)),
    Cause(
        "compresses_as_claimed",
        "leaves values in the order of the norms while keys are in that of time",
        _variant(variants.values_out_of_order),
    ),
    Cause("layers_may_differ_in_length", "skips no layer", lambda claims: {"skip_layers": ()}),
    Cause(
        "layers_may_differ_in_length",
        "reads the lengths of all layers off layer 0",
        _variant(variants.by_layer_0),
    ),
    Cause("compresses_as_claimed", "skips layer 0", lambda claims: {"skip_layers": (0,)}),
    Cause(
        "scores_exactly_the_promised_tokens",
        "scores from token 1 on, phase 1 included",
        lambda claims: {"score_from": "start"},
    ),
    Cause(
        "scores_exactly_the_promised_tokens",
        "scores phase 2 alone",
        lambda claims: {"score_from": "phase2"},
    ),
)


# Two at once: drift or the order of steps, which come from the loop, with any other.
PAIRS = [(first, second) for first, second in itertools.combinations(CAUSES, 2) if first in CAUSES[:2]]


def shortest_text(evaluator: LossFunction) -> None:
    """Raise where a short text is not evaluated and a longer one is; the limit is found by halving."""
    attempt = Attempt(evaluator)
    refused, taken = LENGTHS
    broken = _refusal(attempt, refused)
    if broken is None or evaluator.claims.min_text > refused or _refusal(attempt, taken) is not None:
        return
    while taken - refused > 1:
        middle = (refused + taken) // 2
        if _refusal(attempt, middle) is None:
            taken = middle
        else:
            refused = middle
    attempt.runs.append(TinyRun(LENGTHS[0], 0.5, 32))
    raise attempt.counterexample(broken, min_text=taken)


def explanation(evaluator: LossFunction) -> Diagnosis:
    """How short a text may be; then one cause, or two, whose losses are exactly the evaluator's."""
    claims, counterexamples = evaluator.claims, {}
    try:
        shortest_text(evaluator)
    except Counterexample as broken:
        counterexamples["takes_short_texts"] = broken.with_traceback(None)
        claims = replace(claims, **broken.exempts)
    causes = _causes(evaluator.held_to(claims))
    for cause in causes:
        claims = replace(claims, **cause.change(claims))
    if causes:
        counterexamples |= _counterexamples(evaluator, causes)
    return Diagnosis(claims, counterexamples)


def _refusal(attempt: Attempt, seq_len: int) -> Broken | None:
    try:
        attempt.losses(TinyRun(seq_len, 0.5, 32))
    except Broken as broken:
        return broken
    return None


def _causes(evaluator: LossFunction) -> tuple[Cause, ...]:
    """The single cause, or two together, that explain the losses; none where they are right, or wrong otherwise."""
    attempt = Attempt(evaluator)
    runs = [attempt.run(*run) for run in ((47, 0.5, 32), (84, 0.5, 32), (84, 0.9, 32), (84, 0.5, 32, "gpt_neox"))]
    try:
        losses = {run: attempt.returned(run) for run in runs}
    except Broken:
        return ()
    if _agrees(evaluator.claims, losses):
        return ()
    for causes in (*((cause,) for cause in CAUSES), *PAIRS):
        claims = evaluator.claims
        for cause in causes:
            claims = replace(claims, **cause.change(claims))
        if claims != evaluator.claims and _agrees(claims, losses):
            return causes
    return ()


def _agrees(claims: EvaluatorClaims, losses: dict[TinyRun, torch.Tensor]) -> bool:
    for run, got in losses.items():
        expected = definition(claims, run)
        if expected.shape != got.shape or not bool(((expected - got).abs() <= ATOL).all()):
            return False
    return True


def _counterexamples(evaluator: LossFunction, causes: tuple[Cause, ...]) -> dict[str, Counterexample]:
    together = " and ".join(cause.does for cause in causes)
    reports = {}
    for cause in causes:
        attempt = Attempt(evaluator)
        for run in [attempt.run(*run) for run in ((47, 0.5, 32), (84, 0.9, 32), (84, 0.5, 32))]:
            got = attempt.returned(run)
            try:
                attempt.compare(run, definition(evaluator.claims, run), got)
            except Broken as broken:
                broken.got += f": your losses are exactly those of an evaluator that {together}"
                reports[cause.reported_by] = attempt.counterexample(broken, **cause.change(evaluator.claims))
                break
    return reports
