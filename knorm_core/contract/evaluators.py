"""Evaluators as the checks see them: callables (model, input_ids, keep_ratio, prune_after) to losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from knorm_core.contract import tiny_models
from knorm_core.contract.adapters import import_line, name_of
from knorm_core.contract.claims import EvaluatorClaims
from knorm_core.contract.variants import sparing_the_first
from knorm_core.evaluator import evaluate


@dataclass(frozen=True, repr=False)
class LossFunction:
    """An evaluator as the checks see it, with its claims; make one with `as_evaluator`.

    Attributes:
        name: what it is called in test ids and findings.
        function: (model, input_ids of shape (n,), keep_ratio, prune_after) to the loss in nats of every
            scored token, in order: a 1-D tensor, array or list.
        claims: the protocol it is held to.
    """

    name: str
    function: Callable[[Any, torch.Tensor, float, int], Any]
    claims: EvaluatorClaims

    def __call__(self, model: Any, input_ids: torch.Tensor, keep_ratio: float, prune_after: int) -> Any:
        """What the function returns, untouched."""
        return self.function(model, input_ids, keep_ratio, prune_after)

    def __repr__(self) -> str:
        return self.name

    def held_to(self, claims: EvaluatorClaims) -> LossFunction:
        """The same evaluator with other claims."""
        return replace(self, claims=claims)

    @property
    def imports(self) -> str:
        return import_line(self.function)[0]

    @property
    def called(self) -> str:
        return import_line(self.function)[1]


def as_evaluator(evaluator: Any, claims: EvaluatorClaims | None = None, name: str | None = None) -> LossFunction:
    """A callable (model, input_ids, keep_ratio, prune_after) to losses, or a `LossFunction`, with its claims.

    >>> as_evaluator(knorm_onepass).claims.score_from
    'phase2'

    Raises:
        TypeError: it is not callable.
    """
    if isinstance(evaluator, LossFunction):
        return replace(evaluator, claims=claims or evaluator.claims, name=name or evaluator.name)
    if not callable(evaluator):
        raise TypeError(f"evaluator={evaluator!r} is not callable: give (model, input_ids, keep_ratio, prune_after)")
    return LossFunction(name or name_of(evaluator), evaluator, claims or EvaluatorClaims())


def knorm_onepass(model: Any, input_ids: torch.Tensor, keep_ratio: float, prune_after: int) -> torch.Tensor:
    """`knorm_core.evaluate` in its default form."""
    return evaluate(model, input_ids, keep_ratio=keep_ratio, prune_after=prune_after).nll


def knorm_stepwise(model: Any, input_ids: torch.Tensor, keep_ratio: float, prune_after: int) -> torch.Tensor:
    """`knorm_core.evaluate` by its oracle, token by token."""
    return evaluate(model, input_ids, keep_ratio=keep_ratio, prune_after=prune_after, method="stepwise").nll


@functools.lru_cache(maxsize=1024)
def reference(claims: EvaluatorClaims, model: str, seq_len: int, keep_ratio: float, prune_after: int) -> torch.Tensor:
    """The losses that an evaluator with these claims has to return, by the definition.

    Args:
        model: name of a function of `knorm_core.contract.tiny_models`.
    """
    return evaluate(
        getattr(tiny_models, model)(),
        tiny_models.text(seq_len),
        keep_ratio=keep_ratio,
        prune_after=prune_after,
        compressor=sparing_the_first(claims.compressor, claims.first_eviction_after),
        adjust=claims.adjust,
        score_from=claims.score_from,
        skip_layers=claims.skip_layers,
        when=claims.when,
        positions=claims.positions,
        allow_no_eviction=True,
        method="stepwise",
    ).nll
