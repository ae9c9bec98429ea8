"""A sweep: a list of cells, evaluated here or on a cluster. Each result is stored at once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO

from knorm_core.sweeps.cells import Bench, Cell
from knorm_core.sweeps.environment import environment
from knorm_core.sweeps.outcome import Outcome, keep, look_up
from knorm_core.sweeps.store import Store

_LINE_EVERY = 10.0  # seconds, where progress is shown as lines


def run_cells(
    cells: Iterable[Cell],
    *,
    store: Store | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> Iterator[Outcome]:
    """Evaluate every cell; yield each outcome as it arrives, already stored.

    In this process, neighbouring cells of one text share phase 1, and those that are the same by definition
    share everything, as in `evaluate_rows`. A cell that fails does not stop the others. Stopped at any
    time and started again with the same store, a sweep goes on where it was.

    Args:
        cells: in any order, but a model and a text at a time is fastest.
        store: where to look results up and to put them.
        scheduler: address of a Dask scheduler (``tcp://…``) whose workers are to do the work; see
            `knorm_core.sweeps.cluster`. Outcomes then come in the order of their completion.
        progress: show on stderr how far it is, and the totals at the end.

    Raises:
        ClusterError: there is no such scheduler, or none of its workers would give the same numbers.
    """
    if progress:
        cells = list(cells)
        yield from with_progress(
            run_cells(cells, store=store, scheduler=scheduler, progress=False), len(cells), sys.stderr
        )
        return
    if scheduler is not None:
        from knorm_core.sweeps.cluster import outcomes

        yield from outcomes(cells, scheduler, store)
        return
    bench = Bench()
    for cell in cells:
        try:
            around = environment(cell.device)
            outcome = look_up(cell, store, [around])
            if outcome is None:
                outcome = keep(cell, store, around, bench(cell))
        except Exception as error:
            outcome = Outcome(cell, error=error)
        yield outcome


def with_progress(outcomes: Iterable[Outcome], total: int, file: IO[str]) -> Iterator[Outcome]:
    """Yield the outcomes and show progress: a bar on a terminal, elsewhere a line every ten seconds.

    The totals are a line at the end, on both.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    stored = failed = done = 0
    console = Console(file=file)
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()]
    last = -math.inf
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def show() -> None:
            nonlocal last
            sentence = f"{done} of {total} cells, {stored} from the store, {failed} failed"
            bar.update(task, completed=done, description=sentence)
            if not console.is_terminal and (done in (0, total) or time.monotonic() - last >= _LINE_EVERY):
                print(f"knorm: {sentence}", file=file, flush=True)
                last = time.monotonic()

        show()
        for outcome in outcomes:
            done += 1
            stored += outcome.stored is not None
            failed += outcome.error is not None
            show()
            yield outcome
    if console.is_terminal:
        print(f"knorm: {done} of {total} cells, {stored} from the store, {failed} failed", file=file, flush=True)
