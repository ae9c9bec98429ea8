"""What each family of models shows of a claim: a column per family, also where it was not run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from knorm_core.results.records import Transfer, Verdict

#: In the place of an answer where a family has no table that the claim could be tested on.
NOT_RUN = "not run"
#: In the place of an answer where the claim is one of which no other model can say anything.
OWN_ONLY = "own model only"
#: In the place of an answer where no trained model is asked: arithmetic, and times that do not depend on weights.
OF_NO_MODEL = "no model asked"
#: Families that have a column everywhere: their names by the first part of their tables' names.
FAMILIES: Mapping[str, str] = {
    "smollm2-135m": "SmolLM2-135M",
    "gemma-3-270m-q4_k_m.gguf-fd8ae87d": "Gemma 3 270M",
}

#: Tables that are of no trained model have no column: arithmetic, and times that do not depend on weights.
NO_MODEL = "no-model"
RANDOM_PYTHIA = "random-pythia-70m-shape"
_UNTRAINED = {NO_MODEL: "", RANDOM_PYTHIA: "a random model of Pythia-70M's shape"}


def columns(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """What to call each model that has a column: `FAMILIES`, then every other model of which a verdict speaks.

    >>> list(columns([]).values())
    ['SmolLM2-135M', 'Gemma 3 270M']
    """
    others = dict.fromkeys(model for verdict in verdicts for model in (*verdict.own, *_transfers(verdict)))
    return {**FAMILIES, **{model: model for model in others if model not in {*FAMILIES, *_UNTRAINED}}}


def measured_on(model: str, sentence: str) -> str:
    """The sentence, with what it was measured on before it.

    >>> measured_on("smollm2-135m", "a/b: +3 %"), measured_on(NO_MODEL, "a/b: +3 %")
    ('On smollm2-135m, a/b: +3 %', 'a/b: +3 %')
    """
    name = _UNTRAINED.get(model, model)
    return f"On {name}, {sentence}" if name else sentence


def answer_of(verdict: Verdict, model: str) -> str:
    """What a model shows of a claim in one of the ledger's words, or why it shows nothing.

    That is one of `NOT_RUN`, `OWN_ONLY` and `OF_NO_MODEL`.
    """
    transfer = _transfers(verdict).get(model)
    if transfer:
        return transfer.answer
    if verdict.own and verdict.own.keys() <= _UNTRAINED.keys():
        return OF_NO_MODEL
    return verdict.own.get(model, OWN_ONLY if verdict.own_only else NOT_RUN)


def why_of(verdict: Verdict, model: str) -> str:
    """The sentence behind the answer of a model that the claim is not about; else empty."""
    transfer = _transfers(verdict).get(model)
    return transfer.why if transfer else ""


def _transfers(verdict: Verdict) -> dict[str, Transfer]:
    return {transfer.model: transfer for transfer in verdict.transfers}
