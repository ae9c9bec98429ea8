"""The fast suite many times over, each time in another order: the same outcomes, and memory that stays.

``python suites/soak/run.py FOLDER [--runs N] [pytest's arguments]`` runs it N times in one process, whose memory
is measured after each, and N times under ``-n 2``, each in processes of its own as usual. ``tox -e soak`` is that
command. The exit status is 0 if every test ended alike in all runs, and the one process did not grow.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from scipy.stats import linregress

from knorm_core.results.file import read_results

RUNS = 20
SETTLED = 5  # runs after which everything is imported and every cache is full
GROWTH = 1 << 20  # bytes a run; pytest itself keeps some hundreds of kilobytes of each session
LARGE = 1 << 17  # bytes
LIBC = ctypes.CDLL(None)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where each run's results are kept")
    parser.add_argument("--runs", type=int, default=RUNS, help="(default: %(default)s)")
    options, arguments = parser.parse_known_args()
    arguments = arguments or ["-m", "fast"]
    memory, outcomes, troubles = [], {}, []
    _give_back_what_is_freed()
    for seed in range(1, options.runs + 1):
        name = f"one process, seed {seed}"
        status = pytest.main(_arguments(arguments, _emptied(options.folder / name), seed))
        troubles += _unfinished(name, status)
        outcomes[name] = _outcomes(options.folder / name)
        memory.append(_memory())
        print(f"{name}: {memory[-1] / 2**20:.1f} MiB", flush=True)
    for seed in range(1, options.runs + 1):
        name = f"-n 2, seed {seed}"
        several = ["-n", "2", "--dist", "loadgroup"]
        options_of_run = _arguments(arguments, _emptied(options.folder / name), seed)
        run = subprocess.run([sys.executable, "-m", "pytest", *several, *options_of_run], check=False)
        troubles += _unfinished(name, run.returncode)
        outcomes[name] = _outcomes(options.folder / name)
    troubles += [*_differences(outcomes), *_growth(memory)]
    print(*(troubles or [f"{len(outcomes)} runs: the same outcomes every time, and no growth"]), sep="\n")
    return len(troubles) > 0


def _arguments(arguments: list[str], report: Path, seed: int) -> list[str]:
    return ["-q", "-p", "no:cacheprovider", f"--randomly-seed={seed}", f"--knorm-report={report}", *arguments]


def _emptied(report: Path) -> Path:
    """Where no results of an earlier soak are taken for this one's."""
    shutil.rmtree(report, ignore_errors=True)
    return report


def _unfinished(run: str, status: int) -> list[str]:
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return []
    return [f"{run}: pytest ended with status {int(status)}, not all of its tests ran"]


def _outcomes(report: Path) -> dict[str, str]:
    """By node id. xdist adds a test's group to its node id, which is no part of its name here."""
    if not report.exists():
        return {}
    return {re.sub(r"@[^@\]]*$", "", test.nodeid): test.outcome for test in read_results(report).tests}


def _give_back_what_is_freed() -> None:
    """glibc keeps blocks of ever more bytes when they are freed, in the end of 32 MiB: here, of `LARGE` as at first.

    Else 80 to 95 MiB more are resident, and each random order leaves other holes between what is in use.
    """
    if hasattr(LIBC, "mallopt"):
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            LIBC.mallopt(threshold, LARGE)


def _memory() -> int:
    """Resident bytes of this process, without what is only waiting to be given back.

    Hypothesis remembers every local module that it has seen, and each run imports its conftest.py anew: with that
    module it would keep the session of each run, 4,000 objects and 0.9 MiB for suites/contract alone.
    """
    for tracked in gc.get_objects():
        if type(tracked) is functools._lru_cache_wrapper and tracked.__module__.startswith("hypothesis."):
            tracked.cache_clear()
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def _differences(outcomes: dict[str, dict[str, str]]) -> list[str]:
    """What failed in any run, or did not end as in the first."""
    [(first, expected), *_] = outcomes.items()
    troubles = [] if expected else [f"{first}: no test ran"]
    for run, ended in outcomes.items():
        for test in sorted(expected.keys() | ended.keys()):
            was, now = expected.get(test, "absent"), ended.get(test, "absent")
            if now != was or now == "failed":
                troubles.append(f"{test}: {now} in {run}" + (f", {was} in {first}" if now != was else ""))
    return troubles


def _growth(memory: list[int]) -> list[str]:
    """Whether memory grows from the settled run to the last, by more than `GROWTH` a run and than chance."""
    settled = memory[SETTLED - 1 :]
    if len(settled) < 3:
        return [f"memory: {len(memory)} runs are too few to tell, at least {SETTLED + 2} are needed"]
    trend = linregress(range(len(settled)), settled)
    if trend.slope - 2 * trend.stderr > GROWTH:
        return [f"memory grows by {trend.slope / 2**20:.2f} ± {2 * trend.stderr / 2**20:.2f} MiB a run"]
    return []  # also where all are equal: the error is not a number then


if __name__ == "__main__":
    sys.exit(main())
