"""`measure_latency`: time to first token, decode throughput and cache bytes of one prompt, per keep ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import torch
from torch import nn

from knorm_core.arguments import asked_to_compress
from knorm_core.compressor import l2_compress
from knorm_core.counts import check_int, check_keep_ratio
from knorm_core.latency.environment import Environment, watched
from knorm_core.latency.generation import Clock, FedPrompt, GenerationCost, Job, device_clock, generate
from knorm_core.latency.quantity import Quantity, quantity
from knorm_core.latency.rounds import Failure, run_rounds
from knorm_core.methods.anatomy import anatomy
from knorm_core.methods.forward import private_copy
from knorm_core.methods.language_model import check_input_ids, check_late_positions, text_config
from knorm_core.setting import NoEvictionError, UnsupportedModelError


@dataclass(frozen=True)
class LatencyRow:
    """What one keep ratio cost: per quantity all samples, median, quartiles, and the paired ratio to keep 1.

    Attributes:
        keep_ratio: share of keys that an eviction keeps.
        evictions: how often every layer was compressed in one generation.
        ttft_seconds: time to first token: prompt, compression where it is due, first token.
        tokens_per_second: decode throughput over ``new_tokens``, the compressor called before each.
        compress_seconds: spent in the compressor, in all of one generation; no ratio, as keep 1 spends none.
        cache_bytes_after_prefill: held by keys and values when the first token is out.
        cache_bytes_end: … after the last token.
        cache_bytes_mean: … after each token fed, averaged over ``new_tokens``.
        cache_bytes_peak: the most at any time, the uncompressed prompt included.
        peak_device_bytes: the most that torch had allocated on the device during the generation, weights
            and temporaries included; None where there is no CUDA device.
    """

    keep_ratio: float
    evictions: int
    ttft_seconds: Quantity
    tokens_per_second: Quantity
    compress_seconds: Quantity
    cache_bytes_after_prefill: Quantity
    cache_bytes_end: Quantity
    cache_bytes_mean: Quantity
    cache_bytes_peak: Quantity
    peak_device_bytes: Quantity | None


@dataclass(frozen=True, repr=False)
class Latency(Sequence[LatencyRow]):
    """The rows of one measurement, one per keep ratio in the order given, and what they were measured on.

    Attributes:
        rows: the rows; the object itself is a sequence of them.
        prompt_tokens, new_tokens, prune_after, repeats, warmup, seed: the setting.
        orders: the keep ratios of every counted round, in the order they were run.
        failures: rounds that failed, which no number counts.
        environment: machine, software and load.
    """

    rows: tuple[LatencyRow, ...]
    prompt_tokens: int
    new_tokens: int
    prune_after: int
    repeats: int
    warmup: int
    seed: int
    orders: tuple[tuple[float, ...], ...]
    failures: tuple[Failure, ...]
    environment: Environment

    @overload
    def __getitem__(self, index: int) -> LatencyRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LatencyRow, ...]: ...
    def __getitem__(self, index: int | slice) -> LatencyRow | tuple[LatencyRow, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, keep_ratio: float) -> LatencyRow:
        """The row of one keep ratio; a KeyError lists those that were measured."""
        for row in self.rows:
            if row.keep_ratio == keep_ratio:
                return row
        raise KeyError(f"keep_ratio={keep_ratio!r} was not measured, but {[row.keep_ratio for row in self.rows]}")

    def __str__(self) -> str:
        from knorm_core.latency.tables import latency_table

        return str(latency_table(self))

    def __repr__(self) -> str:
        ratios = ", ".join(f"{row.keep_ratio:g}" for row in self.rows)
        return f"<Latency of keep {ratios}: prompt {self.prompt_tokens}, {self.new_tokens} tokens decoded>"


def measure_latency(
    model: nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    keep_ratios: Iterable[float],
    prune_after: int = 256,
    new_tokens: int = 32,
    repeats: int = 10,
    warmup: int = 2,
    seed: int = 0,
    compressor: Callable[..., Any] = l2_compress,
    allow_no_eviction: bool = False,
    clock: Clock | None = None,
) -> Latency:
    """Measure a generation at several keep ratios, interleaved in rounds, and compare each to keep 1.

    Per run: the prompt is fed in one block and compressed if it is ``prune_after`` tokens or longer;
    then ``new_tokens`` are decoded greedily, the compressor called before each, with absolute positions,
    as the stepwise evaluator does. At keep ratio 1 no compressor is called. Thread count is left as it
    is (``torch.set_num_threads``) and recorded. The model is left as it was found.

    Args:
        model: a causal language model of transformers, any floating dtype and device.
        input_ids: the prompt, (n,) or (1, n), at least 34 tokens; with ``new_tokens`` within the model's positions.
        keep_ratios: each in (0, 1]; 1.0, the baseline, is put first if it is missing.
        prune_after: cache length in tokens from which a layer is compressed, taken as given.
        new_tokens: tokens to decode after the first, at least 1.
        repeats: rounds to measure, at least 1; an interval needs two.
        warmup: rounds to run before them and throw away.
        seed: of the order within each round, and of the bootstrap.
        compressor: a callable with the signature of `l2_compress`. Of ours, every length and byte is
            checked against the schedule in every run; of others, bytes are reported as they are.
        allow_no_eviction: accept a keep ratio below 1 that never evicts anything.
        clock: returns seconds; None: the timer of `torch.utils.benchmark`, which waits for the device.

    Raises:
        TypeError, ValueError: an argument is wrong; raised before the model runs.
        NoEvictionError: (a ValueError) a keep ratio below 1 would never evict.
        UnsupportedModelError: (a ValueError) the model has no layer that could be compressed, or cannot be evaluated
            exactly.
        MeasurementError: no round went through.
    """
    check_rounds(repeats, warmup, seed)
    job, ratios = check_job(
        model, input_ids, keep_ratios, prune_after, new_tokens, compressor, allow_no_eviction, clock
    )
    return measure_job(job, ratios, repeats=repeats, warmup=warmup, seed=seed)


def measure_job(
    job: Job, keep_ratios: Sequence[float], *, repeats: int, warmup: int, seed: int, prompt: FedPrompt | None = None
) -> Latency:
    """`measure_latency` of a checked job; with ``prompt``, it is fed once and shared by all runs."""
    with watched(job.model) as environment:
        rounds = run_rounds(
            lambda keep_ratio: generate(job, keep_ratio, prompt),
            keep_ratios,
            repeats=repeats,
            warmup=warmup,
            seed=seed,
        )
        return Latency(
            rows=tuple(_row(job, keep_ratio, rounds.completed, seed) for keep_ratio in keep_ratios),
            prompt_tokens=job.prompt_tokens,
            new_tokens=job.new_tokens,
            prune_after=job.prune_after,
            repeats=repeats,
            warmup=warmup,
            seed=seed,
            orders=tuple(tuple(results) for results in rounds.completed),
            failures=rounds.failures,
            environment=environment(),
        )


def _row(job: Job, keep_ratio: float, completed: Sequence[dict[float, GenerationCost]], seed: int) -> LatencyRow:
    def measured(name: str) -> Quantity | None:
        samples = [getattr(results[keep_ratio], name) for results in completed]
        baseline = [getattr(results[_baseline(results)], name) for results in completed]
        return None if None in samples else quantity(samples, baseline, seed)

    quantities: dict[str, Any] = {field.name: measured(field.name) for field in dataclasses.fields(GenerationCost)}
    return LatencyRow(keep_ratio=keep_ratio, evictions=len(job.schedule(keep_ratio)), **quantities)


def _baseline(keep_ratios: Iterable[float]) -> float:
    return next(ratio for ratio in keep_ratios if not asked_to_compress(ratio))


def check_job(
    model: nn.Module,
    input_ids: Any,
    keep_ratios: Any,
    prune_after: Any,
    new_tokens: Any,
    compressor: Any,
    allow_no_eviction: bool,
    clock: Any,
) -> tuple[Job, list[float]]:
    """The arguments of a measurement, checked before any model runs; the keep ratios with the baseline."""
    ratios = check_keep_ratios(keep_ratios)
    check_int("prune_after", prune_after, 1)
    check_int("new_tokens", new_tokens, 1)
    clock = device_clock() if clock is None else clock
    for name, value in (("compressor", compressor), ("clock", clock)):
        if not callable(value):
            raise TypeError(f"{name}={value!r} is not callable")
    ids = check_input_ids(model, input_ids)
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit and len(ids) + new_tokens > limit:
        raise ValueError(
            f"input_ids has {len(ids)} tokens, which with new_tokens={new_tokens} exceeds the model's {limit} positions"
        )
    seen = anatomy(model, len(ids) + new_tokens)
    if seen.refusal:
        raise UnsupportedModelError(seen.refusal)
    check_late_positions(model, ids, seen.first_position, new_tokens)
    if len(seen.windows) == seen.layers:
        raise UnsupportedModelError("every layer of the model has a sliding window: there is none to compress")
    private = private_copy(model, model.config._attn_implementation)  # type: ignore[union-attr,arg-type]
    job = Job(private, seen, ids, int(prune_after), int(new_tokens), compressor, clock)
    for ratio in ratios:
        if asked_to_compress(ratio) and not job.schedule(ratio) and not allow_no_eviction:
            raise NoEvictionError(
                f"keep_ratio={ratio} would never evict: {len(ids)} tokens and new_tokens={new_tokens} more with "
                f"prune_after={prune_after}. Lower prune_after, give a longer prompt, or pass "
                f"allow_no_eviction=True if that is what you want to measure"
            )
    return job, ratios


def check_keep_ratios(keep_ratios: Any) -> list[float]:
    """Keep ratios to compare, the baseline 1.0 put first where it is missing."""
    if isinstance(keep_ratios, str) or not isinstance(keep_ratios, Iterable):
        raise TypeError(f"keep_ratios={keep_ratios!r} is not a collection of numbers in (0, 1]")
    ratios = list(keep_ratios)
    if not ratios:
        raise ValueError("keep_ratios is empty: give at least one in (0, 1]")
    exact: list[Fraction] = [check_keep_ratio(ratio) for ratio in ratios]
    if len(set(exact)) < len(exact):
        raise ValueError(f"keep_ratios={ratios!r} names one of them twice")
    return ratios if Fraction(1) in exact else [1.0, *ratios]


def check_rounds(repeats: Any, warmup: Any, seed: Any) -> None:
    check_int("repeats", repeats, 1)
    check_int("warmup", warmup, 0)
    check_int("seed", seed, 0)
