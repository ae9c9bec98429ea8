"""From claims and tables to verdicts: rules decide, this puts their answers together.

A verdict is on a model that the claim is about. What any other model shows is kept apart, model by model: the claim
carries over to it, does not, or that is open. `knorm_core.results.records.VERDICTS` defines the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from knorm_core.claims import rules
from knorm_core.claims.checks import CHECKS, OF_MANY_TEXTS, OF_TRAINED_MODELS, Answer
from knorm_core.claims.loading import Claim, Fault
from knorm_core.claims.tables import Incomplete, Missing, Tables, models, named_after
from knorm_core.results.families import measured_on
from knorm_core.results.interval import FEWEST_TEXTS
from knorm_core.results.records import (
    CARRIES_OVER,
    DOES_NOT_CARRY_OVER,
    EXPLAINED,
    NOT_TESTABLE,
    OPEN,
    REFUTED,
    REPRODUCED,
    Number,
    Results,
    Transfer,
    Verdict,
    is_number,
)

_IN_FULL = 2  # tables whose numbers a sentence gives

# Of several models that a claim is about, the first of these that one has.
_WEIGHT = (REFUTED, EXPLAINED, OPEN, REPRODUCED)
_TRANSFER = {REPRODUCED: CARRIES_OVER, EXPLAINED: DOES_NOT_CARRY_OVER, REFUTED: DOES_NOT_CARRY_OVER, OPEN: OPEN}


@dataclass(frozen=True)
class _Finding:
    """What one model's tables say of a claim; ``needs`` where they leave it open."""

    model: str
    verdict: str
    why: str
    numbers: tuple[Number, ...]
    tables: tuple[str, ...]
    needs: str


def judge(claims: Iterable[Claim], results: Results) -> list[Verdict]:
    """The verdict on every claim, in the claims' order: a function of the tables of ``results`` and of nothing else."""
    return [_judge(claim, results) for claim in claims]


def _judge(claim: Claim, results: Results) -> Verdict:
    measured = models(results)
    own = measured if claim.about_any_model else [slug for about in claim.about for slug in named_after(results, about)]
    findings, missing = [], ""
    for model in own:
        try:
            findings.append(_find(claim, results, model, [claim.text_sets]))
        except Missing as error:
            missing = missing or str(error)
    if findings:
        decisive = min(findings, key=lambda finding: _WEIGHT.index(finding.verdict))
        beside = "".join(f"; {other.model}: {other.verdict}" for other in findings if other is not decisive)
        why = measured_on(decisive.model, f"{decisive.why}{beside}")
    else:
        decisive = _Finding("", NOT_TESTABLE, "", (), (), claim.needs)
        why = missing or "there are no tables at all"
    return Verdict(
        id=claim.id,
        source=claim.source,
        claim=claim.claim,
        where=claim.where,
        setting=claim.setting,
        about=", ".join(claim.about),
        expected=claim.expected_text,
        tolerance=claim.tolerance_text,
        verdict=decisive.verdict,
        why=_sentence(why),
        numbers=decisive.numbers,
        needs=decisive.needs,
        transfers=[] if claim.stand_in is None else _transfers(claim, results, [m for m in measured if m not in own]),
        tables=decisive.tables,
        own={finding.model: finding.verdict for finding in findings},
        own_only=claim.stand_in is None and not claim.about_any_model,
    )


def _transfers(claim: Claim, results: Results, others: Sequence[str]) -> list[Transfer]:
    """What other models show on the claim's own texts, else on the texts that may stand in for them."""
    transfers = []
    for model in others:
        try:
            finding = _find(claim, results, model, [claim.text_sets, claim.stand_in or ()])
        except Missing:
            continue
        why = f"On {finding.why}{f'; needs {finding.needs}' if finding.needs else ''}."
        transfers.append(Transfer(model, _TRANSFER[finding.verdict], why, finding.numbers, finding.tables))
    return transfers


def _find(claim: Claim, results: Results, model: str, choices: Sequence[Sequence[str]]) -> _Finding:
    """What one model's tables say, on the first of several choices of text sets that it has tables of.

    Raises:
        Missing: it has none that the claim could be tested on.
    """
    tables = Tables(results, model, claim.settings)
    plain, text_sets = _first(claim, tables, choices)
    why, numbers, names, under_faults = plain.why, list(plain.numbers), list(plain.tables), []
    for fault in claim.faults.values():
        try:
            other = _on_all_tables(claim, tables, text_sets, fault)
        except Missing:
            continue
        under_faults.append(other.holds)
        why += f"; {_beside(plain.holds, fault.name, other.holds)} ({other.why})"
        numbers += [Number.named(f"{fault.name}: {number.what}", number) for number in other.numbers]
        names += other.tables
    verdict = rules.verdict(plain.holds, under_faults, fails_everywhere=plain.fails_everywhere)
    return _Finding(model, verdict, why, tuple(numbers), tuple(dict.fromkeys(names)), plain.needs)


@dataclass(frozen=True)
class _Merged(Answer):
    """The answer of all tables; ``fails_everywhere``: whether the claim fails on every one of them."""

    tables: tuple[str, ...] = ()
    fails_everywhere: bool = False


def _first(claim: Claim, tables: Tables, choices: Sequence[Sequence[str]]) -> tuple[_Merged, Sequence[str]]:
    missing = None
    for text_sets in choices:
        try:
            return _on_all_tables(claim, tables, text_sets), text_sets
        except Missing as error:
            missing = missing or error
    raise missing or Missing(f"claim {claim.id} names no tables")


def _on_all_tables(claim: Claim, tables: Tables, text_sets: Sequence[str], fault: Fault | None = None) -> _Merged:
    """The check on every table that there is, as one answer: it holds where it holds on all of them."""
    arguments = {**claim.arguments, **(fault.arguments if fault else {})}
    answers: dict[str, Answer] = {}
    missing = None
    for text_set in text_sets:
        for kind in (fault and fault.tables) or claim.tables:
            name = f"{text_set}/{kind}"
            try:
                answers[tables.table(name).name] = _answer(claim.check, tables, name, arguments)
            except Missing as error:
                missing = missing or error
    if not answers:
        raise missing or Missing(f"claim {claim.id} names no tables")
    prefix, holds = len(tables.model) + 1, rules.all_of([answer.holds for answer in answers.values()])
    return _Merged(
        holds=holds,
        why=_why({name[prefix:]: answer for name, answer in answers.items()}, holds),
        numbers=tuple(
            Number.named(f"{name[prefix:]}, {number.what}", number)
            for name, answer in answers.items()
            for number in answer.numbers
        ),
        needs="" if holds is not None else next(answer.needs for answer in answers.values() if answer.holds is None),
        tables=tuple(answers),
        fails_everywhere=all(answer.holds is False for answer in answers.values()),
    )


def _answer(check: str, tables: Tables, name: str, arguments: Mapping[str, object]) -> Answer:
    """The check's answer; open where the table lacks what its rule needs, or the model is evidence of nothing."""
    if check in OF_TRAINED_MODELS and not name.startswith("latency/") and (nothing := tables.no_evidence()):
        return Answer(None, nothing, (), "a model that has learned something")
    try:
        answer = CHECKS[check](tables, name, **arguments)
    except Incomplete as error:
        return Answer(None, "a number that the rule needs was not recorded", (), str(error))
    texts = [row["texts"] for row in tables.table(name).rows if is_number(row.get("texts"))]
    if check not in OF_MANY_TEXTS or not texts or min(texts) >= FEWEST_TEXTS:
        return answer
    many = "1 text is" if min(texts) == 1 else f"{min(texts):g} texts are"
    why = f"{answer.why} ({many} too few for a verdict)"
    return replace(answer, holds=None, why=why, needs=f"at least {FEWEST_TEXTS} texts")


def _why(answers: Mapping[str, Answer], holds: bool | None) -> str:
    """One clause for all tables: what decides in full, twice at most, and the names of the others."""
    deciding: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if answer.holds == holds:
            deciding.setdefault(answer.why, []).append(name)
    clauses = [f"{', '.join(names)}: {why}" for why, names in [*deciding.items()][:_IN_FULL]]
    groups = {"likewise": [name for names in [*deciding.values()][_IN_FULL:] for name in names]}
    for words, other in (("holding", True), ("open", None), ("not holding", False)):
        if other != holds:
            groups[words] = [name for name, answer in answers.items() if answer.holds == other]
    return "; ".join([*clauses, *(f"{words} on {', '.join(names)}" for words, names in groups.items() if names)])


def _beside(plain: bool | None, fault: str, holds: bool | None) -> str:
    """How a fault's answer is put beside the one without it."""
    if holds is None:
        return f"open under {fault}"
    if holds:
        return f"under {fault} as well" if plain else f"but it comes out under {fault}"
    return f"not under {fault}" if plain else f"nor under {fault}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
