"""How a check looks for the smallest case that breaks a promise: calls of a compressor, and the search over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from knorm_core.cache import Pair
from knorm_core.contract.adapters import Compressor
from knorm_core.contract.cases import CacheCase
from knorm_core.contract.findings import Broken, Counterexample, crashed, describe
from knorm_core.contract.tracing import same_shape


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


class Call(NamedTuple):
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
    ) -> Call:
        """Call the compressor; whatever it raises, or returns that is no cache, breaks the promise."""
        claims = self.compressor.claims
        arguments = self.compressor.arguments(keep_ratio, prune_after, skip_layers)
        self.calls.append((text or repr(cache), arguments))
        pairs = cache.pairs() if isinstance(cache, CacheCase) else cache
        if not all(claims.allows(keys.shape[2], keep_ratio) for keys, _ in pairs):
            reject()
        before = [(keys.clone(), values.clone()) for keys, values in pairs]
        packed = self.compressor.pack(pairs)
        try:
            returned = self.compressor.run(packed, arguments)
        except Exception as error:
            raise crashed("a compressed cache", error) from error
        try:
            after = [(keys, values) for keys, values in self.compressor.unpack(packed, returned)]
        except Exception:
            raise Broken(expected="a cache of the kind that was given", got=_kind(returned)) from None
        if claims.repeats_heads > 1:
            before = [expanded(pair, claims.repeats_heads) for pair in before]
        self._check_shapes(before, after)
        given = [(keys, values) for keys, values in pairs]
        return Call(before, given, after)

    def _check_shapes(self, before: list[Pair], after: list[Pair]) -> None:
        if len(after) != len(before):
            raise Broken(expected=f"{len(before)} layers", got=f"{len(after)} layers")
        for layer, (old, new) in enumerate(zip(before, after, strict=True)):
            if not all(isinstance(tensor, torch.Tensor) and tensor.ndim == 4 for tensor in new):
                raise Broken(
                    expected="keys and values of (batch, kv_heads, length, head_dim)", got=_kind(new), layer=layer
                )
            same_shape(old, new, layer)

    def example(self) -> list[str]:
        """The calls, in lines of text."""
        lines = []
        for case, arguments in self.calls:
            lines += [case, f"  compressed with {describe(arguments)}"]
        return lines

    def snippet(self) -> str:
        """Python that repeats the calls whose cache is a `CacheCase`."""
        calls = [
            f"print({self.compressor.call(case, describe(arguments))})"
            for case, arguments in self.calls
            if case.startswith("CacheCase(")
        ]
        ours = ["CacheCase", *self.compressor.adapters()]
        return "\n".join([f"from knorm_core.contract import {', '.join(ours)}", self.compressor.imports, *calls])

    def counterexample(self, broken: Broken, explains: tuple[str, ...] = (), **exempts: Any) -> Counterexample:
        """What broke, with the calls that show it."""
        return Counterexample(broken, self.example(), self.snippet(), exempts, explains)


def for_every(
    subject: Any, holds: Callable[..., None], *, trial: Callable[[Any], Any] = Trial, **drawn: st.SearchStrategy[Any]
) -> None:
    """Look for arguments for which ``holds(trial, **arguments)`` raises `Broken`; report the smallest.

    Args:
        subject: a compressor, or what else ``trial`` takes.
    """
    search = _search.get()
    last: list[tuple[Broken, Any]] = []

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
        # A compressor on a slow device is not the fault of the strategy, which is what these are about; nor
        # is one whose claims leave few of the drawn cases.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given, HealthCheck.filter_too_much],
    )
    @given(**drawn)
    def attempt(**arguments: Any) -> None:
        attempted = trial(subject)
        try:
            holds(attempted, **arguments)
        except Broken as broken:
            last.append((broken, attempted))
            raise

    try:
        attempt()
    except (Broken, Flaky) as error:
        broken, attempted = last[-1]
        if isinstance(error, Flaky):
            broken.where.append(
                ("note:", "the same call did not fail again, so the answer depends on more than the input")
            )
        raise attempted.counterexample(broken) from None


def cases(compressor: Compressor, layers: int = 1, dtypes: tuple[str, ...] = (), **fixed: Any) -> Any:
    """A strategy of the caches that this compressor can be given.

    Args:
        layers: draw up to so many layers.
        dtypes: draw only these, as far as it can be given them.
        fixed: attributes of `CacheCase` that are not drawn, or the strategies to draw them from.
    """
    claims = compressor.claims
    least = claims.min_length
    length = st.integers(least, least + 24)
    most = layers if claims.max_layers is None else min(layers, claims.max_layers)
    count = st.integers(1, most) if most > 1 else st.just(1)
    if claims.equal_lengths:
        lengths = st.builds(lambda every, layers: (every,) * layers, length, count)
    else:
        lengths = count.flatmap(lambda layers: st.tuples(*[length] * layers))
    drawn: dict[str, Any] = {
        "lengths": lengths,
        "batch": st.integers(1, min(2, claims.max_batch or 2) if claims.rows else 1),
        "kv_heads": st.integers(claims.min_heads, max(3, claims.min_heads)),
        "head_dim": st.sampled_from([4, 8]),
        "dtype": st.sampled_from([name for name in claims.dtypes if not dtypes or name in dtypes]),
        "seed": st.integers(0, 999),
    }
    drawn |= {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    return st.builds(CacheCase, **drawn)


def ratios(least: int = 1) -> st.SearchStrategy[float]:
    """Keep ratios of two decimals below 1, 0.5 the simplest."""
    return st.integers(least - 50, 49).map(lambda percent: (50 + percent) / 100)


def expanded(pair: Pair, times: int) -> Pair:
    """Each KV head so many times over, as `repeat_kv` in transformers has it."""
    keys, values = pair
    return keys.repeat_interleave(times, dim=1), values.repeat_interleave(times, dim=1)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} [{', '.join(_kind(item) for item in value[:3])}]"
    return f"a {type(value).__name__}"
