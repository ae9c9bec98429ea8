"""Compressors come in several shapes; here each becomes one and the same to the checks.

`as_compressor` takes a function of any shape that calls itself with a cache and a keep ratio, and recognises
which it is. What is called otherwise has an adapter: `each_layer` for a function of one layer's keys and
values, `for_budget` for an object that is made for a fixed number of keys, and `kvpress_press` for a press,
which is run as the forward hook that it is, in the prefill of a small model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from knorm_core.cache import Pair
from knorm_core.contract.cases import dynamic_cache, layers_of
from knorm_core.contract.claims import KVPRESS, Claims
from knorm_core.contract.prefill import prefill_with
from knorm_core.counts import kept_count


@dataclass(frozen=True, repr=False)
class Compressor:
    """A compressor as the checks see it; make one with the functions of this module.

    Attributes:
        name: what it is called in test ids and findings.
        claims: what it is held to.
        pack: from pairs to the kind of cache that it takes.
        run: (cache, arguments by name) to what it returns.
        unpack: from (what it was given, what it returned) back to pairs.
        imports, adapters, call: for the snippet of a finding: its import line, the names of the adapters that
            are used, and the call as text.
    """

    name: str
    claims: Claims
    pack: Callable[[list[Pair]], Any]
    run: Callable[[Any, dict[str, Any]], Any]
    unpack: Callable[[Any, Any], Sequence[Pair]]
    imports: str
    adapters: Callable[[], tuple[str, ...]]
    call: Callable[[str, str], str]

    def __repr__(self) -> str:
        return self.name

    def __call__(
        self, pairs: list[Pair], keep_ratio: float, prune_after: int = 1, skip_layers: Iterable[int] = ()
    ) -> list[Pair]:
        """Compress (key, value) pairs, whatever kind of cache the compressor itself takes."""
        cache = self.pack(pairs)
        return list(self.unpack(cache, self.run(cache, self.arguments(keep_ratio, prune_after, skip_layers))))

    def arguments(self, keep_ratio: float, prune_after: int = 1, skip_layers: Iterable[int] = ()) -> dict[str, Any]:
        """Those of the arguments that it claims to take, by name."""
        arguments: dict[str, Any] = {"keep_ratio": keep_ratio}
        if self.claims.threshold:
            arguments["prune_after"] = prune_after
        if self.claims.skip_layers:
            arguments["skip_layers"] = list(skip_layers)
        return arguments

    def held_to(self, claims: Claims) -> Compressor:
        """The same compressor with other claims."""
        return replace(self, claims=claims)


def as_compressor(compressor: Any, claims: Claims | None = None, name: str | None = None) -> Compressor:
    """A function of a cache: ``f(past_key_values, keep_ratio, prune_after, skip_layers)``.

    Whether the cache is a list of (key, value) pairs or a transformers `DynamicCache` is recognised at the
    first call. It may return the compressed cache, or None if it changes the one it is given (then claim
    ``leaves_input=False``).

    >>> from knorm_core import l2_compress
    >>> as_compressor(l2_compress).name
    'l2_compress'

    Args:
        compressor: the function; what is a `Compressor` already is returned with the claims changed.
        claims: what it is held to; by default what `knorm_core.l2_compress` is held to.
        name: default, the function's own.

    Raises:
        TypeError: it is not callable.
    """
    if isinstance(compressor, Compressor):
        return replace(compressor, claims=claims or compressor.claims, name=name or compressor.name)
    recognised = functools.cache(lambda: _kind_of_cache(compressor))
    return _from_callable(compressor, claims, name, takes=recognised)


def on_dynamic_cache(compress: Callable[..., Any], claims: Claims | None = None, name: str | None = None) -> Compressor:
    """`as_compressor` for a function that takes lists of pairs as well, and is to be held to its `DynamicCache`."""
    return _from_callable(compress, claims, name, takes=lambda: "cache")


def each_layer(
    compress: Callable[[torch.Tensor, torch.Tensor, int], Any],
    claims: Claims | None = None,
    name: str | None = None,
    count: Callable[[int, float], int] = kept_count,
) -> Compressor:
    """A function ``f(keys, values, kept)`` of one layer, which returns the keys and values that stay.

    >>> def newest(keys, values, kept):
    ...     return keys[:, :, -kept:], values[:, :, -kept:]
    >>> [(keys, _)] = each_layer(newest)([(torch.ones(1, 1, 4, 2),) * 2], keep_ratio=0.5)
    >>> keys.shape
    torch.Size([1, 1, 2, 2])

    Args:
        claims: default: no threshold, no skipped layers, no key norms; the count is ``count``.
        count: how many keys it is asked to keep of (length, keep_ratio).
    """
    claims = claims or replace(UNGATED, count=count)

    def over_layers(past_key_values: Sequence[Pair], keep_ratio: float) -> list[Pair]:
        return [tuple(compress(keys, values, count(keys.shape[2], keep_ratio))) for keys, values in past_key_values]

    return _adapted(over_layers, "each_layer", compress, claims, name)


def for_budget(
    make: Callable[[int], Callable[[list[Pair]], Any]],
    claims: Claims | None = None,
    name: str | None = None,
    count: Callable[[int, float], int] = kept_count,
) -> Compressor:
    """What is made for a fixed number of keys, and is then called with the pairs: streaming-llm's cache.

    Args:
        make: from the number of keys to keep, of the longest layer, to a callable over a list of pairs. It is
            made anew for each call.
        claims: as for `each_layer`; layers of equal length are claimed with any of them, since there is one budget.
    """
    claims = replace(claims or replace(UNGATED, count=count), equal_lengths=True)

    def made_and_called(past_key_values: list[Pair], keep_ratio: float) -> Any:
        longest = max(keys.shape[2] for keys, _ in past_key_values)
        return make(count(longest, keep_ratio))(past_key_values)

    return _adapted(made_and_called, "for_budget", make, claims, name)


def kvpress_press(press: Callable[[float], Any], claims: Claims = KVPRESS, name: str | None = None) -> Compressor:
    """A kvpress press, run as a hook in the prefill of a small Llama whose cache holds the given keys.

    Every attention layer really runs, so presses that score with queries, hidden states or attention
    weights get them (of random tokens); just before the press's own hook, the layer's keys and values in
    the cache are exchanged for the given ones.

    >>> compressor = kvpress_press(lambda compression_ratio: ...)  # KnormPress, from kvpress

    Args:
        press: from a compression ratio (1 - keep ratio) to a press: its class, or a lambda.
        claims: `KVPRESS`, or ``dataclasses.replace(KVPRESS, layers=True)`` for presses that score from keys
            alone, with ``key_norm=True`` too for `KnormPress`, or ``min_length=5`` for one with four sinks.
        name: default, that of ``press``.
    """

    def run(cache: Any, arguments: dict[str, Any]) -> None:
        prefill_with(press(1 - arguments["keep_ratio"]), cache)

    imports, called = import_line(press)
    return Compressor(
        name=name or name_of(press),
        claims=claims,
        pack=dynamic_cache,
        run=run,
        unpack=lambda given, returned: layers_of(given),
        imports=imports,
        adapters=lambda: ("kvpress_press",),
        call=lambda case, arguments: f"kvpress_press({called})({case}.pairs(), {arguments})",
    )


#: Of what has neither threshold nor skipped layers, and scores in its own way.
UNGATED = Claims(threshold=False, skip_layers=False, key_norm=False, refuses_ratio=False, refuses_nan=False)


def _kind_of_cache(compressor: Callable[..., Any]) -> str:
    """Whether it takes a list of pairs, or only a `DynamicCache`."""
    keys = torch.arange(1.0, 49.0).view(1, 2, 6, 4)
    arguments = {"keep_ratio": 0.5, "prune_after": 1, "skip_layers": []}
    try:
        parameters = inspect.signature(compressor).parameters
    except (TypeError, ValueError):  # what is not written in Python may have none
        return "pairs"
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    for takes, pack in (("pairs", list), ("cache", dynamic_cache)):
        given = pack([(keys, keys.clone())])
        try:
            returned = compressor(given, **arguments)
            [(kept, _)] = layers_of(given if returned is None else returned)
        except Exception:
            continue
        if isinstance(kept, torch.Tensor):
            return takes
    return "pairs"


def _from_callable(
    compress: Callable[..., Any], claims: Claims | None, name: str | None, takes: Callable[[], str]
) -> Compressor:
    if not callable(compress):
        raise TypeError(f"compressor={compress!r} is not callable: give a function over (key, value) pairs")

    def pack(pairs: list[Pair]) -> Any:
        return dynamic_cache(pairs) if takes() == "cache" else list(pairs)

    def call(case: str, arguments: str) -> str:
        adapted = f"on_dynamic_cache({called})" if takes() == "cache" else called
        return f"{adapted}({case}.pairs(), {arguments})"

    imports, called = import_line(compress)
    return Compressor(
        name=name or name_of(compress),
        claims=claims or Claims(),
        pack=pack,
        run=lambda cache, arguments: compress(cache, **arguments),
        unpack=lambda given, returned: layers_of(given if returned is None else returned),
        imports=imports,
        adapters=lambda: ("on_dynamic_cache",) if takes() == "cache" else (),
        call=call,
    )


def _adapted(compress: Callable[..., Any], adapter: str, original: Any, claims: Claims, name: str | None) -> Compressor:
    """A function over pairs that an adapter made of something else."""
    imports, called = import_line(original)
    return replace(
        _from_callable(compress, claims, name or name_of(original), takes=lambda: "pairs"),
        imports=imports,
        adapters=lambda: (adapter,),
        call=lambda case, arguments: f"{adapter}({called})({case}.pairs(), {arguments})",
    )


def name_of(function: Any) -> str:
    """What to call a function, a class, or an object that can be called."""
    return str(getattr(function, "__name__", type(function).__name__))


def import_line(function: Any) -> tuple[str, str]:
    """How to import a function, and what to call it; a comment where it has no importable name."""
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not qualified or "<" in qualified:
        called = name_of(function).strip("<>").replace("lambda", "given")
        return f"# {called} is what was passed; it has no name to import it by", called
    top = qualified.split(".")[0]
    return f"from {module} import {top}", qualified
