"""Results as JSON and tensors, and back, to the last bit: how each kind of them is stored.

A codec turns a value into facts (anything that JSON holds) and tensors by name, and makes it of them again.
Names of rows are not stored: they are among the inputs by which a result is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import safetensors.torch
import torch

from knorm_core.counts import Eviction
from knorm_core.evaluation import Evaluation
from knorm_core.sweeps.store import Inputs, Store

Value = TypeVar("Value")
Tensors = dict[str, torch.Tensor]


class Codec(NamedTuple, Generic[Value]):
    """How one kind of result is stored."""

    encode: Callable[[Value], tuple[Any, Tensors]]
    decode: Callable[[Any, Tensors], Value]

    def to_bytes(self, value: Value) -> tuple[Any, bytes]:
        """Facts, and tensors as safetensors."""
        facts, tensors = self.encode(value)
        # Copies, because safetensors refuses tensors that share memory, as rows that are the same do.
        return facts, safetensors.torch.save({name: tensor.cpu().clone() for name, tensor in tensors.items()})

    def of_bytes(self, facts: Any, tensors: bytes) -> Value:
        """The inverse of `to_bytes`."""
        return self.decode(facts, safetensors.torch.load(tensors))


def remember(
    store: Store | None, name: str, inputs: Inputs, compute: Callable[[], Value], codec: Codec[Value]
) -> Value:
    """The stored result for these inputs, or the computed one, which is stored. ``name`` is for people."""
    if store is None:
        return compute()
    stored = store.get(name, inputs, decode=codec.of_bytes)
    if stored is not None:
        return stored.value
    value = compute()
    store.put(name, inputs, *codec.to_bytes(value))
    return value


def each(codec: Codec[Value]) -> Codec[list[Value]]:
    """A list of values, by the codec of one."""

    def encode(values: Sequence[Value]) -> tuple[Any, Tensors]:
        encoded = [codec.encode(value) for value in values]
        tensors = {f"{i}.{name}": tensor for i, (_, held) in enumerate(encoded) for name, tensor in held.items()}
        return [facts for facts, _ in encoded], tensors

    def decode(facts: Any, tensors: Tensors) -> list[Value]:
        held: list[Tensors] = [{} for _ in facts]
        for name, tensor in tensors.items():
            index, _, own = name.partition(".")
            held[int(index)][own] = tensor
        return [codec.decode(*pair) for pair in zip(facts, held, strict=True)]

    return Codec(encode, decode)


def _encode_evaluation(evaluation: Evaluation) -> tuple[Any, Tensors]:
    schedules = list(dict.fromkeys(evaluation.evictions))  # most layers share one
    facts = {
        "effective_prune_after": evaluation.effective_prune_after,
        "seq_len": evaluation.seq_len,
        "schedules": schedules,
        "schedule_of_layer": [schedules.index(evictions) for evictions in evaluation.evictions],
        "sliding_layers": evaluation.sliding_layers,
        "method": evaluation.method,
    }
    return facts, {"nll": evaluation.nll}


def _decode_evaluation(facts: Any, tensors: Tensors) -> Evaluation:
    schedules = [tuple(Eviction(*eviction) for eviction in schedule) for schedule in facts["schedules"]]
    return Evaluation(
        nll=tensors["nll"],
        effective_prune_after=facts["effective_prune_after"],
        seq_len=facts["seq_len"],
        evictions=tuple(schedules[index] for index in facts["schedule_of_layer"]),
        sliding_layers=tuple(facts["sliding_layers"]),
        method=facts["method"],
    )


EVALUATION = Codec(_encode_evaluation, _decode_evaluation)
