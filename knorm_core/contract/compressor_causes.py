"""Causes that are tried before a compressor's survivors are called wrong, so that one cause makes one finding.

Each is looked for once, on tame caches, within what the compressor can be given. What follows from a cause
alone is not reported again: a random choice breaks every promise that compares two calls, and a rule other
than the lowest norms breaks nearly all that key norms promise.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase, lowest_norms, row_of
from knorm_core.contract.claims import Claims
from knorm_core.contract.findings import Broken, Counterexample
from knorm_core.contract.limits import tame
from knorm_core.contract.tracing import origins, same_pairs, same_survivors
from knorm_core.contract.trials import Call, Trial

RATIOS = (0.5, 0.25, 0.75)
LEFT_TO_THE_CHECKS = contextlib.suppress(Broken)  # what raises, or is no cache

#: Checks that only repeat, in other words, that the lowest norms do not survive.
UNANSWERABLE = (
    "lowest_norms_survive",
    "equal_norms_keep_the_earlier",
    "rounding_noise_decides_nothing",
    "low_precision_keys_are_scored_in_float32",
    "position_decides_nothing",
)
#: Checks of what the rule depends on, which a rule that was recognised answers.
ANSWERED_BY_THE_RULE = (
    *UNANSWERABLE,
    "scale_changes_nothing",
    "rotation_changes_nothing",
    "heads_choose_for_themselves",
    "values_decide_nothing",
    "smaller_ratio_keeps_a_subset",
)


def random_choice(compressor: Compressor) -> None:
    """The same call gives the same survivors."""
    if not compressor.claims.deterministic:
        return
    for case in _small_cases(compressor.claims):
        trial = Trial(compressor)
        with LEFT_TO_THE_CHECKS:
            first, second = trial.compress(case, 0.5), trial.compress(case, 0.5)
            try:
                same_pairs(first.after, second.after, "as at the first call", first.before)
            except Broken as broken:
                raise trial.counterexample(broken, deterministic=False) from None


def merged_tokens(compressor: Compressor) -> None:
    """Every survivor is a token that was fed."""
    if not compressor.claims.unmerged:
        return
    for case in _small_cases(compressor.claims):
        trial = Trial(compressor)
        with LEFT_TO_THE_CHECKS:
            call = trial.compress(case, 0.5)
            try:
                origins(call.before[0], call.after[0])
            except Broken as broken:
                raise trial.counterexample(broken, unmerged=False) from None


def rows_together(compressor: Compressor) -> None:
    """Each row of a batch is compressed as if it were alone."""
    claims = compressor.claims
    if not (claims.several_rows and claims.rows and claims.deterministic):
        return
    for case, row in itertools.product(_small_cases(claims), range(2)):
        trial, case = Trial(compressor), case.but(batch=2)
        with LEFT_TO_THE_CHECKS:
            together, alone = trial.compress(case, 0.5), trial.compress(case.but(only_rows=(row,)), 0.5)
            before, after = row_of(together.before, row), row_of(together.after, row)
            try:
                same_pairs(alone.after, after, f"of row {row} as when it is alone", before)
            except Broken as broken:
                raise trial.counterexample(broken, rows=False) from None


def only_beyond_the_threshold(compressor: Compressor) -> None:
    """A layer that holds prune_after keys is compressed, not only one that holds more."""
    claims = compressor.claims
    if not (claims.threshold and claims.at_threshold):
        return
    at_threshold = []
    for case in _small_cases(claims):
        [length] = case.lengths
        trial = Trial(compressor)
        try:
            beyond = Trial(compressor).compress(case, 0.5, length - 1).after[0][0].shape[2]
            at = trial.compress(case, 0.5, length).after[0][0].shape[2]
        except Broken:
            return  # for the checks to find
        if at < length or beyond == length:
            return
        at_threshold.append((length, trial))
    if not at_threshold:
        return
    length, trial = at_threshold[0]
    broken = Broken(
        expected=f"a layer of {length} keys to shrink at prune_after={length}",
        got=f"{length} keys: layers are compressed only beyond prune_after keys, not from there on (off by one)",
    )
    raise trial.counterexample(broken, at_threshold=False)


@dataclass(frozen=True)
class Rule:
    """Another choice of survivors than the lowest key norms.

    Attributes:
        reported_by: name of the check that it breaks first.
        keeps: what survives, to follow "exactly".
        scores: (keys, values) to a score (batch, kv_heads, length), of which the lowest stay.
    """

    reported_by: str
    keeps: str
    scores: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def survivors(self, call: Call) -> torch.Tensor:
        """Indices (batch, kv_heads, kept), ascending."""
        kept = call.after[0][0].shape[2]
        keys, values = (tensor.double() for tensor in call.before[0])
        return self.scores(keys, values).sort(dim=-1, stable=True).indices[..., :kept].sort(dim=-1).values


def _places(keys: torch.Tensor) -> torch.Tensor:
    return torch.arange(keys.shape[2]).expand(keys.shape[:3])


RULES = (
    Rule("lowest_norms_survive", "the highest norms", lambda keys, values: -keys.norm(dim=-1)),
    Rule(
        "lowest_norms_survive",
        "the lowest norms, averaged over the heads",
        lambda keys, values: keys.norm(dim=-1).mean(dim=1, keepdim=True).expand(keys.shape[:3]),
    ),
    Rule(
        "heads_choose_for_themselves",
        "the choice of head 0, in every head",
        lambda keys, values: keys.norm(dim=-1)[:, :1].expand(keys.shape[:3]),
    ),
    Rule("rotation_changes_nothing", "the lowest L1 norms", lambda keys, values: keys.abs().sum(dim=-1)),
    Rule("rotation_changes_nothing", "the lowest maximum norms", lambda keys, values: keys.abs().amax(dim=-1)),
    Rule(
        "rotation_changes_nothing",
        "the lowest norms of the first half of the head",
        lambda keys, values: keys[..., : keys.shape[-1] // 2].norm(dim=-1),
    ),
    Rule(
        "rotation_changes_nothing",
        "the lowest norms of the second half of the head",
        lambda keys, values: keys[..., keys.shape[-1] // 2 :].norm(dim=-1),
    ),
    Rule("values_decide_nothing", "the lowest norms of the values", lambda keys, values: values.norm(dim=-1)),
    Rule("values_decide_nothing", "the highest norms of the values", lambda keys, values: -values.norm(dim=-1)),
    Rule(
        "values_decide_nothing",
        "the lowest sums of the norms of key and value",
        lambda keys, values: keys.norm(dim=-1) + values.norm(dim=-1),
    ),
    Rule("position_decides_nothing", "the first tokens, whatever their norm", lambda keys, values: _places(keys)),
    Rule("position_decides_nothing", "the latest tokens, whatever their norm", lambda keys, values: -_places(keys)),
)


def another_rule(compressor: Compressor) -> tuple[str, Counterexample] | None:
    """Where the lowest norms do not survive: the check that says so, and the rule, if it is recognised."""
    claims = compressor.claims
    if not (claims.key_norm and claims.unmerged and claims.deterministic):
        return None
    calls: list[Call] = []
    for seed, ratio in itertools.product(range(8), RATIOS):
        if claims.allows(tame(claims).lengths[0], ratio):
            with LEFT_TO_THE_CHECKS:
                call = Trial(compressor).compress(tame(claims).but(seed=seed, loud_values=True), ratio)
                _index(call)
                calls.append(call)
    if all(_is_lowest(call, claims.sinks, claims.recent) for call in calls):
        return None
    smallest = _smallest(compressor)
    if smallest is None:
        return None
    broken, trial = smallest
    if claims.unprotected:
        protected = [_protected(call) for call in calls]
        if all(protected):
            return "position_decides_nothing", _protecting(broken, trial, protected)
    for rule in RULES:
        if all(torch.equal(rule.survivors(call), _index(call)) for call in calls):
            broken.got += f": exactly {rule.keeps}"
            explains = tuple(name for name in ANSWERED_BY_THE_RULE if name != rule.reported_by)
            return rule.reported_by, trial.counterexample(broken, explains, key_norm=False)
    return UNANSWERABLE[0], trial.counterexample(broken, UNANSWERABLE[1:], key_norm=False)


def _protecting(broken: Broken, trial: Trial, protected: list[set[tuple[int, int]]]) -> Counterexample:
    """The finding about tokens that stay for their place: always as many of them, or a share of the budget."""
    always = set.intersection(*protected)
    if not always:
        broken.got += ": exactly the lowest norms once some first or latest tokens always stay, more in larger budgets"
        explains = tuple(name for name in ANSWERED_BY_THE_RULE if name != "position_decides_nothing")
        return trial.counterexample(broken, explains, key_norm=False)
    sinks, recent = min(always, key=sum)
    counted = (("first", sinks), ("latest", recent))
    places = " and ".join(f"the {which} {count}" for which, count in counted if count)
    broken.got += f": exactly the lowest norms once {places} of the tokens always stay"
    exempts: dict[str, Any] = {name: count for name, count in (("sinks", sinks), ("recent", recent)) if count}
    return trial.counterexample(broken, **exempts)


def _protected(call: Call) -> set[tuple[int, int]]:
    """How many first and latest tokens may always stay, for this call to be that of the lowest norms."""
    kept = call.after[0][0].shape[2]
    places = itertools.product(range(9), range(9))
    return {(first, last) for first, last in places if first + last < kept and _is_lowest(call, first, last)}


def _is_lowest(call: Call, sinks: int, recent: int) -> bool:
    return torch.equal(lowest_norms(call.before[0][0], call.after[0][0].shape[2], sinks, recent), _index(call))


def _smallest(compressor: Compressor) -> tuple[Broken, Trial] | None:
    """The smallest of some caches whose survivors are not the lowest norms."""
    claims = compressor.claims
    small = [case.but(kv_heads=claims.min_heads + more) for case in _small_cases(claims) for more in (0, 1)]
    for case in (*small, *(tame(claims).but(seed=seed, loud_values=True) for seed in range(8))):
        for ratio in RATIOS:
            if not claims.allows(case.lengths[0], ratio):
                continue
            trial = Trial(compressor)
            with LEFT_TO_THE_CHECKS:
                call = trial.compress(case, ratio)
                keys, index = call.before[0][0], _index(call)
                expected = lowest_norms(keys, index.shape[2], claims.sinks, claims.recent)
                try:
                    same_survivors(expected, index, keys.shape[2], norms=keys.double().norm(dim=-1))
                except Broken as broken:
                    return broken, trial
    return None


def _index(call: Call) -> torch.Tensor:
    return origins(call.before[0], call.after[0]).sort(dim=-1).values


def _small_cases(claims: Claims) -> list[CacheCase]:
    """Caches of one layer, from two keys or the fewest that can be given, up to a tame length."""
    shortest = max(2, claims.min_length)
    cases = [
        CacheCase(lengths=(shortest + more,), kv_heads=claims.min_heads, dtype=tame(claims).dtype)
        for more in (0, 1, 2, 3, 5, 8, 13)
    ]
    return [case for case in (*cases, tame(claims)) if claims.allows(case.lengths[0], 0.5)]


#: By the name of the check that reports it, in the order in which they are looked for; then comes `another_rule`.
CAUSES: dict[str, Callable[[Compressor], None]] = {
    "two_calls_agree": random_choice,
    "values_stay_with_their_keys": merged_tokens,
    "batch_rows_are_independent": rows_together,
    "fires_from_the_threshold_on": only_beyond_the_threshold,
}
