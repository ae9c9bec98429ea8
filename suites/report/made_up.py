"""Tables of a kind that no baseline has (times, traces, other precisions), made by what records them in a run."""

from __future__ import annotations

import dataclasses

from knorm_core.counts import kept_count
from knorm_core.latency import ColdStart, Contexts, Latency, LatencyRow, Quantity, Ratio
from knorm_core.latency.cold_start import ColdRow, Part
from knorm_core.latency.environment import Environment
from knorm_core.latency.records import Record, cold_start_records, contexts_record, latency_record
from knorm_core.results.records import Table

MODEL = "smollm2-135m"
KEEPS = (1.0, 0.9, 0.5, 0.1)
MACHINE = Environment(**{field.name: 0.0 for field in dataclasses.fields(Environment)})  # type: ignore[arg-type]
MACHINE = dataclasses.replace(MACHINE, cpu="AMD EPYC", dtype="float32", threads=1)


def quantity(value: float, ratio: float | None = None, spread: float = 0.05) -> Quantity:
    """A measured quantity, with its ratio to keep 1 and the interval of that."""
    paired = None if ratio is None else Ratio(ratio, ratio * (1 - spread), ratio * (1 + spread), (ratio,))
    return Quantity(value, 0.97 * value, 1.04 * value, (value,), paired)


def table(record: Record) -> Table:
    """A record as a run names it."""
    return Table(f"{MODEL}/latency/{record.what}", record.key, record.rows, record.made_from, run="a1")


def timed(prompt: int, speed: dict[float, float], ttft: float = 1.0, busy: float = 0.0) -> Latency:
    """At each keep ratio, the paired ratio of tokens per second, and that of the time to first token below 1."""
    rows = []
    for keep, paired in speed.items():
        held = quantity(46080 * prompt * keep, keep, 0)
        first = quantity(prompt / 500, 1.0 if keep == 1 else ttft)
        rows.append(
            LatencyRow(keep, 1, first, quantity(8 * paired, paired), quantity(0.01), held, held, held, held, None)
        )
    machine = dataclasses.replace(MACHINE, others_busy_cores=busy)
    return Latency(tuple(rows), prompt, 8, 256, 5, 1, 0, (), (), machine)


def contexts(gain: float = 2.86) -> Table:
    """Decoding at keep 0.1 is ``gain`` times as fast at the longest context; the machine was busy."""
    lengths = (512, 2048, 8192)
    share = dict(zip(KEEPS, (0.0, 0.1, 0.6, 1.0), strict=True))
    latencies = [
        timed(length, {keep: 1 + (gain - 1) * share[keep] * length / lengths[-1] for keep in KEEPS}, busy=1.0)
        for length in lengths
    ]
    return table(contexts_record(Contexts(lengths, tuple(latencies))))


def ttft(ratio: float = 1.01) -> Table:
    """The time to first token is ``ratio`` that of keep 1.0 at every keep ratio below."""
    return table(latency_record(timed(256, {keep: 1.0 if keep == 1 else 0.99 for keep in KEEPS}, ratio)))


def cold_start(first_call: float = 1.1, honest: float = 1.01) -> list[Table]:
    """A first call takes ``first_call`` warm ones; honest timers show ``honest`` at every keep ratio."""
    speed = quantity(11.0, 0.99)
    rows = [
        ColdRow(
            keep,
            quantity(0.6, 1.0 if keep == 1 else honest / first_call),
            speed,
            quantity(0.52, 1.0 if keep == 1 else honest),
            speed,
        )
        for keep in KEEPS
    ]
    parts = [
        Part("imports before the call", False, quantity(4.2, 8.0)),
        Part("loading the model", False, quantity(0.9, 1.8)),
        Part("lazy imports and kernels", True, quantity(0.03, 0.06)),
        Part("first allocation", True, quantity(0.004, 0.01)),
        Part("first forward", True, quantity(0.02, 0.04)),
    ]
    whole = quantity(0.52 * first_call, first_call), quantity(5.1 + 0.52 * first_call, 9.8 + first_call)
    cold = ColdStart(MODEL, "float32", 256, 256, 4, 2, 0, *whole, tuple(parts), tuple(rows), (3,), (), MACHINE)
    return [table(record) for record in cold_start_records(cold)]


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
