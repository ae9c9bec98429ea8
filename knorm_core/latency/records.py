"""Latency as tables of numbers, for `knorm_core.results.records`: what the ledger and the report read.

A quantity ``x`` becomes the columns ``x`` (the median), ``x_lower_quartile``, ``x_upper_quartile``, and, where there
is a baseline, ``x_ratio`` (paired with keep ratio 1, or a first call with a warm one) with ``x_ratio_low`` and
``x_ratio_high``, its 95 % interval (0 and infinity for fewer than two rounds). Seconds, bytes, tokens per second.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from knorm_core.latency.cold_start import ColdStart
from knorm_core.latency.contexts import Contexts
from knorm_core.latency.environment import Environment
from knorm_core.latency.measure import Latency
from knorm_core.latency.quantity import Quantity


class Record(NamedTuple):
    """A table without its model: the last part of its name, its key and rows, and what they were made from."""

    what: str
    key: tuple[str, ...]
    rows: list[dict[str, Any]]
    made_from: dict[str, Any]


def latency_record(latency: Latency) -> Record:
    """Per keep ratio: times, throughput and bytes of one prompt."""
    return Record("ttft", ("keep_ratio",), [_columns(row) for row in latency], _latency_source(latency))


def contexts_record(contexts: Contexts) -> Record:
    """Per context length and keep ratio: the same, the prompt compressed once."""
    rows = [
        {"context": context} | _columns(row)
        for context, latency in zip(contexts.contexts, contexts.latencies, strict=True)
        for row in latency
    ]
    gains = {str(ratio): contexts.gains_from(ratio) for ratio in contexts.keep_ratios}
    source = _latency_source(contexts.latencies[-1]) | {"gains_from": gains}
    for name in ("prompt_tokens", "prune_after"):  # they follow the context
        del source["settings"][name]
    return Record("contexts", ("context", "keep_ratio"), rows, source)


def cold_start_records(cold: ColdStart) -> tuple[Record, Record]:
    """Per keep ratio, fresh processes (``cold_…``) and the same ones warm (``warm_…``); and a first call's parts."""
    names = ("prompt_tokens", "prune_after", "new_tokens", "repeats", "seed", "dtype")
    settings = {name: getattr(cold, name) for name in names} | {"processes": len(cold.first_call.samples)}
    source = _source(cold.environment, len(cold.failures), settings)
    calls = [
        ("whole first call", True, cold.first_call),
        *((part.name, part.inside, part.seconds) for part in cold.parts),
        ("first call, imports and loading", False, cold.first_call_with_start),
    ]
    first = [{"what": what, "inside": inside} | _quantity("seconds", seconds) for what, inside, seconds in calls]
    return (
        Record("cold-start", ("keep_ratio",), [_columns(row) for row in cold.rows], source),
        Record("first-call", ("what",), first, source),
    )


def _columns(row: Any) -> dict[str, Any]:
    """The fields of a row, its quantities spelled out; what was not measured is left out."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Quantity):
            columns |= _quantity(field.name, value)
        elif value is not None:
            columns[field.name] = value
    return columns


def _quantity(name: str, measured: Quantity) -> dict[str, float]:
    columns: dict[str, float] = {
        name: measured.median,
        f"{name}_lower_quartile": measured.lower_quartile,
        f"{name}_upper_quartile": measured.upper_quartile,
    }
    if measured.ratio is not None:
        columns |= measured.ratio.columns(f"{name}_ratio")
    return columns


def _latency_source(latency: Latency) -> dict[str, Any]:
    names = ("prompt_tokens", "prune_after", "new_tokens", "repeats", "warmup", "seed")
    settings = {name: getattr(latency, name) for name in names}
    return _source(latency.environment, len(latency.failures), settings)


def _source(environment: Environment, failures: int, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": settings,
        "failures": failures,
        "busy": environment.busy,
        "environment": dataclasses.asdict(environment),
    }
