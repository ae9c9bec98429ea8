"""Tables of a kind that no baseline has (times, traces, other precisions), with the columns that a run records."""

from __future__ import annotations

from typing import Any

from knorm_core.counts import kept_count
from knorm_core.results import Table

MODEL = "smollm2-135m"
ENVIRONMENT = {"cpu": "AMD EPYC", "dtype": "float32", "threads": 1}


def quantity(name: str, value: float, ratio: float | None = None, spread: float = 0.05) -> dict[str, float]:
    """The columns of a measured quantity."""
    columns = {name: value, f"{name}_lower_quartile": value * 0.97, f"{name}_upper_quartile": value * 1.04}
    if ratio is not None:
        columns |= {f"{name}_ratio": ratio}
        columns |= {f"{name}_ratio_low": ratio * (1 - spread), f"{name}_ratio_high": ratio * (1 + spread)}
    return columns


def contexts(gain: float = 2.86) -> Table:
    """Decoding at keep 0.1 is ``gain`` times as fast at the longest context."""
    rows: list[dict[str, Any]] = []
    for context in (512, 2048, 8192):
        for keep, share in ((1.0, 0.0), (0.9, 0.1), (0.5, 0.6), (0.1, 1.0)):
            speed = 1 + (gain - 1) * share * context / 8192
            size = 46080 * context * keep
            rows.append(
                {"context": context, "keep_ratio": keep}
                | quantity("tokens_per_second", 8 * speed, speed)
                | quantity("ttft_seconds", context / 500, 1.0)
                | quantity("cache_bytes_after_prefill", size, keep, 0)
            )
    made = {"settings": {"new_tokens": 8}, "environment": ENVIRONMENT, "busy": True}
    return Table(f"{MODEL}/latency/contexts", ["context", "keep_ratio"], rows, made, run="a1")


def ttft(ratio: float = 1.01) -> Table:
    """The time to first token is ``ratio`` that of keep 1.0 at keep 0.9."""
    rows = [
        {"keep_ratio": keep}
        | quantity("ttft_seconds", 0.52, 1.0 if keep == 1 else ratio)
        | quantity("tokens_per_second", 11.0, 1.0 if keep == 1 else 0.99)
        for keep in (1.0, 0.9, 0.5, 0.1)
    ]
    made = {"settings": {"prompt_tokens": 256}, "environment": ENVIRONMENT, "busy": False}
    return Table(f"{MODEL}/latency/ttft", ["keep_ratio"], rows, made, run="a1")


def cold_start(first_call: float = 1.1, honest: float = 1.01) -> list[Table]:
    """A first call takes ``first_call`` warm ones; honest timers show ``honest`` at every keep ratio."""
    rows = [
        {"keep_ratio": keep}
        | quantity("cold_ttft_seconds", 0.6, 1.0 if keep == 1 else honest / first_call)
        | quantity("warm_ttft_seconds", 0.52, 1.0 if keep == 1 else honest)
        for keep in (1.0, 0.9, 0.5, 0.1)
    ]
    rows = [{name.replace("ttft_seconds", "ttft"): value for name, value in row.items()} for row in rows]
    calls = [
        {"what": what, "inside": inside} | quantity("seconds", seconds, seconds / 0.52)
        for what, inside, seconds in (
            ("whole first call", True, 0.52 * first_call),
            ("imports before the call", False, 4.2),
            ("loading the model", False, 0.9),
            ("lazy imports and kernels", True, 0.03),
            ("first allocation", True, 0.004),
            ("first forward", True, 0.02),
            ("first call, imports and loading", False, 5.1 + 0.52 * first_call),
        )
    ]
    return [
        Table(f"{MODEL}/latency/cold-start", ["keep_ratio"], rows, {"environment": ENVIRONMENT}, run="a1"),
        Table(f"{MODEL}/latency/first-call", ["what"], calls, {"environment": ENVIRONMENT}, run="a1"),
    ]


def precisions(shift: float = 3e-4) -> Table:
    """float32 moves perplexity by ``shift`` at most, bfloat16 by 2 %."""
    rows = [
        {
            "dtype": dtype,
            "policy": policy,
            "keep_ratio": keep,
            "ppl": 37.0 * (1 + moved),
            "shift": moved,
            "evictions": 0 if keep == 1 else 990,
            "differ": 0.0 if keep == 1 else differ,
            "keys_differ": 0.0 if keep == 1 else differ / 3,
        }
        for dtype, moved, differ in (("float64", 0.0, 0.0), ("float32", shift, 0.004), ("bfloat16", -0.02, 0.83))
        for policy, keeps in (("none", (1.0,)), ("low_norm", (0.9, 0.5, 0.1)), ("low_norm_exact", (0.9, 0.5, 0.1)))
        for keep in keeps
    ]
    name = f"{MODEL}/embedded-articles/precision-dtypes"
    return Table(name, ["dtype", "policy", "keep_ratio"], rows, {"settings": {"tokens": 512}}, run="a1")


def trace(prune_after: int = 256, tokens: int = 1024) -> Table:
    """The corners of a sawtooth: grown to ``prune_after``, cut to the kept count, and so on."""
    rows = []
    for keep in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1):
        corners, step = {0: 1, tokens - 2: tokens - 1}, prune_after
        kept = kept_count(prune_after, keep)
        while keep < 1 and step < tokens - 1:
            corners |= {step - 1: prune_after, step: kept + 1, tokens - 2: kept + tokens - 1 - step}
            step += prune_after - kept
        rows += [{"keep_ratio": keep, "step": step, "cache_length": length} for step, length in sorted(corners.items())]
    return Table(f"{MODEL}/embedded-articles/cache-trace", ["keep_ratio", "step"], rows, run="a1")


def all_tables() -> list[Table]:
    """One of each."""
    return [trace(), contexts(), ttft(), *cold_start(), precisions()]
