"""Cold start as an experiment: could a cold baseline alone have made the report's TTFT gain?

The report's table has TTFT fall by 88 to 90 % when the cache is compressed after the prompt is in. One
suspect is its baseline: keep 1.0 measured first, in a fresh process, without warm-up, once. That is
done here, over several processes, and beside it, in the same processes once they are warm, the honest
way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from statistics import median
from typing import Any

import torch

from knorm_core.arguments import asked_to_compress
from knorm_core.counts import check_choice, check_int
from knorm_core.inputs.models import DTYPES, EMBEDDED, model_folder
from knorm_core.latency.environment import Environment
from knorm_core.latency.generation import generation_schedule
from knorm_core.latency.measure import check_keep_ratios, check_rounds
from knorm_core.latency.quantity import Quantity, quantity, ratio_of
from knorm_core.latency.rounds import Failure, run_rounds
from knorm_core.setting import NoEvictionError


@dataclass(frozen=True)
class ColdRow:
    """One keep ratio, both ways; a sample is one process, a ratio is to keep 1.0 of the same process.

    Attributes:
        cold_ttft, cold_throughput: run once, in this order, in a fresh process; seconds and tokens/s.
        warm_ttft, warm_throughput: the median over rounds in random order in the same process, warm.
    """

    keep_ratio: float
    cold_ttft: Quantity
    cold_throughput: Quantity
    warm_ttft: Quantity
    warm_throughput: Quantity


@dataclass(frozen=True)
class Part:
    """Seconds that only a first call takes, or that come before it; the ratio is to a warm call.

    Attributes:
        inside: whether a timer around the first call sees it.
    """

    name: str
    inside: bool
    seconds: Quantity


@dataclass(frozen=True)
class ColdStart:
    """First calls of fresh processes, in whole and in parts, and the same calls warm.

    Attributes:
        first_call: time to first token of the first call, keep 1.0, in seconds; its ratio is to warm.
        first_call_with_start: the same with imports and loading of the model inside the timer.
        parts: what can be told apart, measured in processes of their own.
        rows: per keep ratio, the way the report may have measured and the honest way.
        modules_imported_by_first_call: per process.
        failures: rounds (one process of each kind) that failed, which no number counts.
    """

    model: str
    dtype: str
    prompt_tokens: int
    prune_after: int
    new_tokens: int
    repeats: int
    seed: int
    first_call: Quantity
    first_call_with_start: Quantity
    parts: tuple[Part, ...]
    rows: tuple[ColdRow, ...]
    modules_imported_by_first_call: tuple[int, ...]
    failures: tuple[Failure, ...]
    environment: Environment

    def __str__(self) -> str:
        from knorm_core.latency.tables import cold_start_tables

        return "\n".join(map(str, cold_start_tables(self)))


def measure_cold_start(
    model: str | PathLike[str] = EMBEDDED,
    *,
    keep_ratios: Iterable[float] = (1.0, 0.9, 0.5, 0.1),
    prompt_tokens: int = 256,
    prune_after: int = 256,
    new_tokens: int = 8,
    processes: int = 5,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> ColdStart:
    """Measure first calls of fresh processes the way the report may have, and honestly beside it.

    Each process imports and loads, then runs keep 1.0 first and every other keep ratio after it, once,
    without warm-up; then, warm, honest rounds. As many processes more tell the parts apart. The
    operating system's file cache is warm in all of them: model files count among what was read before.
    The prompt is random tokens.

    Args:
        model: a name that `load_model` takes.
        keep_ratios: at least one below 1; 1.0 is run first in any case.
        prompt_tokens, prune_after, new_tokens: as for `measure_latency`.
        processes: fresh processes of either kind, at least 1; an interval needs two.
        repeats: honest rounds in each.
        dtype, device: as for `load_model`, the dtype by name.
        seed: of the prompt, the orders and the bootstrap.

    Raises:
        TypeError, ValueError: an argument is wrong; raised before any process is started.
        MeasurementError: no process went through.
    """
    ratios = [1.0, *(ratio for ratio in check_keep_ratios(keep_ratios) if asked_to_compress(ratio))]
    if len(ratios) < 2:
        raise ValueError(f"keep_ratios={ratios!r} has none below 1 to compare with the baseline")
    check_int("prompt_tokens", prompt_tokens, 34)
    check_int("prune_after", prune_after, 1)
    check_int("new_tokens", new_tokens, 1)
    check_int("processes", processes, 1)
    check_rounds(repeats, 0, seed)
    check_choice("dtype", dtype, DTYPES)
    for ratio in ratios[1:]:
        if not generation_schedule(prompt_tokens, new_tokens, prune_after, ratio):
            raise NoEvictionError(
                f"keep_ratio={ratio} would never evict: prompt_tokens={prompt_tokens} and new_tokens={new_tokens} "
                f"with prune_after={prune_after}; lower prune_after, or raise prompt_tokens"
            )
    model_folder(model)  # here rather than in the first process: it may have to be converted or downloaded
    from knorm_core.latency.cold_process import run_in_fresh_process

    setting = {
        "model": str(model),
        "dtype": dtype,
        "prompt_tokens": prompt_tokens,
        "prune_after": prune_after,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    request = setting | {"keep_ratios": ratios, "device": device, "threads": torch.get_num_threads()}
    rounds = run_rounds(
        lambda kind: run_in_fresh_process(request | {"kind": kind}),
        ["report", "parts"],
        repeats=processes,
        warmup=0,
        seed=seed,
    )
    return summarise(
        [results["report"] for results in rounds.completed],
        [results["parts"] for results in rounds.completed],
        keep_ratios=ratios,
        failures=rounds.failures,
        **setting,
    )


def summarise(
    reports: Sequence[dict[str, Any]],
    parts: Sequence[dict[str, Any]],
    *,
    keep_ratios: Sequence[float],
    failures: tuple[Failure, ...] = (),
    **setting: Any,
) -> ColdStart:
    """Put the answers of the processes together (see `knorm_core.latency.cold_process` for their form)."""
    seed = setting["seed"]
    cold = [answer["cold"]["ttft_seconds"][0] for answer in reports]
    warm = [median(answer["warm"]["ttft_seconds"][0]) for answer in reports]
    start = [answer["import_seconds"] + answer["load_seconds"] for answer in reports]
    with_start = [first + before for first, before in zip(cold, start, strict=True)]
    warm_forward = [answer["forward"]["warm"] for answer in parts]

    def part(name: str, inside: bool, seconds: list[float]) -> Part:
        return Part(name, inside, quantity(seconds, warm_forward, seed))

    def extra(name: str) -> list[float]:
        return [answer[name]["first"] - answer[name]["warm"] for answer in parts]

    return ColdStart(
        **setting,
        first_call=quantity(cold, warm, seed),
        first_call_with_start=quantity(with_start, warm, seed),
        parts=(
            part("imports before the call", False, [answer["import_seconds"] for answer in parts]),
            part("loading the model", False, [answer["load_seconds"] for answer in parts]),
            part("lazy imports and kernels", True, extra("kernels")),
            part("first allocation", True, extra("allocation")),
            part("first forward", True, extra("forward")),
        ),
        rows=tuple(_row(index, ratio, reports, seed) for index, ratio in enumerate(keep_ratios)),
        modules_imported_by_first_call=tuple(answer["modules_imported_by_first_call"] for answer in reports),
        failures=failures,
        environment=Environment(**reports[0]["environment"]),
    )


def _row(index: int, keep_ratio: float, reports: Sequence[dict[str, Any]], seed: int) -> ColdRow:
    def cold(name: str) -> Quantity:
        calls = [answer["cold"][name] for answer in reports]
        return quantity([call[index] for call in calls], [call[0] for call in calls], seed)

    def warm(name: str) -> Quantity:
        rounds = [answer["warm"][name] for answer in reports]
        samples = [median(ratios[index]) for ratios in rounds]
        paired = [median(a / b for a, b in zip(ratios[index], ratios[0], strict=True)) for ratios in rounds]
        return dataclasses.replace(quantity(samples, samples, seed), ratio=ratio_of(paired, seed))

    return ColdRow(
        keep_ratio,
        cold_ttft=cold("ttft_seconds"),
        cold_throughput=cold("tokens_per_second"),
        warm_ttft=warm("ttft_seconds"),
        warm_throughput=warm("tokens_per_second"),
    )
