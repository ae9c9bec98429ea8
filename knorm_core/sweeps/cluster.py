"""A sweep's cells on the workers of a Dask scheduler, which does all the scheduling.

A worker loads a model once, keeps it, and evaluates one cell at a time with one thread: start one worker per
core (``dask worker ADDRESS --nworkers -1 --nthreads 1``). A cell whose worker dies is given to another one.
A worker whose torch, transformers or knorm is not that of the client gets no cells, since its numbers would
not be the same. Results go to the client, and into its store, as they come; workers need no common folder
but that of the models.

Results travel as JSON and safetensors, which are read and never run. Dask itself, though, carries functions and
errors as pickles: whoever may use a scheduler can run code on its workers and on its clients, so join one only
where you trust all who can reach it.
"""

from __future__ import annotations

import hashlib
import json
import queue
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from knorm_core.evaluation import Evaluation
from knorm_core.sweeps.cells import Bench, Cell
from knorm_core.sweeps.codec import EVALUATION
from knorm_core.sweeps.environment import environment, versions
from knorm_core.sweeps.outcome import Outcome, keep, look_up
from knorm_core.sweeps.store import Store, canonical

if TYPE_CHECKING:
    from distributed import Client, Future


class ClusterError(RuntimeError):
    """The cluster cannot do the work; the message says why. What was done is stored."""


class ClusterWarning(UserWarning):
    """Some worker of the cluster cannot do the work; the others go on."""


# --- on a worker

_bench = Bench()
_TOPIC = "knorm"  # of the events by which workers hand over what they did


class Done(NamedTuple):
    """An evaluation, and the environment it was computed in."""

    evaluation: Evaluation
    around: dict[str, Any]

    def message(self) -> dict[str, Any]:
        """The form that is sent: JSON as text, and safetensors."""
        facts, tensors = EVALUATION.to_bytes(self.evaluation)
        return {"json": json.dumps({"facts": facts, "around": self.around}), "tensors": tensors}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Done:
        """The inverse of `message`. Anything else raises an error; nothing of it is run."""
        content = json.loads(message["json"])
        return cls(EVALUATION.of_bytes(content["facts"], message["tensors"]), dict(content["around"]))


class Refused(NamedTuple):
    """A worker that is not to compute, and why."""

    address: str
    why: str


def evaluate_here(cell: Cell, wanted: Mapping[str, str]) -> dict[str, Any] | Refused:
    """Evaluate a cell on this worker, if its versions are the client's."""
    from distributed import get_worker

    torch.set_num_threads(1)
    around = environment(cell.device)
    why = differences(wanted, around)
    worker = get_worker()
    if why:
        return Refused(worker.address, why)
    done = Done(_bench(cell), around).message()
    # Goes out ahead of Dask's own word that the task is done: a result that still lies with a worker when it
    # dies would be computed again.
    worker.log_event(_TOPIC, {"task": worker.get_current_task(), **done})
    return done


def environments_here(devices: Iterable[str]) -> list[dict[str, Any]]:
    """This worker's environment for each device."""
    torch.set_num_threads(1)
    return [environment(device) for device in devices]


def differences(wanted: Mapping[str, str], got: Mapping[str, str]) -> str:
    """How the versions of two sides differ, as part of a sentence; empty if they are equal.

    Builds of one version of torch, for processors or for GPUs, go together.

    >>> differences({"torch": "2.13.0+cpu"}, {"torch": "2.13.0+cu126"})
    ''
    >>> differences({"torch": "2.13.0", "transformers": "5.23.0"}, {"torch": "2.13.0", "transformers": "4.57.1"})
    'transformers 4.57.1, not 5.23.0'
    """

    def short(name: str, version: str) -> str:
        return f"{version[:12]}…" if name == "knorm_core" else version.partition("+")[0]

    pairs = [(name, short(name, got.get(name, "none")), short(name, version)) for name, version in wanted.items()]
    called = {"knorm_core": "knorm_core's sources"}
    return " and ".join(
        f"{called.get(name, name)} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours
    )


# --- on the client


def outcomes(cells: Iterable[Cell], address: str, store: Store | None) -> Iterator[Outcome]:
    """`knorm_core.sweeps.run.run_cells` on the workers of the scheduler at ``address``."""
    from distributed import KilledWorker

    cells = list(cells)
    with _client(address) as client:
        crew = _Crew(client, sorted({cell.device for cell in cells}))
        known: list[Outcome] = []
        todo: dict[str, list[Cell]] = {}  # cells with the same inputs are computed once
        for cell in cells:
            try:
                outcome = look_up(cell, store, crew.environments[cell.device])
                if outcome is None:
                    key = hashlib.sha256(canonical(cell.inputs(crew.wanted)).encode()).hexdigest()
                    todo.setdefault(key, []).append(cell)
            except Exception as error:
                outcome = Outcome(cell, error=error)
            if outcome is not None:
                known.append(outcome)

        def settled(key: str, reply: Done | BaseException) -> Iterator[Outcome]:
            for cell in todo[key]:
                if isinstance(reply, Done):
                    yield keep(cell, store, reply.around, reply.evaluation)
                else:
                    yield Outcome(cell, error=reply)

        asked = [crew.ask(key, group[0]) for key, group in todo.items()]
        yield from known
        fallen = []
        for key, reply in crew.replies(asked):
            if isinstance(reply, KilledWorker):
                fallen.append(key)
            else:
                yield from settled(key, reply)
        # A cell that kills its workers takes along those that wait there: each of them once more, alone.
        for fallen_key in fallen:
            for key, reply in crew.replies([crew.ask(fallen_key, todo[fallen_key][0])]):
                yield from settled(key, reply)


class _Crew:
    """The workers: which of them compute, and their answers.

    Attributes:
        wanted: versions that a worker has to have.
        environments: per device, what the workers' environments are.
    """

    def __init__(self, client: Client, devices: list[str]) -> None:
        self.client = client
        self.wanted = versions()
        self.refused: set[str] = set()
        self.times: Counter[str] = Counter()
        self.asked: dict[str, tuple[str, Cell]] = {}  # by Dask's key of the task, as the next two
        self.futures: dict[str, Future[Any]] = {}
        self.done: dict[str, Done] = {}
        self.news: queue.SimpleQueue[str] = queue.SimpleQueue()  # tasks that are done, or have ended
        client.subscribe_topic(_TOPIC, self._hear)
        self.environments: dict[str, list[dict[str, Any]]] = {device: [] for device in devices}
        client.wait_for_workers(1)  # what is stored can only be looked up once their environment is known
        for worker, around in client.run(environments_here, devices, on_error="return").items():
            if isinstance(around, BaseException):
                self.refuse(Refused(worker, f"{type(around).__name__}: {around}"))
            elif devices and (why := differences(self.wanted, around[0])):
                self.refuse(Refused(worker, why))
            else:
                for device, there in zip(devices, around, strict=True):
                    if there not in self.environments[device]:
                        self.environments[device].append(there)

    def refuse(self, refused: Refused) -> None:
        """Give a worker no more cells.

        Raises:
            ClusterError: no other is left.
        """
        if refused.address not in self.refused:
            self.refused.add(refused.address)
            sentence = f"worker {refused.address} is refused, since its numbers would not be the same: {refused.why}"
            warnings.warn_explicit(sentence, ClusterWarning, "knorm", 1)
        if not self._others():
            raise ClusterError(
                f"no worker is left; {refused.address} is refused: {refused.why}. Start workers with the versions of "
                f"this process"
            )

    def ask(self, key: str, cell: Cell) -> str:
        """Have a cell evaluated, by workers that are not refused as long as there are any; Dask's key of the task."""
        self.times[key] += 1
        task = f"knorm-{key}-{self.times[key]}"
        self.asked[task] = (key, cell)
        others = self._others() if self.refused else None
        self.futures[task] = self.client.submit(
            evaluate_here, cell, self.wanted, key=task, workers=others, allow_other_workers=others is not None
        )
        self.futures[task].add_done_callback(lambda future: self.news.put(future.key))
        return task

    async def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take what a worker hands over; Dask need not keep it then, nor compute it again when the worker dies."""
        _, message = event
        task = message.get("task") if isinstance(message, dict) else None
        if not isinstance(task, str):  # anybody can post to the topic, anything
            return
        if task in self.asked:
            with suppress(Exception):
                self.done[task] = Done.of(message)
        if task in self.done:
            self.news.put(task)
            if task in self.futures:
                await self.client.cancel([self.futures[task]], asynchronous=True)

    def replies(self, tasks: Iterable[str]) -> Iterator[tuple[str, Done | BaseException]]:
        """Yield each answer as it arrives, with the key of its task."""
        waiting = set(tasks)
        while waiting:
            task = self.news.get()
            if task not in waiting:
                continue
            waiting.remove(task)
            key, cell = self.asked[task]
            future = self.futures.pop(task)
            if task in self.done:
                yield key, self.done.pop(task)
            elif future.cancelled():
                raise ClusterError(
                    "the scheduler is gone; what was done is stored, and the same command goes on from there"
                )
            elif future.status == "error":
                yield key, future.exception()
            elif isinstance(result := future.result(), Refused):
                self.refuse(result)
                waiting.add(self.ask(key, cell))
            else:
                yield key, Done.of(result)

    def _others(self) -> list[str]:
        return [worker for worker in self.client.nthreads() if worker not in self.refused]


def _client(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("a scheduler needs Dask: pip install dask distributed") from None
    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({error}): start one with 'dask scheduler', which prints its "
            f"address"
        ) from error
