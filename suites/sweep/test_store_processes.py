"""The store's promises where other processes write at once, are killed, or find the disk full."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from knorm_core.sweeps.store import Store
from suites.kills_and_damage.killed import Process, killed_at
from suites.sweep.numbered import get, put, quietly, value

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]

# They import the store alone, which takes a tenth of a second.
PROGRAM = """
import resource, sys, warnings
sys.path.insert(0, {root!r})
from knorm_core.sweeps.store import Store
from suites.sweep.numbered import get, put, value
warnings.simplefilter("always")
store = Store({path!r})
"""


def process(store, program):
    program = PROGRAM.format(root=str(ROOT), path=str(store.path)) + program
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_run_killed_while_it_replaces_a_damaged_store_loses_nothing(damaged):
    store, whole = damaged
    content, change = store.path.read_bytes(), 1
    while killed_at(change, lambda: quietly(get, Store(store.path), 0)):
        saved, _ = quietly(lambda: [n for n in range(200) if get(Store(store.path), n) == value(n)])
        assert saved == whole, change
        for path in store.path.parent.iterdir():
            path.unlink()
        store.path.write_bytes(content)
        change += 1
    assert change > 4


def test_on_a_full_disk_a_damaged_store_stays_until_there_is_room(damaged):
    store, whole = damaged
    content = store.path.read_bytes()
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))"
    out, err = process(store, f"{limit}; put(store, 1000); print(get(store, 1000))").communicate(timeout=60)
    assert out == "None\n", err
    assert "Results are not stored from here on" in err
    assert store.path.read_bytes() == content
    assert [path for path in store.path.parent.iterdir() if path.suffix != ".lock"] == [store.path]
    saved, said = quietly(lambda: [number for number in range(200) if get(store, number) == value(number)])
    assert saved == whole
    assert "Moved to" in said[0]


def test_on_a_full_disk_the_run_goes_on_says_so_once_and_keeps_what_was_stored(store):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    full = f"{limit}; put(store, *range(30)); print(get(store, 0) == value(0))"
    out, err = process(store, full).communicate(timeout=60)
    assert out == "True\n", err
    assert err.count("Results are not stored from here on") == 1
    stored = [get(store, number) for number in range(30)]
    assert stored[:3] == [value(0), value(1), value(2)]
    assert stored[-1] is None
    put(store, 29)
    assert get(store, 29) == value(29)


def test_runs_at_once_lose_nothing_of_each_other_even_when_they_find_the_store_damaged(store):
    put(store, 1000)
    store.path.write_bytes(store.path.read_bytes()[:5000])
    writers = [process(store, f"put(store, *range({first}, {first + 10}))") for first in (0, 10, 20)]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert sum("Moved to" in error for error in errors) == 1, errors
    assert [get(store, number) for number in range(30)] == [value(number) for number in range(30)]


def test_a_store_that_is_deleted_again_and_again_goes_on_storing(store):
    def write(tell):
        _, sentences = quietly(put, store, *range(40))
        tell(len(sentences) + 1000 * store._writes)

    begin = time.monotonic()
    put(store, *range(12))
    # Sometimes at once, sometimes after time enough for all to store several: no store keeps up with less for ever.
    pauses, longest = random.Random(0), 2 * (time.monotonic() - begin)
    writers = [Process(write) for _ in range(4)]
    running = list(writers)
    while running:
        for path in (store.path, Path(f"{store.path}-journal")):
            path.unlink(missing_ok=True)
        time.sleep(pauses.uniform(0, longest))
        running = [writer for writer in running if not writer.has_told()]
    assert [writer.end() for writer in writers] == [(0, [1000])] * 4
    put(store, 1)
    assert get(Store(store.path), 1) == value(1)


def test_what_was_stored_before_a_kill_is_there_after_it(store):
    for round_ in range(3):
        first = 100 * round_
        writer = process(store, f"for n in range({first}, {first + 100}): put(store, n); print(n, flush=True)")
        for _ in range(4 + round_):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        stored = first + 4 + round_ + len(writer.communicate()[0].split())
        for number in range(first, stored):
            assert get(store, number) == value(number)
