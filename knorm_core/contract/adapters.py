"""Compressors come in several shapes; here each becomes one and the same to the checks.

`as_compressor` takes a function in the shape of the paper's (a list of (key, value) pairs in, one out),
`on_dynamic_cache` one that takes a transformers `DynamicCache`, and `kvpress_press` a press, which is run
as the forward hook that it is, in the prefill of a small model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from knorm_core.cache import Pair, cache_argument
from knorm_core.contract.cases import dynamic_cache
from knorm_core.contract.claims import KVPRESS, Claims


@dataclass(frozen=True, repr=False)
class Compressor:
    """A compressor as the checks see it; make one with the functions of this module.

    Attributes:
        name: what it is called in test ids and findings.
        claims: what it is held to.
        pack: from pairs to the kind of cache that it takes.
        run: (cache, keep_ratio, prune_after, skip_layers) to what it returns.
        unpack: from (what it was given, what it returned) back to pairs.
        imports, call: for the snippet of a finding: the import line, and the call as text.
    """

    name: str
    claims: Claims
    pack: Callable[[list[Pair]], Any]
    run: Callable[[Any, float, int, tuple[int, ...]], Any]
    unpack: Callable[[Any, Any], Sequence[Pair]]
    imports: str
    call: Callable[[str, str], str]

    def __repr__(self) -> str:
        return self.name

    def __call__(
        self, pairs: list[Pair], keep_ratio: float, prune_after: int = 1, skip_layers: Iterable[int] = ()
    ) -> list[Pair]:
        """Compress (key, value) pairs, whatever kind of cache the compressor itself takes."""
        cache = self.pack(pairs)
        return list(self.unpack(cache, self.run(cache, keep_ratio, prune_after, tuple(skip_layers))))


def as_compressor(compressor: Any, claims: Claims | None = None, name: str | None = None) -> Compressor:
    """A function over (key, value) lists: ``f(past_key_values, keep_ratio, prune_after, skip_layers)``.

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
    return _from_callable(compressor, claims, name, pack=list, unpack=lambda given, returned: returned)


def on_dynamic_cache(compress: Callable[..., Any], claims: Claims | None = None, name: str | None = None) -> Compressor:
    """A function ``f(cache, keep_ratio, prune_after, skip_layers)`` on a transformers `DynamicCache`.

    It may return the compressed cache, or None if it changes the one it is given (then claim
    ``leaves_input=False``).
    """

    def unpack(given: Any, returned: Any) -> list[Pair]:
        cache = given if returned is None else returned
        return [(layer.keys, layer.values) for layer in cache.layers]

    return _from_callable(compress, claims, name, pack=dynamic_cache, unpack=unpack, adapter="on_dynamic_cache")


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

    def run(cache: Any, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]) -> None:
        _prefill_with(press(1 - keep_ratio), cache)

    imports, called = import_line(press)
    return Compressor(
        name=name or name_of(press),
        claims=claims,
        pack=dynamic_cache,
        run=run,
        unpack=lambda given, returned: [(layer.keys, layer.values) for layer in given.layers],
        imports=f"{imports}\nfrom knorm_core.contract import kvpress_press",
        call=lambda case, arguments: f"kvpress_press({called})({case}.pairs(), {arguments})",
    )


def _from_callable(
    compress: Callable[..., Any],
    claims: Claims | None,
    name: str | None,
    *,
    pack: Callable[[list[Pair]], Any],
    unpack: Callable[[Any, Any], Sequence[Pair]],
    adapter: str = "",
) -> Compressor:
    if not callable(compress):
        raise TypeError(f"compressor={compress!r} is not callable: give a function over (key, value) pairs")
    claims = claims or Claims()

    def run(cache: Any, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]) -> Any:
        arguments: dict[str, Any] = {"keep_ratio": keep_ratio}
        if claims.threshold:
            arguments["prune_after"] = prune_after
        if claims.skip_layers:
            arguments["skip_layers"] = list(skip_layers)
        return compress(cache, **arguments)

    imports, called = import_line(compress)
    if adapter:
        imports, called = f"from knorm_core.contract import {adapter}\n{imports}", f"{adapter}({called})"
    return Compressor(
        name=name or name_of(compress),
        claims=claims,
        pack=pack,
        run=run,
        unpack=unpack,
        imports=imports,
        call=lambda case, arguments: f"{called}({case}.pairs(), {arguments})",
    )


def name_of(thing: Any) -> str:
    """What to call a function, a class, or an object that can be called."""
    return str(getattr(thing, "__name__", type(thing).__name__))


def import_line(thing: Any) -> tuple[str, str]:
    """How to import a function, and what to call it; a comment where it has no importable name."""
    module, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not module or not qualified or "<" in qualified:
        called = name_of(thing).strip("<>").replace("lambda", "given")
        return f"# {called} is what was passed; it has no name to import it by", called
    top = qualified.split(".")[0]
    return f"from {module} import {top}", qualified


def _prefill_with(press: Any, cache: Any) -> None:
    from transformers import DynamicCache

    given = [(layer.keys, layer.values) for layer in cache.layers]
    keys = given[0][0]
    batch, heads, length, width = keys.shape
    model = _bench(len(given), heads, width, keys.dtype).to(keys.device)
    filled = DynamicCache()

    def plant(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = filled.layers[module.layer_idx]
        layer.keys, layer.values = given[module.layer_idx]

    layers = [layer.self_attn for layer in model.model.layers]
    hooks = [layer.register_forward_hook(plant, with_kwargs=True) for layer in layers]
    tokens = torch.arange(length, device=keys.device).remainder(model.config.vocab_size).expand(batch, -1)
    arguments: dict[str, Any] = cache_argument(model, filled) | {"use_cache": True}
    if "cache_position" in inspect.signature(model.forward).parameters:
        arguments["cache_position"] = torch.arange(length, device=keys.device)
    try:
        with torch.no_grad(), press(model):
            model(tokens, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, compressed in zip(cache.layers, filled.layers, strict=True):
        layer.keys, layer.values = compressed.keys, compressed.values


@functools.lru_cache(maxsize=32)
def _bench(layers: int, heads: int, head_dim: int, dtype: torch.dtype) -> Any:
    """A small Llama whose cache has this shape. Eager, for presses that read attention weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=heads * head_dim,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()
