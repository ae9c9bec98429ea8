"""How the experiments' results are stored; see `knorm_core.sweeps.codec`."""

from __future__ import annotations

import dataclasses
from typing import Any

from knorm_core.experiments.divergence import Divergence
from knorm_core.experiments.norm_attention import HeadObservation
from knorm_core.experiments.precision import Choices
from knorm_core.sweeps.codec import EVALUATION, Codec, Tensors


def _encode_divergence(divergence: Divergence) -> tuple[Any, Tensors]:
    facts, tensors = EVALUATION.encode(divergence.evaluation)
    return facts, tensors | {"kl": divergence.kl, "same_top": divergence.same_top}


def _decode_divergence(facts: Any, tensors: Tensors) -> Divergence:
    return Divergence(EVALUATION.decode(facts, tensors), tensors["kl"], tensors["same_top"])


def _encode_choices(choices: Choices) -> tuple[Any, Tensors]:
    facts, tensors = EVALUATION.encode(choices.evaluation)
    deaths = {f"deaths.{layer}": deaths for layer, deaths in enumerate(choices.deaths) if deaths is not None}
    return {"evaluation": facts, "layers": len(choices.deaths)}, tensors | deaths


def _decode_choices(facts: Any, tensors: Tensors) -> Choices:
    deaths = tuple(tensors.get(f"deaths.{layer}") for layer in range(facts["layers"]))
    return Choices(EVALUATION.decode(facts["evaluation"], tensors), deaths)


DIVERGENCE = Codec(_encode_divergence, _decode_divergence)
CHOICES = Codec(_encode_choices, _decode_choices)
FLAG: Codec[bool] = Codec(lambda flag: (flag, {}), lambda facts, _: bool(facts))
# JSON writes a float so that it reads as the same to the last bit.
HEAD: Codec[HeadObservation] = Codec(
    lambda head: (dataclasses.asdict(head), {}), lambda facts, _: HeadObservation(**facts)
)
# Rows of numbers and text, as a table has them.
RECORDS: Codec[list[dict[str, Any]]] = Codec(lambda rows: (rows, {}), lambda facts, _: list(facts))
