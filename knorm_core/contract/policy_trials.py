"""How a check looks for the smallest case in which a policy breaks a promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st

from knorm_core.contract.findings import Broken, Counterexample, crashed
from knorm_core.contract.policies import CheckedPolicy
from knorm_core.contract.policy_cases import PolicyCase, Survivors, spied
from knorm_core.contract.trials import for_every
from knorm_core.policy import NaNScoresError, Policy, Seen


@dataclass
class PolicyTrial:
    """One attempt to break a promise. It notes every case, so that a finding can repeat them."""

    subject: CheckedPolicy
    cases: list[PolicyCase] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return self.subject.policy

    def survivors(self, case: PolicyCase, note: Callable[[Seen, torch.Tensor], None] | None = None) -> Survivors:
        """Who stays at each eviction; whatever the policy raises breaks the promise."""
        self.cases.append(case)
        policy = self.policy if note is None else spied(self.policy, note)
        try:
            case.setting(policy)
        except ValueError as error:
            if "protect" in str(error) and "keys" in str(error):
                reject()  # more is protected than kept, which is refused before anything runs
            raise crashed("an evaluation", error) from error
        try:
            return case.survivors(policy)
        except NaNScoresError as error:
            broken = crashed("scores that can be ranked", error)
            broken.promise = "scores_can_be_ranked"  # whichever check has drawn the text that shows it
            raise broken from error
        except Exception as error:
            raise crashed("evictions", error) from error

    def counterexample(self, broken: Broken, **exempts: Any) -> Counterexample:
        """What broke, with the cases that show it."""
        calls = [f"print({case!r}.survivors({self.subject.called}))" for case in dict.fromkeys(self.cases)]
        snippet = "\n".join(["from knorm_core.contract import PolicyCase", self.subject.imports, *calls])
        return Counterexample(broken, [repr(case) for case in dict.fromkeys(self.cases)], snippet, exempts)


def for_every_case(
    policy: CheckedPolicy,
    holds: Callable[..., None],
    *,
    texts: int = 1,
    protected: int = 0,
    **drawn: st.SearchStrategy[Any],
) -> None:
    """Look for a case for which ``holds(trial, case, **drawn)`` raises `Broken`; report the smallest.

    Args:
        texts: rows of a batch.
        protected: keys that an eviction keeps at least, beside those that the policy protects.
    """
    for_every(policy, holds, trial=PolicyTrial, case=cases(policy, texts, protected), **drawn)


def cases(policy: CheckedPolicy, texts: int = 1, protected: int = 0) -> st.SearchStrategy[PolicyCase]:
    """Cases in which at least ``protected`` keys, and two that are not, stay at an eviction."""
    claims = policy.claims
    own = policy.policy.recent + getattr(policy.policy, "sinks", 0)
    least = max(own, claims.sinks + claims.recent) + protected + 2

    def made(keep_ratio: float, more: int, after: int, seeds: tuple[int, ...]) -> PolicyCase:
        prune_after = int(least / keep_ratio) + 1 + more
        return PolicyCase(prune_after + 2 + after, prune_after, keep_ratio, seeds=seeds)

    return st.builds(
        made,
        st.sampled_from([0.5, 0.75, 0.25]),
        st.integers(0, 8),
        st.integers(0, 40),
        st.tuples(*[st.integers(0, 99)] * texts),
    )


def same_survivors(expected: Survivors, got: Survivors, until: int | None = None, **where: Any) -> None:
    """The same keys stay at every eviction up to that before token ``until``.

    Raises:
        Broken: at the first eviction where they do not.
    """
    for (layer, step), positions in sorted(expected.items(), key=lambda item: (item[0][1], item[0][0])):
        if until is not None and step > until:
            return
        other = got[layer, step]
        if torch.equal(positions, other):
            continue
        row, head = (
            (int(index) for index in (positions != other).any(-1).nonzero()[0])
            if positions.shape == other.shape
            else (0, 0)
        )
        raise Broken(
            expected=f"tokens {positions[row, head].tolist()} stay",
            got=f"{other[row, head].tolist()}",
            **where,
            layer=layer,
            eviction_before_token=step,
            row=row,
            head=head,
        )
