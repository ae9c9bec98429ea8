"""Latency as tables: titles, rows of header and cell, and notes, for whoever prints them.

What is measured prints itself with these, so they import none of it: a `Latency`, `Contexts` or `ColdStart` is Any.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from knorm_core.counts import kept_count
from knorm_core.latency.environment import Environment
from knorm_core.latency.quantity import Quantity, Ratio
from knorm_core.latency.rounds import Failure


class TableText(NamedTuple):
    """A table to print: every row has the same headers, in the order of columns; notes go below."""

    title: str
    rows: list[dict[str, Any]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The title, then headings and rows in aligned columns, then the notes."""
        cells = [
            [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in self.rows
        ]
        lines = [list(self.rows[0]), *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *aligned, *self.notes])


def latency_table(latency: Any) -> TableText:
    """One row per keep ratio: times, throughput and bytes, and their paired ratios to keep 1."""
    rows = [
        {
            "keep": f"{row.keep_ratio:g}",
            "TTFT s": _milli(row.ttft_seconds),
            "of keep 1": _multiple(row.ttft_seconds.ratio),
            "tokens/s": row.tokens_per_second.median,
            "× keep 1": _multiple(row.tokens_per_second.ratio),
            "compress ms": row.compress_seconds.median * 1e3,
            "mean MiB": _mebibytes(row.cache_bytes_mean),
            "× mean": _times(row.cache_bytes_mean.ratio),
            "peak MiB": _mebibytes(row.cache_bytes_peak),
        }
        for row in latency
    ]
    title = (
        f"Latency: prompt {latency.prompt_tokens}, {latency.new_tokens} tokens decoded, "
        f"prune_after {latency.prune_after}, {len(latency.orders)} rounds"
    )
    return TableText(title, rows, (_INTERVALS, *_circumstances(latency.environment, latency.failures)))


def contexts_table(contexts: Any) -> TableText:
    """One row per context length and keep ratio, and from where on decoding gains."""
    latencies = contexts.latencies
    rows = []
    for context, latency in zip(contexts.contexts, latencies, strict=True):
        prompt = latency.prompt_tokens
        prompt_seconds = latency.row(1.0).ttft_seconds.median  # fed once, never compressed
        for row in latency:
            # After an eviction the cache grows from kept + 1 back to the prompt's length.
            long_run = (kept_count(prompt, row.keep_ratio) + 1 + prompt) / 2 / prompt
            compresses = row.keep_ratio < 1
            rows.append(
                {
                    "context": f"{context:,}",
                    "keep": f"{row.keep_ratio:g}",
                    "cache MiB": _mebibytes(row.cache_bytes_after_prefill),
                    "× keep 1": _times(row.cache_bytes_after_prefill.ratio),
                    "long run": f"{long_run:.2f}" if compresses else "",
                    "prompt s": _milli(row.ttft_seconds),
                    "compressing": f"{row.ttft_seconds.median / prompt_seconds - 1:+.2%}" if compresses else "",
                    "tokens/s": row.tokens_per_second.median,
                    "tokens/s × keep 1": _multiple(row.tokens_per_second.ratio) if compresses else "",
                    "faster": _faster(row.tokens_per_second.ratio) if compresses else "",
                }
            )
    failures = tuple(failure for latency in latencies for failure in latency.failures)
    notes = (
        " ".join(_gains(contexts, ratio) for ratio in contexts.keep_ratios),
        "The prompt is compressed once, when it is in. long run: mean cache between evictions with prune_after = "
        "prompt, as a share of it. compressing: what it adds to the time of the prompt.",
        _INTERVALS,
        *_circumstances(latencies[-1].environment, failures),
    )
    title = f"What compression buys along the context ({latencies[0].new_tokens} tokens decoded)"
    return TableText(title, rows, notes)


def cold_start_tables(cold: Any) -> tuple[TableText, TableText]:
    """The first call and its parts; and both ways to measure, keep ratio by keep ratio."""
    timed = [("whole first call", "yes", cold.first_call)]
    timed += [
        (f"extra: {part.name}" if part.inside else part.name, "yes" if part.inside else "no", part.seconds)
        for part in cold.parts
    ]
    timed.append(("first call, imports and loading", "no", cold.first_call_with_start))
    parts = [
        {"what": what, "in the timer": inside, "s": f"{seconds.median:.4f}", "warm calls": _multiple(seconds.ratio)}
        for what, inside, seconds in timed
    ]
    ways = [
        {
            "keep": f"{row.keep_ratio:g}",
            "TTFT cold way": _or_empty(row.cold_ttft.ratio),
            "TTFT honest": _or_empty(row.warm_ttft.ratio),
            "tokens/s cold way": _or_empty(row.cold_throughput.ratio),
            "tokens/s honest": _or_empty(row.warm_throughput.ratio),
        }
        for row in cold.rows[1:]
    ]
    circumstances = _circumstances(cold.environment, cold.failures)
    return (
        TableText(
            f"First call of a fresh process ({cold.model}, {cold.dtype}, prompt {cold.prompt_tokens}, keep 1.0, "
            f"{len(cold.first_call.samples)} processes of either kind)",
            parts,
            (
                f"extra: what only the first one takes. The first call imported "
                f"{max(cold.modules_imported_by_first_call)} modules.",
                *circumstances,
            ),
        ),
        TableText(
            "Two ways to measure latency (change against keep 1.0)",
            ways,
            (*_start(cold), "cold way: fresh process, keep 1.0 first, once.", *circumstances),
        ),
    )


_INTERVALS = "Ratios are to keep 1 of the same round: median, and its 95 % bootstrap interval."


def _circumstances(environment: Environment, failures: tuple[Failure, ...]) -> list[str]:
    """Machine and load in a line, and warnings where the numbers deserve them."""
    notes = [
        f"{environment.cpu}, {environment.device}, {environment.dtype}, {environment.threads} threads on "
        f"{environment.cores} cores, torch {environment.torch}; load {environment.load_before:.1f} to "
        f"{environment.load_after:.1f}."
    ]
    if environment.busy:
        notes.append(
            f"BUSY MACHINE: other processes took {environment.others_busy_cores:.1f} of {environment.cores} cores."
        )
    if failures:
        notes.append(f"FAILED and not counted: {len(failures)} rounds; at {failures[0].case}: {failures[0].error}")
    return notes


def _start(cold: Any) -> list[str]:
    """What a timer would have shown that ran from the start of the process; which is no time to first token."""
    ratio = cold.first_call_with_start.ratio
    if ratio is None:
        return []
    return [
        f"Had the baseline's timer also run over imports and loading of the model, a cold start would make "
        f"{ratio.inverse.change}. That is no time to first token, and nothing here says what the report timed."
    ]


def _gains(contexts: Any, keep_ratio: float) -> str:
    gains = contexts.gains_from(keep_ratio)
    if gains is None:
        return f"Keep {keep_ratio:g} never decodes faster than keep 1, up to {contexts.contexts[-1]:,} tokens."
    return f"Keep {keep_ratio:g} decodes faster than keep 1 from {gains:,} tokens on."


def _faster(ratio: Ratio | None) -> str:
    if ratio is None or not math.isfinite(ratio.high):
        return "?"
    return "yes" if ratio.low > 1 else "slower" if ratio.high < 1 else "no"


def _or_empty(ratio: Ratio | None) -> str:
    return "" if ratio is None else str(ratio)


def _multiple(ratio: Ratio | None) -> str:
    return "" if ratio is None else ratio.multiple


def _times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.3f}"


def _milli(measured: Quantity) -> str:
    return f"{measured.median:.3f}"


def _mebibytes(measured: Quantity) -> float:
    return measured.median / 2**20
