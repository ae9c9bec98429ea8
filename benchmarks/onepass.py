"""How fast the one-pass evaluation is: against a plain forward, against stepwise, a whole table, and memory.

    python benchmarks/onepass.py [--lengths 1024,2048,4096,8192] [--rounds 5]

Everything is timed in one process, warm, in float32 with one thread, in rounds: each round times the plain
forward and every variant once, in turn, and the figure is the median over rounds of their ratio within the
round, so that a machine whose speed drifts does not decide. Stepwise is timed over a measured stretch of the
text and extrapolated to all of it: its cost per token is the same throughout phase 2, since the cache
length only swings between the kept count and prune_after. Peak memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer

from knorm_core import evaluate, evaluate_table, load_model, load_texts
from knorm_core.latency.environment import cpu_name

PRUNE_AFTER = 256
RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=("plain", "onepass"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    model, ids = model_and_ids(max(lengths))
    if arguments.memory_of:
        print(peak_memory_of(arguments.memory_of, model, ids))
        return
    console = Console()
    console.print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, float32, prune_after {PRUNE_AFTER}")
    table = Table(title="Time as a multiple of a plain uncompressed forward with the same logits (median of rounds)")
    for heading in ("tokens", "plain forward", "keep 0.99", "keep 0.9", "keep 0.5", "keep 0.1", "budget 256", "table"):
        table.add_column(heading, justify="right")
    for length in lengths:
        table.add_row(*row(model, ids[:length], arguments.rounds))
    console.print(table)
    console.print(
        f"stepwise takes {stepwise_ratio(model, ids[:1024]):.1f} times as long as one pass at 1,024 tokens, keep 0.5"
    )
    for length in (1024, 4096):
        if length <= max(lengths):
            plain, onepass = (memory_in_new_process(what, length) for what in ("plain", "onepass"))
            console.print(
                f"peak memory above the loaded model, {length:,} tokens, keep 0.5: "
                f"plain {plain:,.0f} MiB, one pass {onepass:,.0f} MiB ({onepass / plain:.2f})"
            )


def row(model: torch.nn.Module, ids: torch.Tensor, rounds: int) -> list[str]:
    variants: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_forward(model, ids),
        **{str(r): lambda r=r: evaluate(model, ids, keep_ratio=r) for r in (0.99, 0.9, 0.5, 0.1)},
        "budget": lambda: evaluate(model, ids, when="fixed_budget", budget=PRUNE_AFTER),
    }
    if len(ids) <= 1024:
        variants["table"] = lambda: evaluate_table(
            model, ids, keep_ratios=RATIOS, positions=("absolute", "cache"), prune_after=PRUNE_AFTER
        )
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        for name, variant in variants.items():
            seconds = Timer("variant()", globals={"variant": variant}).timeit(1).mean
            if index:  # the first round warms up
                times[name].append(seconds)
    cells = [f"{len(ids):,}", f"{statistics.median(times['plain']):.2f} s"]
    for name in list(variants)[1:]:
        ratios = [a / b for a, b in zip(times[name], times["plain"], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f}")
    return cells + [""] * (8 - len(cells))


@torch.inference_mode()
def plain_forward(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The uncompressed model on the same tokens, with the logits that one pass needs and no losses."""
    return model(ids[None, :-1], use_cache=False, logits_to_keep=len(ids) - 1 - PRUNE_AFTER).logits


def stepwise_ratio(model: torch.nn.Module, ids: torch.Tensor, stretch: int = 384) -> float:
    """Stepwise over onepass at the full length, stepwise extrapolated from the first ``stretch`` tokens."""
    part = Timer("f()", globals={"f": lambda: evaluate(model, ids[:stretch], keep_ratio=0.5, method="stepwise")})
    whole = Timer("f()", globals={"f": lambda: evaluate(model, ids, keep_ratio=0.5)})
    whole.timeit(1)
    return statistics.median(
        part.timeit(1).mean * (len(ids) - 1) / (stretch - 1) / whole.timeit(1).mean for _ in range(3)
    )


def peak_memory_of(what: str, model: torch.nn.Module, ids: torch.Tensor) -> float:
    """MiB by which this process's peak grows, over what it is with the model loaded and warm."""
    run = plain_forward if what == "plain" else lambda m, i: evaluate(m, i, keep_ratio=0.5, prune_after=PRUNE_AFTER)
    run(model, ids[:512])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(model, ids)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory_in_new_process(what: str, length: int) -> float:
    command = [sys.executable, __file__, "--lengths", str(length), "--memory-of", what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def model_and_ids(length: int) -> tuple[torch.nn.Module, torch.Tensor]:
    model, tokenizer = load_model(dtype=torch.float32)
    [text] = load_texts("embedded-narrative", tokenizer, max_eval_tokens=length)
    repeats = -(-length // len(text.input_ids))  # the narrative has some 5,200 tokens; speed does not read
    return model, text.input_ids.repeat(repeats)[:length]


if __name__ == "__main__":
    main()
