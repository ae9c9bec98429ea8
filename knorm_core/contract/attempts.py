"""Runs of an evaluator on the tiny models, and what its losses are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from knorm_core.contract import tiny_models
from knorm_core.contract.checks import Counterexample, raised
from knorm_core.contract.claims import EvaluatorClaims
from knorm_core.contract.evaluators import Evaluator, reference
from knorm_core.contract.findings import Broken

ATOL = 1e-5  # nats; evaluators may work in float32, and the faults move losses by a tenth of a nat


# How an evaluator says no. Anything else that it raises is a crash.
REFUSALS = (ValueError, NotImplementedError, AssertionError)


class Run(NamedTuple):
    """One setting: the text's length in tokens, the keep ratio, prune_after, and the model by name."""

    seq_len: int
    keep_ratio: float
    prune_after: int
    model: str = "llama"

    def text(self) -> str:
        return f"tiny_models.{self.model}(), tiny_models.text({self.seq_len}), {self.keep_ratio}, {self.prune_after}"


class Attempt:
    """Runs an evaluator and notes how, so that a finding can repeat it."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.runs: list[Run] = []

    def losses(self, run: Run, model: Any = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Losses as float64 (scored,); an exception breaks the promise."""
        losses, refusal = self.losses_or_refusal(run, model, tokens)
        if losses is None:
            raise Broken(expected="losses", got=refusal)
        return losses

    def losses_or_refusal(
        self, run: Run, model: Any = None, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, str]:
        """Losses as float64 (scored,), or None and what was raised if this was a refusal."""
        self.runs.append(run)
        model = getattr(tiny_models, run.model)() if model is None else model
        tokens = tiny_models.text(run.seq_len) if tokens is None else tokens
        try:
            returned = self.evaluator(model, tokens, run.keep_ratio, run.prune_after)
        except REFUSALS as error:
            return None, raised(error)
        except Exception as error:
            raise Broken(expected="losses", got=raised(error)) from error
        if isinstance(returned, (list, tuple)):
            returned = [float(loss) for loss in returned]
        losses = torch.as_tensor(returned, dtype=torch.float64).detach().cpu()
        scored = self.evaluator.claims.scored(run.seq_len, run.prune_after)
        if losses.shape != (len(scored),):
            raise Broken(
                expected=f"{len(scored)} losses, of tokens {scored.start} to {run.seq_len - 1}",
                got=f"{len(losses)} losses" if losses.ndim == 1 else f"a tensor of shape {tuple(losses.shape)}",
            )
        return losses, ""

    def compare(self, run: Run, expected: torch.Tensor, got: torch.Tensor, **where: object) -> None:
        """Losses agree, token by token."""
        apart = (expected - got).abs()
        wrong = ~(apart <= ATOL)  # True for NaN
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            token = self.evaluator.claims.scored(run.seq_len, run.prune_after).start + first
            raise Broken(
                expected=f"a loss of {float(expected[first]):.6f} for token {token}",
                got=f"{float(got[first]):.6f}, and {int(wrong.sum())} of {len(got)} losses differ",
                **where,
            )

    def compare_with_definition(self, run: Run, faults: dict[str, dict[str, Any]]) -> None:
        """The losses are those of the definition; where they are those of a known fault, say so."""
        got = self.losses(run)
        claims = self.evaluator.claims
        try:
            self.compare(run, definition(claims, run), got)
        except Broken as broken:
            for fault, setting in faults.items():
                if bool(((definition(claims, run, **setting) - got).abs() <= ATOL).all()):
                    broken.got += f": exactly those of {fault}"
            raise


@contextlib.contextmanager
def attempting(evaluator: Evaluator) -> Iterator[Attempt]:
    attempt = Attempt(evaluator)
    try:
        yield attempt
    except Broken as broken:
        run = attempt.runs[-1]
        example = [f"{run.seq_len} random tokens on a tiny {run.model}, {run.keep_ratio=}, {run.prune_after=}"]
        example = [example[0].replace("run.", "")]
        call = f"print({evaluator.called}({run.text()}))"
        snippet = "\n".join(filter(None, ["from knorm_core.contract import tiny_models", evaluator.imports, call]))
        raise Counterexample(broken, example, snippet) from None


def definition(claims: EvaluatorClaims, run: Run, **changes: Any) -> torch.Tensor:
    """The losses that the evaluator has to return."""
    return reference(claims, run.model, run.seq_len, run.keep_ratio, run.prune_after, **changes)


def plain_losses(run: Run) -> torch.Tensor:
    """Losses of tokens 1 to n-1 in one forward pass."""
    tokens = tiny_models.text(run.seq_len)
    with torch.no_grad():
        logits = getattr(tiny_models, run.model)()(tokens[None, :-1]).logits[0]
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
