"""The engine: what a check is, and how it looks for the smallest case that breaks a promise.

A check is a plain function of a compressor (or evaluator) whose docstring is the promise. Inside, it
hands a claim about one case to `for_every`, which lets Hypothesis search for a case that breaks it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from knorm_core.cache import Pair
from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import DTYPES, CacheCase
from knorm_core.contract.findings import Broken, Finding, describe


class Search(NamedTuple):
    """How hard to look: cases per check, and whether other ones at each run."""

    examples: int = 25
    explore: bool = False


_search: ContextVar[Search] = ContextVar("knorm_search", default=Search())  # noqa: B039  (immutable)


@contextlib.contextmanager
def searching(examples: int = Search().examples, explore: bool = False) -> Iterator[None]:
    """Set how hard checks look, for as long as the context lasts."""
    token = _search.set(Search(examples, explore))
    try:
        yield
    finally:
        _search.reset(token)


@dataclass(frozen=True)
class Check:
    """One promise: call it with a compressor or evaluator; it returns, or raises a `Finding`."""

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
        __tracebackhide__ = True
        finding = self.find(subject)
        if finding is not None:
            raise finding

    def find(self, subject: Any) -> Finding | None:
        """The finding, if the promise is broken."""
        try:
            self.function(subject)
        except Counterexample as found:
            return Finding(
                check=self.name,
                promise=self.promise,
                guards=self.guards,
                subject=subject.name,
                example=found.example,
                broken=found.broken,
                snippet=found.snippet,
            )
        return None

    def __repr__(self) -> str:
        return self.name


def check(group: str, *needs: str) -> Callable[[Callable[[Any], None]], Check]:
    """Make a function a check that applies to what claims all of ``needs``."""
    return lambda function: Check(function, group, needs)


class Counterexample(Exception):
    """A broken promise on its way from the search to the finding."""

    def __init__(self, broken: Broken, example: list[str], snippet: str) -> None:
        self.broken, self.example, self.snippet = broken, example, snippet


class Outcome(NamedTuple):
    """One call: the pairs as they were before it, the cache that was passed, and the pairs that came out."""

    before: list[Pair]
    given: list[Pair]
    after: list[Pair]


@dataclass
class Trial:
    """One attempt to break a promise. It notes every call, so that a finding can repeat them."""

    compressor: Compressor
    calls: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def compress(
        self,
        cache: CacheCase | list[Pair],
        keep_ratio: float,
        prune_after: int = 1,
        skip_layers: tuple[int, ...] = (),
        text: str = "",
    ) -> Outcome:
        """Call the compressor; whatever it raises, or returns that is no cache, breaks the promise."""
        claims = self.compressor.claims
        arguments: dict[str, object] = {"keep_ratio": keep_ratio}
        if claims.threshold:
            arguments["prune_after"] = prune_after
        if claims.skip_layers:
            arguments["skip_layers"] = list(skip_layers)
        self.calls.append((text or repr(cache), arguments))
        pairs = cache.pairs() if isinstance(cache, CacheCase) else cache
        before = [(keys.clone(), values.clone()) for keys, values in pairs]
        packed = self.compressor.pack(pairs)
        try:
            returned = self.compressor.run(packed, keep_ratio, prune_after, skip_layers)
        except Exception as error:
            raise Broken(expected="a compressed cache", got=raised(error)) from error
        try:
            after = [(keys, values) for keys, values in self.compressor.unpack(packed, returned)]
        except Exception:
            raise Broken(expected="a cache of the kind that was given", got=_kind(returned)) from None
        if len(after) != len(before):
            raise Broken(expected=f"{len(before)} layers", got=f"{len(after)} layers")
        for layer, pair in enumerate(after):
            if not all(isinstance(tensor, torch.Tensor) and tensor.ndim == 4 for tensor in pair):
                raise Broken(
                    expected="keys and values of (batch, kv_heads, length, head_dim)", got=_kind(pair), layer=layer
                )
        given = [(keys, values) for keys, values in pairs]
        return Outcome(before, given, after)

    def example(self) -> list[str]:
        lines = []
        for case, arguments in self.calls:
            lines += [case, f"  compressed with {describe(arguments)}"]
        return lines

    def snippet(self) -> str:
        calls = [
            f"print({self.compressor.call(case, describe(arguments))})"
            for case, arguments in self.calls
            if case.startswith("CacheCase(")
        ]
        ours = "from knorm_core.contract import "
        lines = self.compressor.imports.splitlines()
        names = ["CacheCase", *(line.removeprefix(ours) for line in lines if line.startswith(ours))]
        others = [line for line in lines if not line.startswith(ours)]
        return "\n".join([ours + ", ".join(names), *others, *calls])


def for_every(compressor: Compressor, holds: Callable[..., None], **drawn: st.SearchStrategy[Any]) -> None:
    """Look for arguments for which ``holds(trial, **arguments)`` raises `Broken`; report the smallest."""
    search = _search.get()
    last: list[tuple[Broken, Trial]] = []

    # The database is off: it would be written into whatever folder a user runs this in. The explain
    # phase is off: it makes findings slower to come by, and what it says is not part of them.
    @settings(
        max_examples=search.examples,
        derandomize=not search.explore,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        # A compressor on a slow device is not the fault of the strategy, which is what these two are about.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
    @given(**drawn)
    def attempt(**arguments: Any) -> None:
        trial = Trial(compressor)
        try:
            holds(trial, **arguments)
        except Broken as broken:
            last.append((broken, trial))
            raise

    try:
        attempt()
    except (Broken, Flaky) as error:
        broken, trial = last[-1]
        if isinstance(error, Flaky):
            broken.where.append(
                ("note:", "the same call did not fail again, so the answer depends on more than the input")
            )
        raise Counterexample(broken, trial.example(), trial.snippet()) from None


def cases(compressor: Compressor, layers: int = 1, **fixed: Any) -> st.SearchStrategy[CacheCase]:
    """Caches that this compressor can be given; ``fixed`` attributes are not drawn."""
    claims = compressor.claims
    length = st.integers(claims.min_length, claims.min_length + 24)
    count = st.integers(1, layers) if layers > 1 else st.just(1)
    if claims.equal_lengths:
        lengths = st.builds(lambda n, one: (one,) * n, count, length)
    else:
        lengths = count.flatmap(lambda n: st.tuples(*[length] * n))
    drawn: dict[str, Any] = {
        "lengths": lengths,
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 3),
        "head_dim": st.sampled_from([4, 8]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 999),
    }
    drawn |= {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    return st.builds(CacheCase, **drawn)


def ratios(least: int = 1) -> st.SearchStrategy[float]:
    """Keep ratios of two decimals below 1, 0.5 the simplest."""
    return st.integers(least - 50, 49).map(lambda percent: (50 + percent) / 100)


def raised(error: Exception) -> str:
    """An exception and where it came from, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(frame.filename)}:{frame.lineno}, in {frame.name})"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} [{', '.join(_kind(item) for item in value[:3])}]"
    return f"a {type(value).__name__}"
