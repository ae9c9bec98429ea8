"""Which policy a name means, what a policy is called in a table, and what makes it the same policy elsewhere."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from typing import Any

from knorm_core.counts import check_int
from knorm_core.policies import POLICIES
from knorm_core.policy import READS, Policy, PolicyError

_OLD = {
    "recent": "policy='recent' is called 'newest' now; recent= protects the latest tokens with any policy",
    "sink_recent": "policy='sink_recent' is policy='newest' with sinks=4 now",
}


def find_policy(policy: Any, seed: int = 0) -> Policy:
    """The policy that a name, or a policy itself, stands for; checked.

    >>> find_policy("newest")
    Newest()
    >>> find_policy("knorm_core.policies.random:Random", seed=3)
    Random(seed=3)

    Args:
        policy: a `Policy`, a name in `POLICIES`, or ``"package.module:Name"`` of a class that takes no arguments,
            or of an instance.
        seed: given to a policy that is named and has one.

    Raises:
        TypeError, ValueError: it means no policy, or one that declares what does not exist.
    """
    if isinstance(policy, str):
        meant = POLICIES.get(policy) or _imported(policy)
    else:
        meant = policy
    if isinstance(meant, type) and issubclass(meant, Policy):
        if meant is policy:
            raise TypeError(f"policy={policy.__name__} is a class: give an instance, {policy.__name__}()")
        meant = _instance(policy, meant, seed)
    elif isinstance(policy, Policy) and seed:
        raise ValueError(f"seed={seed} goes with a policy that is given by name; policy={policy!r} is complete")
    if not isinstance(meant, Policy):
        raise TypeError(
            f"policy={policy!r} is not a policy: give one of {', '.join(map(repr, POLICIES))}, an instance of a "
            f"subclass of knorm_core.Policy, or 'package.module:Name' of one"
        )
    return _checked(meant)


def policy_label(policy: Policy) -> str:
    """What a policy is called in tables: its name in `POLICIES`, or its class, with the parameters that it has.

    >>> policy_label(find_policy("snapkv")), policy_label(find_policy("random"))
    ('snapkv', 'random')
    """
    name = next((name for name, kind in POLICIES.items() if kind is type(policy)), type(policy).__name__)
    if type(policy) in POLICIES.values() and policy == type(policy)():
        return name
    parameters = ", ".join(f"{key}={value!r}" for key, value in _parameters(policy).items())
    return f"{name}({parameters})" if parameters else name


def policy_identity(policy: Policy) -> str | None:
    """What makes two policies the same one, in any process: import name, hash of the source, parameters.

    The source is that of every module which a class of the policy comes from, but for `knorm_core.policy`. Of a
    parameter that is a policy, it is that policy's identity.

    A parameter that JSON cannot hold may say what it is by an attribute ``identity``, a str.

    Returns:
        None where there is no such thing: the class cannot be imported by name (it was made in a function or a
        script), has no source, or holds something that JSON cannot. Such a policy is evaluated and never stored.
    """
    kind = type(policy)
    if kind.__module__ == "__main__" or _attribute(kind.__module__, kind.__qualname__) is not kind:
        return None
    kinds = [base for base in kind.__mro__ if issubclass(base, Policy) and base is not Policy]
    try:
        sources = [inspect.getsource(sys.modules[base.__module__]) for base in kinds]
        parameters = json.dumps(_parameters(policy), sort_keys=True, allow_nan=False, default=_own_identity)
    except (OSError, TypeError, ValueError):
        return None
    digest = hashlib.sha256("\0".join(sources).encode()).hexdigest()
    return f"{kind.__module__}:{kind.__qualname__} sha256:{digest} {parameters}"


def _own_identity(parameter: Any) -> str:
    identity = policy_identity(parameter) if isinstance(parameter, Policy) else getattr(parameter, "identity", None)
    if not isinstance(identity, str):
        raise TypeError(f"{parameter!r} has no identity")
    return identity


def _parameters(policy: Policy) -> dict[str, Any]:
    if is_dataclass(policy):
        declared = {field.name: getattr(policy, field.name) for field in fields(policy)}
        return declared | {name: value for name, value in vars(policy).items() if name not in declared}
    return dict(vars(policy))


def _imported(name: str) -> Any:
    if name in _OLD:
        raise ValueError(_OLD[name])
    module, colon, attribute = name.partition(":")
    if not colon or not module or module.startswith(".") or not attribute:
        raise ValueError(f"policy={name!r} is not one of {', '.join(map(repr, POLICIES))}, nor 'package.module:Name'")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"policy={name!r} cannot be imported: {error}") from None
    meant = _attribute(module, attribute)
    if meant is None:
        raise ValueError(f"policy={name!r} cannot be imported: {module} has no {attribute}")
    return meant


def _attribute(module: str, qualified: str) -> Any:
    named: Any = sys.modules.get(module)
    for part in qualified.split("."):
        named = getattr(named, part, None)
    return named


def _instance(name: str, kind: type[Policy], seed: int) -> Policy:
    check_int("seed", seed, 0)
    signature = inspect.signature(kind)
    arguments = {"seed": seed} if "seed" in signature.parameters else {}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TypeError(f"policy={name!r} needs arguments ({error}): give an instance") from None
    try:
        return kind(**arguments)
    except Exception as error:  # whatever a policy's own code raises
        raise ValueError(f"policy={name!r} cannot be made: {type(error).__name__}: {error}") from error


def _checked(policy: Policy) -> Policy:
    if policy.reads not in READS:
        raise PolicyError(
            f"policy {policy!r} declares reads={policy.reads!r}: expected one of {', '.join(map(repr, READS))}"
        )
    if type(policy).score is Policy.score:
        raise PolicyError(f"policy {policy!r} has no score(self, seen)")
    if policy.observes and policy.reads == "key":
        raise PolicyError(
            f"policy {policy!r} has observe and declares reads='key', whose scores are fixed at birth: declare "
            f"reads='cache' or more"
        )
    try:
        hash(policy)
    except TypeError as error:
        raise TypeError(f"policy {policy!r} cannot be hashed ({error}): make it a frozen dataclass") from None
    if policy.query_window is not None:
        check_int(f"query_window of policy {policy!r}", policy.query_window, 1)
    check_int(f"sinks of policy {policy!r}", policy.sinks, 0)
    check_int(f"recent of policy {policy!r}", policy.recent, 0)
    return policy
