"""A policy's evictions as the engine plays them forward, against those of a real cache that is fed token by token."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core.contract.findings import Broken, crashed
from knorm_core.contract.policy_cases import PolicyCase, spied
from knorm_core.contract.policy_trials import PolicyTrial
from knorm_core.evaluator import evaluate
from knorm_core.policy import Policy, Seen

ATOL = 1e-5  # nats; the tiny model's RMSNorm rounds to float32, and another survivor moves a loss by a tenth
RTOL = 1e-6  # of scores, for the same reason

#: {(layer, token): positions and scores}: of all alive keys at the eviction before that token, or of that token's key.
Notes = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]


def same_both_ways(trial: PolicyTrial, case: PolicyCase) -> None:
    """What stays, its scores and the losses are the same token by token and in one pass.

    Raises:
        Broken: where they first are not.
    """
    trial.survivors(case)  # so that what it raises is reported as everywhere else
    noted: dict[str, Notes] = {}
    losses = {}
    for method in ("stepwise", "onepass"):
        seen_so_far = noted[method] = {}

        def note(seen: Seen, scores: torch.Tensor, notes: Notes = seen_so_far) -> None:
            _note(trial.policy, notes, seen, scores)

        policy = spied(trial.policy, note)
        try:
            result = evaluate(case.model(), case.input_ids[0], policy=policy, method=method, **case.arguments)
        except Exception as error:
            raise crashed(f"losses ({method})", error) from error
        losses[method] = result.nll
    _same_shown(trial.policy, noted["stepwise"], noted["onepass"])
    apart = (losses["stepwise"] - losses["onepass"]).abs()
    if bool((apart > ATOL).any()):
        token = int((apart > ATOL).nonzero()[0])
        raise Broken(
            expected=f"a loss of {float(losses['stepwise'][token]):.6f}, as token by token",
            got=f"{float(losses['onepass'][token]):.6f} in one pass",
            scored_token=token,
        )


def _same_shown(policy: Policy, stepwise: Notes, onepass: Notes) -> None:
    for place, (positions, scores) in stepwise.items():
        layer, token = place
        other = onepass.get(place)
        where: dict[str, Any] = {"layer": layer, "key" if policy.reads == "key" else "eviction before token": token}
        if other is None or not torch.equal(positions, other[0]):
            raise Broken(
                expected=f"tokens {positions[0, 0].tolist()} alive, as token by token",
                got="none" if other is None else other[0][0, 0].tolist(), **where,
            )  # fmt: skip
        if not torch.allclose(scores.double(), other[1].double(), rtol=RTOL, atol=RTOL, equal_nan=True):
            raise Broken(
                expected=f"scores {_few(scores)}, as token by token", got=f"{_few(other[1])} in one pass", **where
            )


def _note(policy: Policy, notes: Notes, seen: Seen, scores: torch.Tensor) -> None:
    positions = seen.positions
    scores = scores.expand(positions.shape).detach().clone()
    if policy.reads != "key":
        notes[seen.layer, seen.fed] = positions.clone(), scores
        return
    for at, token in enumerate(positions[0, 0].tolist()):  # one by one here, all at once there
        notes[seen.layer, token] = positions[..., at : at + 1].clone(), scores[..., at : at + 1]


def _few(scores: torch.Tensor) -> list[float]:
    return [round(float(score), 6) for score in scores[0, 0, :4]]
