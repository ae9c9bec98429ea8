"""Policies as the checks see them, with what they claim."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

from knorm_core.contract.adapters import import_line
from knorm_core.policy import Policy
from knorm_core.policy_names import find_policy, policy_label


@dataclass(frozen=True)
class PolicyClaims:
    """What a policy promises. The defaults hold for a policy that the engine may evaluate.

    Attributes:
        rows: each row of a batch is scored as if it were alone.
        heads: each KV head is scored as if it were alone. Not asked of a policy whose scores are shaped
            (rows, 1, alive): it says so that all heads keep the same tokens.
        finite: scores outside its own window are finite.
        sinks, recent: so many first and latest tokens always stay because of their scores; what `evaluate` protects,
            and what the policy declares as `Policy.recent`, is no claim.
        declared_alone: nothing but what it declares to read changes its scores: no global variable, no other attribute.
    """

    rows: bool = True
    heads: bool = True
    finite: bool = True
    sinks: int = 0
    recent: int = 0
    declared_alone: bool = True


@dataclass(frozen=True, repr=False, eq=False)
class CheckedPolicy:
    """A policy as the checks see it; make one with `as_policy`.

    Attributes:
        name: what it is called in test ids and findings.
        claims: what it is held to.
        imports, called: for the snippet of a finding: its import line, and the expression that makes it.
    """

    name: str
    policy: Policy
    claims: PolicyClaims
    imports: str
    called: str

    def __repr__(self) -> str:
        return self.name

    def held_to(self, claims: PolicyClaims) -> CheckedPolicy:
        """The same policy with other claims."""
        return replace(self, claims=claims)


def as_policy(policy: Any, claims: PolicyClaims | None = None, name: str | None = None) -> CheckedPolicy:
    """A policy with its claims: an instance, a name in `knorm_core.POLICIES`, or "package.module:Name".

    >>> as_policy("tova")
    tova

    Args:
        policy: what "package.module:Name" leads to may also be what this function made.
        claims: what it is held to.
        name: default, what tables call it.

    Raises:
        TypeError, ValueError: it means no policy; see `knorm_core.policy_names.find_policy`.
    """
    module, colon, attribute = policy.partition(":") if isinstance(policy, str) else ("", "", "")
    if colon and module and attribute:
        made = _made_already(module, attribute)
        policy = made or policy
    if isinstance(policy, CheckedPolicy):
        return replace(policy, claims=claims or policy.claims, name=name or policy.name)
    meant = find_policy(policy)
    imports, called = import_line(type(meant))
    return CheckedPolicy(
        name=name or policy_label(meant),
        policy=meant,
        claims=claims or PolicyClaims(),
        imports=imports,
        called=repr(meant).replace(type(meant).__name__, called, 1),
    )


def _made_already(module: str, attribute: str) -> CheckedPolicy | None:
    try:
        made = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None  # which `find_policy` says
    return made if isinstance(made, CheckedPolicy) else None
