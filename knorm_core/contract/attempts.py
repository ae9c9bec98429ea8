"""Runs of an evaluator on the tiny models, and what its losses are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from knorm_core.contract import tiny_models
from knorm_core.contract.claims import EvaluatorClaims
from knorm_core.contract.evaluators import LossFunction, reference
from knorm_core.contract.findings import Broken, Counterexample, crashed

ATOL = 1e-5  # nats; evaluators may work in float32, and the faults move losses by a tenth of a nat


# How an evaluator says no. Anything else that it raises is a crash.
REFUSALS = (ValueError, NotImplementedError, AssertionError)


class TinyRun(NamedTuple):
    """One setting: the text's length in tokens, the keep ratio, prune_after, and the model by name."""

    seq_len: int
    keep_ratio: float
    prune_after: int
    model: str = "llama"

    @property
    def arguments(self) -> str:
        """The arguments of the evaluator, as code."""
        return f"tiny_models.{self.model}(), tiny_models.text({self.seq_len}), {self.keep_ratio}, {self.prune_after}"

    def __str__(self) -> str:
        setting = f"keep_ratio={self.keep_ratio}, prune_after={self.prune_after}"
        return f"{self.seq_len} random tokens on a tiny {self.model}, {setting}"


class Attempt:
    """Runs an evaluator and notes how, so that a finding can repeat it."""

    def __init__(self, evaluator: LossFunction) -> None:
        self.evaluator = evaluator
        self.runs: list[TinyRun] = []

    def run(self, seq_len: int, keep_ratio: float, prune_after: int, model: str = "llama") -> TinyRun:
        """A setting, its text lengthened to the shortest that the evaluator claims to take."""
        return TinyRun(max(seq_len, self.evaluator.claims.min_text), keep_ratio, prune_after, model)

    def returned(self, run: TinyRun, model: Any = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """What the evaluator returned, as float64, of whatever shape; an exception breaks the promise."""
        self.runs.append(run)
        model = getattr(tiny_models, run.model)() if model is None else model
        tokens = tiny_models.text(run.seq_len) if tokens is None else tokens
        try:
            losses = self.evaluator(model, tokens, run.keep_ratio, run.prune_after)
        except Exception as error:
            raise crashed("losses", error) from error
        if isinstance(losses, (list, tuple)):
            losses = [float(loss) for loss in losses]
        return torch.as_tensor(losses, dtype=torch.float64).detach().cpu()

    def losses(self, run: TinyRun, model: Any = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Losses as float64 (scored,); an exception breaks the promise."""
        losses = self.returned(run, model, tokens)
        scored = self.evaluator.claims.scored(run.seq_len, run.prune_after)
        if losses.shape != (len(scored),):
            got = f"{len(losses)} losses" if losses.ndim == 1 else f"a tensor of shape {tuple(losses.shape)}"
            raise Broken(
                expected=f"{len(scored)} losses, of tokens {scored.start} to {run.seq_len - 1}",
                got=got + self._which(run, losses),
            )
        return losses

    def losses_or_refusal(self, run: TinyRun) -> tuple[torch.Tensor | None, str]:
        """Losses as float64 (scored,), or None and what was raised if this was a refusal."""
        try:
            return self.losses(run), ""
        except Broken as broken:
            if isinstance(broken.__cause__, REFUSALS):
                return None, broken.got
            raise

    def compare(self, run: TinyRun, expected: torch.Tensor, got: torch.Tensor, **where: Any) -> None:
        """Losses agree, token by token."""
        if expected.shape != got.shape:
            raise Broken(
                expected=f"{len(expected)} losses",
                got=f"{got.numel()} losses" if got.ndim == 1 else f"a tensor of shape {tuple(got.shape)}",
                **where,
            )
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

    def compare_with_definition(self, run: TinyRun) -> None:
        """The losses are those of the definition."""
        self.compare(run, definition(self.evaluator.claims, run), self.losses(run))

    def is_not(self, run: TinyRun, claims: EvaluatorClaims, does: str) -> None:
        """The losses, where they are not those of the definition, are not those of these other claims either."""
        got = self.returned(run)
        expected, other = definition(self.evaluator.claims, run), definition(claims, run)
        if got.shape == other.shape and bool(((other - got).abs() <= ATOL).all()):
            try:
                self.compare(run, expected, got)
            except Broken as broken:
                broken.got += f": exactly the losses of an evaluator that {does}"
                raise

    def counterexample(self, broken: Broken, **exempts: Any) -> Counterexample:
        """What broke, with the last run, which shows it."""
        run = self.runs[-1]
        call = f"print({self.evaluator.called}({run.arguments}))"
        snippet = "\n".join(["from knorm_core.contract import tiny_models", self.evaluator.imports, call])
        return Counterexample(broken, [str(run)], snippet, exempts)

    def _which(self, run: TinyRun, losses: torch.Tensor) -> str:
        """Which tokens these are the losses of, where that can be told."""
        if losses.ndim != 1 or len(losses) < 2:
            return ""
        claims = self.evaluator.claims
        every = reference(
            EvaluatorClaims(claims.compressor, claims.adjust, "start", claims.skip_layers, claims.when),
            run.model, run.seq_len, run.keep_ratio, run.prune_after,
        )  # fmt: skip
        for start in range(len(every) - len(losses) + 1):
            if bool(((every[start : start + len(losses)] - losses).abs() <= ATOL).all()):
                return f": those of tokens {start + 1} to {start + len(losses)}"
        if len(losses) == len(every) + 1 and bool(((every - losses[1:]).abs() <= ATOL).all()):
            return ": those of every token and one before them, of the first token (the BOS), which nothing predicts"
        return ""


@contextlib.contextmanager
def attempting(evaluator: LossFunction) -> Iterator[Attempt]:
    """An attempt whose broken promise becomes a counter-example."""
    attempt = Attempt(evaluator)
    try:
        yield attempt
    except Broken as broken:
        raise attempt.counterexample(broken) from None


def definition(claims: EvaluatorClaims, run: TinyRun) -> torch.Tensor:
    """The losses that an evaluator with these claims has to return."""
    return reference(claims, run.model, run.seq_len, run.keep_ratio, run.prune_after)


def plain_losses(run: TinyRun) -> torch.Tensor:
    """Losses of tokens 1 to n-1 in one forward pass."""
    tokens = tiny_models.text(run.seq_len)
    with torch.no_grad():
        logits = getattr(tiny_models, run.model)()(tokens[None, :-1]).logits[0]
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
