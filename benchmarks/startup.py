"""How long from the start of the interpreter until model and tokenizer are ready, and who takes it.

    python benchmarks/startup.py [--processes 5]

Every figure is the median over fresh processes of wall time and, in brackets, CPU time, in seconds. The
model is converted and its file is in the operating system's cache. "transformers alone" loads the same
folder with transformers' own calls and nothing of ours: the difference to "ready" is this project's share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from knorm_core.inputs.models import model_folder

_TIMED = """
import json, sys, time
start = time.perf_counter() - time.process_time()  # what came before this line was CPU time
def now(): return time.perf_counter() - start, time.process_time()
folder, dtype, ours = sys.argv[1:]
import torch
marks = {"torch imported": now()}
if ours == "yes":
    import knorm_core
    marks["knorm_core imported"] = now()
    knorm_core.load_model(dtype=getattr(torch, dtype))
    marks["model and tokenizer ready"] = now()
else:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    marks["transformers' classes imported"] = now()
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    AutoTokenizer.from_pretrained(folder, local_files_only=True)
    marks["the same by transformers alone"] = now()
print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=5)
    processes = parser.parse_args().processes
    folder = str(model_folder("smollm2-135m"))
    table = Table("seconds from the start of the interpreter", "float32", "float64")
    columns = [timed(folder, dtype, processes) for dtype in ("float32", "float64")]
    for mark in columns[0]:
        table.add_row(mark, *(f"{column[mark][0]:.2f} ({column[mark][1]:.2f})" for column in columns))
    Console().print(table)


def timed(folder: str, dtype: str, processes: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds until each mark."""
    samples: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(processes + 1):
        for ours in ("yes", "no"):  # in turn, so that a machine whose speed drifts does not decide
            command = [sys.executable, "-c", _TIMED, folder, dtype, ours]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for mark, seconds in json.loads(answer.splitlines()[-1]).items():
                if round_:  # the first round warms up
                    samples.setdefault(mark, []).append(seconds)
    return {
        mark: (statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken))
        for mark, taken in samples.items()
    }


if __name__ == "__main__":
    main()
