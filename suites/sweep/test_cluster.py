"""A sweep on a real Dask cluster of separate processes: the same numbers, whatever happens to a worker."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from knorm_core.sweeps.cluster import ClusterError, ClusterWarning, _Crew
from knorm_core.sweeps.environment import versions
from knorm_core.sweeps.run import run_cells, with_progress
from knorm_core.sweeps.store import Store, canonical

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

distributed = pytest.importorskip("distributed", reason="needs pip install dask distributed")

ROOT = Path(__file__).parents[2]
ROWS = [
    {"keep_ratio": ratio, "positions": mode, "prune_after": 40}
    for mode in ("absolute", "cache")
    for ratio in (1.0, 0.7, 0.3)
]
POISON = {"keep_ratio": 0.5, "prune_after": 0}
SLOW = [{"keep_ratio": ratio, "prune_after": 40, "method": "stepwise"} for ratio in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]


@pytest.fixture(scope="module")
def two_workers():
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),  # how many workers one cell may kill
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        started.client = client
        yield started


@pytest.fixture
def cluster(two_workers):
    """Two workers in processes of their own; one that was killed has been started again."""
    two_workers.client.wait_for_workers(2)
    two_workers.earlier = len(two_workers.client.get_events("knorm"))
    return two_workers


def times_done(cluster):
    """How often each task was done in this test, as the scheduler was told."""
    return Counter(message["task"] for _, message in cluster.client.get_events("knorm")[cluster.earlier :])


def executing(client):
    """(task, process id) of every worker that is in the middle of a task."""

    def here(dask_worker):
        return [(task.key, os.getpid()) for task in dask_worker.state.executing]

    return [
        task_and_process for of_worker in client.run(here, on_error="ignore").values() for task_and_process in of_worker
    ]


def models_loaded(client):
    def count():
        from knorm_core.sweeps import cluster

        return cluster._bench.loaded

    return client.run(count)


def check_same(outcomes, cells):
    """Every cell has come once, with the numbers of this process to the last bit."""
    from suites.sweep.test_sweep import equal

    expected = {outcome.cell: outcome.result() for outcome in run_cells(cells)}
    assert len(outcomes) == len(cells)
    for outcome in outcomes:
        assert equal(outcome.result(), expected.pop(outcome.cell))


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_another_client_posts_among_the_results_is_never_run(cluster, cells_of, tmp_path):
    cells = cells_of(SLOW)
    harm = pickle.dumps(Harm(tmp_path / "ran"))
    coming = run_cells(cells, scheduler=cluster.scheduler_address)
    first = next(coming)
    for cell in cells:
        task = f"knorm-{hashlib.sha256(canonical(cell.inputs(versions())).encode()).hexdigest()}-1"
        for content in ({"done": harm}, {"json": "{}", "tensors": harm}, {"json": harm, "tensors": harm}):
            cluster.client.log_event("knorm", {"task": task, **content})
    for message in ("no message", {}, {"task": None}, {"task": ["a list"]}, [1], None):
        cluster.client.log_event("knorm", message)
    check_same([first, *coming], cells)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("message", ["no message", {}, {"task": None}, {"task": ["a list"]}, [1], None])
def test_a_message_that_names_no_task_is_passed_over(message):
    crew = object.__new__(_Crew)
    crew.asked, crew.done = {}, {}
    asyncio.run(crew._hear((0.0, message)))
    assert crew.done == {}


def test_workers_give_the_same_numbers_load_a_model_once_and_store_what_they_did(cluster, cells_of, tmp_path):
    store, cells = Store(tmp_path / "results.sqlite"), cells_of(ROWS, texts=4)
    outcomes = list(run_cells(cells, store=store, scheduler=cluster.scheduler_address))
    check_same(outcomes, cells)
    assert max(models_loaded(cluster.client).values()) == 1
    assert sorted(times_done(cluster).values()) == [1] * len(cells)
    again = list(run_cells(cells, store=store, scheduler=cluster.scheduler_address))
    check_same(again, cells)
    assert all(outcome.stored for outcome in again)
    assert len(times_done(cluster)) == len(cells)
    here = list(run_cells(cells[:2], store=store))  # one thread here as there: the same entry
    assert all(outcome.stored for outcome in here)


def test_a_worker_killed_within_a_cell_loses_nothing_but_that_cells_time(cluster, cells_of):
    cells = cells_of(SLOW, tokens=250)
    coming = run_cells(cells, scheduler=cluster.scheduler_address)
    outcomes = [next(coming)]
    while not (before := executing(cluster.client)):
        pass
    interrupted, process = before[0]
    os.kill(process, signal.SIGKILL)
    assert interrupted not in times_done(cluster)
    outcomes += coming
    check_same(outcomes, cells)
    assert set(times_done(cluster).values()) == {1}  # what was done was not done again
    assert interrupted in times_done(cluster)


def test_a_cell_that_fails_is_reported_and_does_not_stop_the_others(cluster, cells_of, tmp_path):
    store = Store(tmp_path / "results.sqlite")
    cells = cells_of([ROWS[1], POISON, ROWS[2]])
    said = io.StringIO()
    coming = run_cells(cells, store=store, scheduler=cluster.scheduler_address)
    outcomes = {outcome.cell: outcome for outcome in with_progress(coming, 3, said)}
    assert isinstance(outcomes.pop(cells[1]).error, ValueError)
    check_same(list(outcomes.values()), [cells[0], cells[2]])
    assert said.getvalue().splitlines()[-1] == "knorm: 3 of 3 cells, 0 from the store, 1 failed"


def test_a_cell_that_kills_every_worker_is_reported_and_does_not_take_the_others_along(cluster, cells_of):
    [deadly], others = cells_of(SLOW[:1], tokens=500), cells_of(ROWS, texts=2)
    key = "knorm-" + hashlib.sha256(canonical(deadly.inputs(versions())).encode()).hexdigest()
    killed, over = [], threading.Event()

    def kill_whoever_runs_it():
        while not over.wait(0.05):
            for task, process in executing(cluster.client):
                if task.startswith(key) and process not in killed:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    killer = threading.Thread(target=kill_whoever_runs_it)
    killer.start()
    try:
        outcomes = {o.cell: o for o in run_cells([deadly, *others], scheduler=cluster.scheduler_address)}
    finally:
        over.set()
        killer.join()
    failed = outcomes.pop(deadly)
    assert isinstance(failed.error, distributed.KilledWorker)
    assert len(killed) == 4  # two in the crowd, two alone
    check_same(list(outcomes.values()), others)


# --- workers that would give other numbers


@pytest.fixture
def scheduler():
    """A scheduler without workers."""
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as started:
        yield started


@pytest.fixture
def start_worker(scheduler, tmp_path):
    """``start_worker(path, preload="")``: a worker with its own import path, as on another machine."""
    started = []

    def start(path, preload=""):
        script = tmp_path / f"preload_{len(started)}.py"
        script.write_text(preload)
        command = [
            sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address, "--nthreads", "1",
            "--no-dashboard", "--preload", str(script), "--local-directory", str(tmp_path),
        ]  # fmt: skip
        worker = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(path)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(worker)
        with distributed.Client(scheduler, set_as_default=False) as client:
            client.wait_for_workers(len(started), timeout=60)
        return worker

    yield start
    for worker in started:
        worker.terminate()
    for worker in started:
        worker.communicate(timeout=30)


@pytest.fixture
def other_code(tmp_path):
    """A copy of this package of which one source is another."""
    shutil.copytree(ROOT / "knorm_core", tmp_path / "other" / "knorm_core")
    with (tmp_path / "other" / "knorm_core" / "counts.py").open("a") as file:
        file.write("\n# changed\n")
    return tmp_path / "other"


PRELOADS = {
    "torch": "import torch; torch.__version__ = '1.2.3'",
    "transformers": "import transformers; transformers.__version__ = '1.2.3'",
    "no knorm": "import sys; sys.modules['knorm_core'] = None",
}


@pytest.mark.parametrize("differs", ["knorm_core", "torch", "transformers", "no knorm"])
def test_a_worker_of_another_version_is_refused_with_both_named(differs, scheduler, start_worker, other_code, cells_of):
    cells = cells_of(ROWS, tokens=60)
    start_worker(other_code if differs == "knorm_core" else ROOT, PRELOADS.get(differs, ""))
    both = {
        "knorm_core": r"knorm_core's sources [0-9a-f]{12}…, not [0-9a-f]{12}…",
        "torch": r"torch 1.2.3, not 2\.",
        "transformers": r"transformers 1.2.3, not \d",
        "no knorm": r"ModuleNotFoundError.*knorm_core",
    }[differs]
    with pytest.warns(ClusterWarning, match=both), pytest.raises(ClusterError, match=both):
        list(run_cells(cells, scheduler=scheduler.scheduler_address))
    start_worker(ROOT)
    with pytest.warns(ClusterWarning, match=f"is refused, since its numbers would not be the same: .*{both}"):
        outcomes = list(run_cells(cells, scheduler=scheduler.scheduler_address))
    check_same(outcomes, cells)


def test_a_worker_of_another_version_that_joins_later_is_refused_too(scheduler, start_worker, other_code, cells_of):
    cells = cells_of(SLOW, tokens=250)
    start_worker(ROOT)
    coming = run_cells(cells, scheduler=scheduler.scheduler_address)
    outcomes = [next(coming)]
    start_worker(other_code)
    with pytest.warns(ClusterWarning, match=r"is refused, .* knorm_core's sources"):
        outcomes += coming
    check_same(outcomes, cells)
    with distributed.Client(scheduler, set_as_default=False) as client:
        assert sorted(models_loaded(client).values()) == [0, 1]


def test_no_scheduler_is_said_in_one_sentence(cells_of):
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(
            ClusterError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*: start one with 'dask scheduler'"
        ),
    ):
        list(run_cells(cells_of(ROWS), scheduler="tcp://127.0.0.1:9"))


def test_a_reproduction_on_a_cluster_shows_its_progress(reproduction, cluster):
    run = reproduction("--knorm-scheduler", cluster.scheduler_address)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    assert "knorm: 48 of 48 cells, 0 from the store, 0 failed" in said
    assert "knorm: 48 results computed, for the store" in said
    assert len(times_done(cluster)) == 48
