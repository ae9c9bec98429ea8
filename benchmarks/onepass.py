"""How fast the one-pass evaluation is: against a plain forward, against stepwise, a whole table, and memory.

Policies whose score is fixed at a key's birth, and policies that look at the cache, the queries or the attention,
whose evictions are played forward; of the latter also that the time of phase 2 grows as the text does.

    python benchmarks/onepass.py [--lengths 1024,2048,4096,8192] [--rounds 7] [--variants 'keep 0.5,keep 0.99']

Everything is timed in one process, warm, in float32 with one thread, as CPU time: each variant runs right
after a plain forward of its own, in rounds, and the figure is the median over rounds of that pair's ratio, so
that neither other processes nor a machine whose speed drifts decide; a table has one after each of its rows.
Stepwise is timed over a measured stretch of the text and extrapolated to all of it: its cost per token is the
same throughout phase 2, since the cache length only swings between the kept count and prune_after. Peak
memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from knorm_core import evaluate, load_model, load_texts
from knorm_core.evaluator import Evaluator
from knorm_core.latency.environment import cpu_name

PRUNE_AFTER = 256
RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)
GROWTH = (1024, 4096, 16384)
REPLAYED = ("h2o", "tova", "snapkv", "keydiff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", default="", help="only these, such as 'keep 0.5,table of 11' (default: all)")
    parser.add_argument("--growth", action="store_true", help="only how phase 2 grows with the text, on a small model")
    parser.add_argument("--memory-of", choices=("plain", "low_norm", *REPLAYED), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.growth:
        show_growth(Console(soft_wrap=True))
        return
    lengths = [int(length) for length in arguments.lengths.split(",")]
    model, ids = model_and_ids(max(lengths))
    if arguments.memory_of:
        print(peak_memory_of(arguments.memory_of, model, ids))
        return
    console = Console(soft_wrap=True)
    console.print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, float32, prune_after {PRUNE_AFTER}")
    console.print("CPU time as a multiple of a plain uncompressed forward with the same logits: median, quartiles")
    for length in lengths:
        for name, seconds, ratios in pairs(model, ids[:length], arguments.rounds, arguments.variants):
            low, middle, high = statistics.quantiles(ratios, n=4)
            plain = f"plain {seconds:.2f} s"
            console.print(
                f"{length:>6,} tokens, {plain}: {name:<12} {middle:.3f}, {low:.3f} to {high:.3f}", highlight=False
            )
    console.print(
        f"stepwise takes {stepwise_ratio(model, ids[:1024]):.1f} times as long as one pass at 1,024 tokens, keep 0.5"
    )
    for length in (1024, 4096):
        if length <= max(lengths):
            plain, *others = (memory_in_new_process(what, length) for what in ("plain", "low_norm", *REPLAYED))
            ratios = ", ".join(
                f"{policy} {peak / plain:.2f}" for policy, peak in zip(("low_norm", *REPLAYED), others, strict=True)
            )
            console.print(
                f"peak memory above the loaded model, {length:,} tokens: plain {plain:,.0f} MiB; as a multiple of that "
                f"with a budget of {PRUNE_AFTER}: {ratios}"
            )
    show_growth(console)


def pairs(
    model: torch.nn.Module, ids: torch.Tensor, rounds: int, only: str
) -> Iterator[tuple[str, float, list[float]]]:
    """Per variant: its name, the median seconds of a plain forward, and the ratio of every pair."""
    variants: dict[str, Callable[[], object]] = {
        **{f"keep {r}": lambda r=r: evaluate(model, ids, keep_ratio=r) for r in (0.99, 0.9, 0.5, 0.1)},
        "budget 256": lambda: evaluate(model, ids, when="fixed_budget", budget=PRUNE_AFTER),
        **{f"{p} keep 0.5": lambda p=p: evaluate(model, ids, policy=p, keep_ratio=0.5) for p in REPLAYED},
        **{
            f"{p} budget 256": lambda p=p: evaluate(model, ids, policy=p, when="fixed_budget", budget=PRUNE_AFTER)
            for p in REPLAYED
        },
    }
    for name, variant in variants.items():
        if only and name not in only.split(","):
            continue
        cpu_seconds(variant)  # warm
        # A plain forward on either side: their mean is what the machine was worth while the variant ran.
        plain = [cpu_seconds(lambda: plain_forward(model, ids))]
        ratios = []
        for _ in range(rounds):
            seconds = cpu_seconds(variant)
            plain.append(cpu_seconds(lambda: plain_forward(model, ids)))
            ratios.append(seconds / statistics.fmean(plain[-2:]))
        yield name, statistics.median(plain), ratios
    if len(ids) <= 1024 and (not only or "table of 11" in only.split(",")):
        tables = [table_and_plain(model, ids) for _ in range(max(2, rounds // 2))]
        yield "table of 11", statistics.median(plain for _, plain in tables), [all_ / plain for all_, plain in tables]


def table_and_plain(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of a whole table, row by row, and the mean seconds of a plain forward after each of its rows.

    A table takes too long for a single forward at either end to tell what the machine was worth meanwhile.
    """
    rows = {
        (mode, ratio): {"positions": mode, "keep_ratio": ratio, "prune_after": PRUNE_AFTER}
        for mode in ("absolute", "cache")
        for ratio in RATIOS
    }
    table, plain = 0.0, []
    evaluator = Evaluator(model, ids)
    for setting in evaluator.settings(rows).values():
        table += cpu_seconds(lambda setting=setting: evaluator.run_shared(setting))
        plain.append(cpu_seconds(lambda: plain_forward(model, ids)))
    return table, statistics.fmean(plain)


def cpu_seconds(run: Callable[[], object]) -> float:
    # Not torch's Timer: it runs what it times twice more to warm up, every time, and pairs would be far apart.
    return timeit.timeit(run, timer=time.process_time, number=1)


@torch.inference_mode()
def plain_forward(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The uncompressed model on the same tokens, with the logits that one pass needs and no losses."""
    return model(ids[None, :-1], use_cache=False, logits_to_keep=len(ids) - 1 - PRUNE_AFTER).logits


def show_growth(console: Console) -> None:
    """CPU time of a token of phase 2 at several lengths: the same where the time grows as the text does."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=GROWTH[-1],
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(256, (GROWTH[-1],), generator=torch.Generator().manual_seed(0))
    for policy in ("low_norm", *REPLAYED):
        for how in ({"keep_ratio": 0.5}, {"when": "fixed_budget", "budget": PRUNE_AFTER}):
            evaluate(model, ids[:512], policy=policy, **how)
            times = [cpu_seconds(partial(evaluate, model, ids[:n], policy=policy, **how)) for n in GROWTH]
            each = ", ".join(
                f"{n:,} tokens {seconds / (n - PRUNE_AFTER) * 1e6:,.0f}"
                for n, seconds in zip(GROWTH, times, strict=True)
            )
            kind = f"{policy} {'keep 0.5' if 'keep_ratio' in how else f'budget {PRUNE_AFTER}'}"
            console.print(f"a small model, microseconds per token of phase 2, {kind}: {each}", highlight=False)


def stepwise_ratio(model: torch.nn.Module, ids: torch.Tensor, stretch: int = 384) -> float:
    """Stepwise over onepass at the full length, stepwise extrapolated from the first ``stretch`` tokens."""

    def part() -> object:
        return evaluate(model, ids[:stretch], keep_ratio=0.5, method="stepwise")

    def whole() -> object:
        return evaluate(model, ids, keep_ratio=0.5)

    cpu_seconds(whole)
    return statistics.median(cpu_seconds(part) * (len(ids) - 1) / (stretch - 1) / cpu_seconds(whole) for _ in range(3))


def peak_memory_of(what: str, model: torch.nn.Module, ids: torch.Tensor) -> float:
    """MiB by which this process's peak grows, over what it is with the model loaded and warm."""

    def evaluated(model: torch.nn.Module, ids: torch.Tensor) -> object:
        return evaluate(model, ids, policy=what, when="fixed_budget", budget=PRUNE_AFTER)

    run = plain_forward if what == "plain" else evaluated
    run(model, ids[:512])
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew, without that of loading
    before = status_kib("VmRSS")
    run(model, ids)
    return (status_kib("VmHWM") - before) / 1024


def status_kib(field: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])


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
