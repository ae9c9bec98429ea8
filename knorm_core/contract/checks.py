"""What a check is, and the list of all of them.

A check is a plain function of a compressor (an evaluator, a policy) whose docstring is the promise. `check` adds it to
the list. Before any check is asked, the subject is diagnosed: what it cannot be given at all, and what single
cause explains an evaluator's losses, is reported by one check, and the others go on within what works.
"""

from __future__ import annotations

import inspect
import unittest
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from knorm_core.contract.diagnosis import diagnose
from knorm_core.contract.findings import Counterexample, Finding, describe

COMPRESSOR_GROUPS = ("what it can be given", "what comes back", "when it fires and what it depends on", "key norm")
EVALUATOR_GROUP = "evaluator"
POLICY_GROUP = "policy"
# The claims that a user writes down are fields; these follow from other claims, and cannot be switched off.
_DERIVED = (
    "several_rows",
    "several_layers",
    "low_precision",
    "high_precision",
    "single_heads",
    "short_layers",
    "unprotected",
    "comparable",
    "traceable",
)
_OFF: dict[str, Any] = {"count": None, "skip_layers": False}

_registered: dict[str, list[Check]] = {}


@dataclass(frozen=True)
class Check:
    """One promise: call it with a compressor, an evaluator or a policy; it returns, or raises a `Finding`."""

    function: Callable[[Any], None]
    group: str
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    @property
    def guards(self) -> str:
        """The fault of the real world that it guards against."""
        paragraphs = (inspect.getdoc(self.function) or "").split("\n\n")[1:]
        return " ".join(" ".join(paragraphs).removeprefix("Guards against ").split())

    def applies(self, claims: Any) -> bool:
        """Whether something with these claims is held to this promise."""
        return all(bool(getattr(claims, need)) for need in self.needs)

    def __call__(self, subject: Any) -> None:
        """Raise the finding, if there is one.

        Raises:
            Finding: the promise is broken.
            unittest.SkipTest: it cannot be asked, for a reason that another check reports.
        """
        __tracebackhide__ = True
        finding = self.find(subject)
        if finding is None:
            reason = self.unanswered(subject)
            if reason:
                raise unittest.SkipTest(reason)
            return
        if finding.crash:
            first = _crashes.setdefault(subject, {}).setdefault(finding.crash, self.name)
            if first != self.name:
                raise unittest.SkipTest(f"not answered: ends in the exception that {first} reports ({finding.crash})")
        raise finding

    def find(self, subject: Any) -> Finding | None:
        """The finding, if the promise is broken."""
        diagnosis = diagnose(subject)
        counterexample = diagnosis.counterexamples.get(self.name)
        if counterexample is not None:
            return self._finding(subject, counterexample)
        if self.unanswered(subject):
            return None
        try:
            self.function(subject.held_to(diagnosis.claims))
        except Counterexample as broken:
            return self._finding(subject, broken)
        return None

    def unanswered(self, subject: Any) -> str:
        """Why this check cannot be asked of the subject, or "" if it can."""
        diagnosis = diagnose(subject)
        if self.name in diagnosis.counterexamples:
            return ""
        if diagnosis.unusable:
            return f"not answered: see {diagnosis.unusable}"
        if self.name in diagnosis.explained:
            return f"not answered: see {diagnosis.explained[self.name]}"
        if self.applies(subject.claims) and not self.applies(diagnosis.claims):
            return f"not answered: see {', '.join(diagnosis.counterexamples)}"
        return ""

    def _finding(self, subject: Any, counterexample: Counterexample) -> Finding:
        named = counterexample.broken.promise
        of = next((each for each in registered(self.group) if each.name == named), self)
        return Finding(
            check=of.name,
            promise=of.promise,
            guards=of.guards,
            subject=subject.name,
            claim=of._claim(subject, counterexample),
            counterexample=counterexample,
        )

    def _claim(self, subject: Any, counterexample: Counterexample) -> str:
        claims = type(subject.claims).__name__
        exempts = counterexample.exempts
        if exempts:
            says = "that this is all it promises" if any(exempts.values()) else "that it is not promised"
            return f"{claims}({describe(exempts)}) says {says}"
        switches = [need for need in self.needs if need not in _DERIVED]
        if switches and self.group != EVALUATOR_GROUP:
            return f"{claims}({describe({switches[-1]: _OFF.get(switches[-1], False)})}) says that it is not promised"
        return f'no claim switches it off; skip={{"{self.name}": "the reason"}} leaves it out of a test file'

    def __repr__(self) -> str:
        return self.name


# Which check reported an exception of a subject, so that each exception is reported once per process.
_crashes: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def check(group: str, *needs: str) -> Callable[[Callable[[Any], None]], Check]:
    """Make a function a check that applies to what claims all of ``needs``, and list it under its group."""

    def add(function: Callable[[Any], None]) -> Check:
        made = Check(function, group, needs)
        _registered.setdefault(group, []).append(made)
        return made

    return add


def registered(*groups: str) -> tuple[Check, ...]:
    """The checks of these groups, in the order of their definition."""
    return tuple(made for group in groups for made in _registered.get(group, []))
