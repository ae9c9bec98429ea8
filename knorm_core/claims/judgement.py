"""From claims and tables to verdicts: the only place where a verdict is decided.

A claim is tested on the model that it is about. It is *reproduced* where it holds; *explained* where it holds under
a named fault and not without it; *refuted* where it does not hold; *not testable here* where there is no table to
test it on, or the data leave it open. Where the model was not run, another may stand in: what that one shows is kept
apart and is no verdict on the claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from knorm_core.claims.answer import Outcome, all_of
from knorm_core.claims.checks import CHECKS
from knorm_core.claims.loading import ANY_MODEL, Claim, Fault
from knorm_core.claims.tables import Missing, Tables, models, named_after
from knorm_core.results.records import Number, Results, StandIn, Verdict

REPRODUCED, EXPLAINED, REFUTED, NOT_TESTABLE = "reproduced", "explained", "refuted", "not testable here"

_IN_FULL = 2  # tables whose numbers a sentence gives

# A claim about any model falls with the first model that refutes it.
_WEIGHT = (REFUTED, EXPLAINED, NOT_TESTABLE, REPRODUCED)


@dataclass(frozen=True)
class _Finding:
    """What one model's tables say of a claim; ``needs`` where they leave it open."""

    model: str
    verdict: str
    why: str
    numbers: tuple[Number, ...]
    tables: tuple[str, ...]
    needs: str = ""


def judge(claims: Iterable[Claim], results: Results) -> list[Verdict]:
    """The verdict on every claim, in the claims' order: a function of the tables of ``results`` and of nothing else."""
    return [_judge(claim, results) for claim in claims]


def _judge(claim: Claim, results: Results) -> Verdict:
    own = models(results) if claim.about == ANY_MODEL else named_after(results, claim.about)
    findings, missing = [], ""
    for model in own:
        try:
            findings.append(_find(claim, results, model, claim.text_sets))
        except Missing as error:
            missing = missing or str(error)
    if not findings:
        absent = missing or "there are no tables at all"
        return _verdict(
            claim, verdict=NOT_TESTABLE, why=_sentence(absent), needs=claim.needs, stand_in=_stand_in(claim, results)
        )
    found = min(findings, key=lambda finding: _WEIGHT.index(finding.verdict))
    beside = "".join(f"; {other.model}: {other.verdict}" for other in findings if other is not found)
    return _verdict(
        claim, verdict=found.verdict, why=_sentence(f"On {found.model}, {found.why}{beside}"),
        numbers=found.numbers, tables=found.tables, needs=found.needs,
    )  # fmt: skip


def _verdict(claim: Claim, **found: object) -> Verdict:
    return Verdict(
        id=claim.id,
        source=claim.source,
        claim=claim.claim,
        where=claim.where,
        setting=claim.setting,
        about=claim.about,
        expected=claim.expected_text,
        tolerance=claim.tolerance_text,
        **found,  # type: ignore[arg-type]
    )


def _stand_in(claim: Claim, results: Results) -> StandIn | None:
    """What another model shows on the claim's own texts, else what any model does on the texts that may stand in."""
    if claim.stand_in is None:
        return None
    for text_sets in (claim.text_sets, claim.stand_in):
        for model in models(results):
            try:
                found = _find(claim, results, model, text_sets)
            except Missing:
                continue
            return StandIn(model, found.verdict, _sentence(f"On {model}, {found.why}"), found.numbers, found.tables)
    return None


def _find(claim: Claim, results: Results, model: str, text_sets: Sequence[str]) -> _Finding:
    """The verdict of one model's tables.

    Raises:
        Missing: it has none that the claim could be tested on.
    """
    tables = Tables(results, model, claim.settings)
    plain = _outcome(claim, tables, text_sets)
    why, numbers, names = plain.why, list(plain.numbers), list(plain.tables)
    explained = False
    for fault, outcome in _under_faults(claim, tables, text_sets):
        explained |= bool(outcome.holds)
        why += f"; {_beside(plain.holds, fault, outcome.holds)} ({outcome.why})"
        numbers += [Number(f"{fault}: {one.what}", one.value, one.low, one.high) for one in outcome.numbers]
        names += outcome.tables
    verdict = REPRODUCED if plain.holds else NOT_TESTABLE if plain.holds is None else REFUTED
    if explained and plain.nowhere:
        verdict = EXPLAINED
    return _Finding(model, verdict, why, tuple(numbers), tuple(dict.fromkeys(names)), plain.needs)


@dataclass(frozen=True)
class _Merged(Outcome):
    """The outcome on all tables; ``nowhere``: whether the claim fails on every one of them."""

    tables: tuple[str, ...] = ()
    nowhere: bool = False


def _under_faults(claim: Claim, tables: Tables, text_sets: Sequence[str]) -> Iterator[tuple[str, _Merged]]:
    """What comes out under every fault that was measured."""
    for name, fault in claim.faults.items():
        try:
            yield name, _outcome(claim, tables, text_sets, fault)
        except Missing:
            continue


def _outcome(claim: Claim, tables: Tables, text_sets: Sequence[str], fault: Fault | None = None) -> _Merged:
    """The check on every table that there is, as one outcome: it holds where it holds on all of them."""
    arguments = {**claim.arguments, **(fault.arguments if fault else {})}
    found: dict[str, Outcome] = {}
    missing = None
    for text_set in text_sets:
        for what in (fault and fault.tables) or claim.tables:
            name = f"{text_set}/{what}"
            try:
                table = tables.table(name)
                found[table.name] = CHECKS[claim.check](tables, name, **arguments)
            except Missing as error:
                missing = missing or error
    if not found:
        raise missing or Missing(f"claim {claim.id} names no tables")
    prefix, holds = len(tables.model) + 1, all_of([outcome.holds for outcome in found.values()])
    return _Merged(
        holds=holds,
        why=_why({name[prefix:]: outcome for name, outcome in found.items()}, holds),
        numbers=tuple(
            Number(f"{name[prefix:]}, {one.what}", one.value, one.low, one.high)
            for name, outcome in found.items()
            for one in outcome.numbers
        ),
        needs="" if holds is not None else next(one.needs for one in found.values() if one.holds is None),
        tables=tuple(found),
        nowhere=all(outcome.holds is False for outcome in found.values()),
    )


def _why(found: Mapping[str, Outcome], holds: bool | None) -> str:
    """One clause for all tables: what decides in full, twice at most, and the names of the others."""
    deciding = [name for name, outcome in found.items() if outcome.holds == holds]
    clauses = [f"{name}: {found[name].why}" for name in deciding[:_IN_FULL]]
    groups = {"likewise": deciding[_IN_FULL:]}
    for words, other in (("holding", True), ("open", None), ("not holding", False)):
        if other != holds:
            groups[words] = [name for name, outcome in found.items() if outcome.holds == other]
    return "; ".join([*clauses, *(f"{words} on {', '.join(names)}" for words, names in groups.items() if names)])


def _beside(plain: bool | None, fault: str, holds: bool | None) -> str:
    """How a fault's outcome is put beside the one without it."""
    if holds is None:
        return f"open under {fault}"
    if holds:
        return f"under {fault} as well" if plain else f"but it comes out under {fault}"
    return f"not under {fault}" if plain else f"nor under {fault}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
