"""What a compressor can be given: each limit is looked for once, from a tame call outwards, one thing at a time.

A limit is a claim (`min_length`, `max_batch`, …), not a fault. Found here, it is reported once, with the
smallest case and the claim that states it, and all other checks go on within it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase
from knorm_core.contract.claims import Claims, by_binary_ceil, by_floor, by_rounding, kvpress_count
from knorm_core.contract.findings import Broken
from knorm_core.contract.trials import Trial
from knorm_core.counts import kept_count

RULES = (kept_count, by_binary_ceil, by_floor, by_rounding, kvpress_count)


def arguments(compressor: Compressor) -> None:
    """``prune_after`` and ``skip_layers`` are taken by name."""
    unclaimed: dict[str, Any] = {}
    for name, claim in (("prune_after", "threshold"), ("skip_layers", "skip_layers")):
        compressor = compressor.held_to(dataclasses.replace(compressor.claims, **unclaimed))
        trial, broken = _call(compressor, tame(compressor.claims))
        if broken and broken.crash.startswith("TypeError") and "argument" in broken.got and name in broken.got:
            unclaimed[claim] = False
            refused = trial, broken
    if unclaimed:
        trial, broken = refused
        raise trial.counterexample(broken, **unclaimed)


def any_cache(compressor: Compressor) -> None:
    """A tame cache comes back compressed: one layer, one row, two heads, float32, half of its keys."""
    trial, broken = _call(compressor, tame(compressor.claims))
    if broken is None:
        return
    for times in (2, 4):
        repeated = compressor.held_to(dataclasses.replace(compressor.claims, repeats_heads=times))
        if _call(repeated, tame(repeated.claims))[1] is None:
            raise trial.counterexample(broken, repeats_heads=times)
    for length in (64, 256, 1024):
        if _call(compressor, tame(compressor.claims).but(lengths=(length,)))[1] is None:
            raise trial.counterexample(broken, min_length=_longest_refused(compressor, length)[0] + 1)
    raise trial.counterexample(broken)


def few_survivors(compressor: Compressor) -> None:
    """A keep ratio may leave a single key."""
    claims = compressor.claims
    if claims.count is None:
        return
    case = tame(claims)
    length = case.lengths[0]
    first = None
    for kept in range(claims.min_kept, length // 2 + 1):
        ratio = next((r / 100 for r in range(1, 51) if claims.count(length, r / 100) == kept), None)
        if ratio is None:
            continue
        trial, broken = _call(compressor, case, ratio)
        if broken is None:
            if first:
                raise first[0].counterexample(first[1], min_kept=kept)
            return
        first = first or (trial, broken)


def short_layers(compressor: Compressor) -> None:
    """A layer may hold a single key."""
    longest, calls = _longest_refused(compressor, tame(compressor.claims).lengths[0])
    if calls:
        trial, broken = calls[-1]
        raise trial.counterexample(broken, min_length=longest + 1)


def several_rows(compressor: Compressor) -> None:
    """A batch may have two rows."""
    if compressor.claims.several_rows:
        _vary(compressor, {"batch": 2}, max_batch=1)


def single_head(compressor: Compressor) -> None:
    """A layer may have a single KV head."""
    if compressor.claims.min_heads == 1:
        _vary(compressor, {"kv_heads": 1}, min_heads=2)


def every_dtype(compressor: Compressor) -> None:
    """Keys may be of any floating dtype that transformers uses."""
    claims = compressor.claims
    calls = {dtype: _call(compressor, tame(claims).but(dtype=dtype)) for dtype in claims.dtypes}
    works = tuple(dtype for dtype, (_, broken) in calls.items() if broken is None)
    for trial, broken in calls.values():
        if broken and works:
            raise trial.counterexample(broken, dtypes=works)


def several_layers(compressor: Compressor) -> None:
    """A cache may have several layers, of unequal lengths."""
    claims = compressor.claims
    if not claims.several_layers:
        return
    length = tame(claims).lengths[0]
    _vary(compressor, {"lengths": (length, length)}, max_layers=1)
    if not claims.equal_lengths:
        _vary(compressor, {"lengths": (length, length + 3)}, equal_lengths=True)


def count_rule(compressor: Compressor) -> None:
    """What is kept follows the claimed rule, or else one of those that are in use."""
    claims = compressor.claims
    if claims.count is None:
        return
    seen = []
    for length in (3, 5, 6, 7, 11, 25, 50, 100):
        for ratio in (0.5, 0.07, 0.28, 0.55, 0.29, 0.9):
            if length >= claims.min_length and claims.allows(length, ratio):
                trial = Trial(compressor)
                try:
                    after = trial.compress(tame(claims).but(lengths=(length,)), ratio).after
                except Broken:
                    return  # a crash is for the checks to find
                seen.append((trial, length, ratio, after[0][0].shape[2]))
    wrong = [call for call in seen if call[3] != claims.count(*call[1:3])]
    if wrong and all(kept == length for _, length, _, kept in seen):
        trial, length, ratio, _ = wrong[0]
        broken = Broken(
            expected=expected_count(claims, length, ratio),
            got=f"{length} keys: nothing is ever evicted, from layers of {seen[0][1]} to {seen[-1][1]} keys",
        )
        raise trial.counterexample(broken)  # of a cache that stays as it was, nothing else is worth asking
    rules = [rule for rule in RULES if all(rule(length, ratio) == kept for _, length, ratio, kept in seen)]
    if wrong and rules:
        trial, length, ratio, kept = wrong[0]
        broken = Broken(
            expected=expected_count(claims, length, ratio),
            got=f"{kept} keys; every count that was tried is that of the rule {rules[0].__name__}",
        )
        raise trial.counterexample(broken, count=rules[0])


#: By the name of the check that reports it, in the order in which they are looked for.
LIMITS: dict[str, Callable[[Compressor], None]] = {
    "takes_prune_after_and_skip_layers": arguments,
    "returns_a_cache": any_cache,
    "keeps_as_few_as_asked": few_survivors,
    "takes_short_layers": short_layers,
    "takes_several_rows": several_rows,
    "takes_a_single_head": single_head,
    "takes_every_float_dtype": every_dtype,
    "takes_layers_of_any_length": several_layers,
    "keeps_the_declared_count": count_rule,
}


def tame(claims: Claims) -> CacheCase:
    """A cache that hardly any compressor would mind, within its claims."""
    dtype = "float32" if "float32" in claims.dtypes else claims.dtypes[0]
    length = max(24, claims.min_length + 8, 2 * claims.min_kept)
    return CacheCase(lengths=(length,), kv_heads=max(2, claims.min_heads), head_dim=8, dtype=dtype)


def expected_count(claims: Claims, length: int, keep_ratio: float) -> str:
    """How many keys the claimed rule asks for, and what that rule is."""
    if claims.count is None:
        return "any number of keys"
    doc = (claims.count.__doc__ or "").split("\n")[0].strip()
    name = getattr(claims.count, "__name__", "<lambda>")
    rule = "the claimed rule" if name == "<lambda>" else f"the claimed rule {name}"
    return f"{claims.count(length, keep_ratio)} of {length} keys at keep ratio {keep_ratio}, by {rule}" + (
        f" ({doc.rstrip('.')})" if doc else ""
    )


def _longest_refused(compressor: Compressor, length: int) -> tuple[int, list[tuple[Trial, Broken]]]:
    """The longest layer up to ``length`` that is refused, and the refused calls from there to the shortest."""
    claims, longest, calls = compressor.claims, 0, []
    for shorter in range(length, claims.min_length - 1, -1):
        ratio = next((ratio for ratio in (0.5, 0.75, 0.9, 0.99) if claims.allows(shorter, ratio)), None)
        if ratio is None:
            break
        trial, broken = _call(compressor, tame(claims).but(lengths=(shorter,)), ratio)
        if broken:
            longest = longest or shorter
            calls.append((trial, broken))
    return longest, calls


def _vary(compressor: Compressor, change: dict[str, Any], **exempts: Any) -> None:
    trial, broken = _call(compressor, tame(compressor.claims).but(**change))
    if broken:
        raise trial.counterexample(broken, **exempts)


def _call(compressor: Compressor, case: CacheCase, keep_ratio: float = 0.5) -> tuple[Trial, Broken | None]:
    trial = Trial(compressor)
    try:
        trial.compress(case, keep_ratio)
    except Broken as broken:
        return trial, broken
    return trial, None
