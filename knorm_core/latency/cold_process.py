"""What a fresh process runs for `measure_cold_start`: a request on standard input, one line of JSON back.

`PROGRAM` reads the clock before anything is imported, so that imports can be told apart.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from knorm_core.compressor import l2_compress
from knorm_core.inputs.models import load_model
from knorm_core.latency.generation import Clock, Job, device_clock, feed_prompt, generate
from knorm_core.latency.measure import check_job, measure_job
from knorm_core.latency.quantity import quantity

PROGRAM = """
import time
begin = time.monotonic()
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from knorm_core.latency.cold_process import main
main(time.monotonic() - begin)
"""
_WARM_CALLS = 3


def run_in_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    """Run `main` in a fresh interpreter; a RuntimeError with the end of its standard error if it fails."""
    # The package may be run from a checkout that is on sys.path only.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if finished.returncode:
        raise RuntimeError(f"a fresh process ended with status {finished.returncode}: {finished.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def main(import_seconds: float) -> None:
    """Load the model, do what the request asks, print the answer."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    clock = device_clock()
    begin = clock()
    model, _ = load_model(request["model"], dtype=getattr(torch, request["dtype"]), device=request["device"])
    load_seconds = clock() - begin
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(request["seed"])
    ids = torch.randint(vocabulary, (request["prompt_tokens"],), generator=generator)
    job, ratios = check_job(
        model, ids, request["keep_ratios"], request["prune_after"], request["new_tokens"], l2_compress, False, clock
    )
    answer = {"import_seconds": import_seconds, "load_seconds": load_seconds}
    if request["kind"] == "parts":
        answer |= _parts(job, clock)
    else:
        answer |= _as_the_report_may_have(job, ratios, request)
    print(json.dumps(answer))


def _as_the_report_may_have(job: Job, keep_ratios: list[float], request: dict[str, Any]) -> dict[str, Any]:
    """Keep 1.0 first, no warm-up, once; then, in the same process that is warm by now, honest rounds."""
    modules = set(sys.modules)
    cold = [generate(job, keep_ratios[0])]
    imported = len(set(sys.modules) - modules)
    cold += [generate(job, ratio) for ratio in keep_ratios[1:]]
    warm = measure_job(job, keep_ratios, repeats=request["repeats"], warmup=0, seed=request["seed"])
    return {
        "modules_imported_by_first_call": imported,
        "cold": {name: [getattr(run, name) for run in cold] for name in ("ttft_seconds", "tokens_per_second")},
        "warm": {name: [getattr(row, name).samples for row in warm] for name in ("ttft_seconds", "tokens_per_second")},
        "environment": dataclasses.asdict(warm.environment),
    }


def _parts(job: Job, clock: Clock) -> dict[str, Any]:
    """What a first call pays once, one thing at a time: each is done, then done again warm.

    Two tokens through the model bring in whatever it imports and sets up lazily without any large
    tensor; then memory of the size of the prompt's cache is allocated and written to; then comes the
    first prompt.
    """
    short = dataclasses.replace(job, input_ids=job.input_ids[:2])
    kernels = _first_and_warm(lambda: feed_prompt(short).seconds)
    cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in feed_prompt(short).cache.layers)
    size = cache_bytes // 2 * job.prompt_tokens

    def allocate() -> float:
        begin = clock()
        torch.empty(size, dtype=torch.uint8, device=job.input_ids.device).fill_(1)
        return clock() - begin

    allocation = _first_and_warm(allocate)
    forward = _first_and_warm(lambda: feed_prompt(job).seconds)
    return {"kernels": kernels, "allocation": allocation, "forward": forward}


def _first_and_warm(measure: Callable[[], float]) -> dict[str, float]:
    first = measure()
    warm = [measure() for _ in range(_WARM_CALLS)]
    return {"first": first, "warm": quantity(warm, warm).median}
