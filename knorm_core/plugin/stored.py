"""Results from the store or the cluster of the command line.

They are for the reproduction and its experiments, whose numbers are looked at. What exists to compute, the
tests of every commit and the goldens, is kept from them.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from knorm_core.contract.command_line import options
from knorm_core.evaluation import Evaluation
from knorm_core.plugin.inputs import LoadedModel
from knorm_core.setting import SlowFallbackWarning
from knorm_core.sweeps.cells import Cell, inputs_of
from knorm_core.sweeps.cluster import ClusterError
from knorm_core.sweeps.codec import Codec, remember
from knorm_core.sweeps.environment import environment
from knorm_core.sweeps.outcome import Outcome
from knorm_core.sweeps.run import run_cells, with_progress
from knorm_core.sweeps.store import Store, StoreWarning, store_of

_TALLY = "knorm_results"
_stores: pytest.StashKey[list[Store]] = pytest.StashKey()
_tallies: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-store",
        type=_store,
        default=None,
        metavar="FILE.sqlite|off",
        help="where results are kept and found again by later runs of the reproduction, or off to compute them "
        "anew (default: $KNORM_STORE, else results.sqlite in the user's cache folder)",
    )
    group.addoption(
        "--knorm-scheduler",
        default=None,
        metavar="ADDRESS",
        help="Dask scheduler (tcp://…) whose workers are to compute the reproduction's tables (default: this machine)",
    )


def _store(value: str) -> str:
    if value != "off" and not value.endswith(".sqlite"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither off nor the name of a file that ends in .sqlite")
    return value


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stores], config.stash[_tallies] = [], []
    try:
        _store_or_none(config)
    except ValueError as error:
        raise pytest.UsageError(f"KNORM_STORE: {error}, or is off") from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        computes = {"fast", "golden"} & {mark.name for mark in item.iter_markers()}
        if computes and "result_store" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid} is marked {computes.pop()}, so it has to compute: no result_store")


def _store_or_none(config: pytest.Config) -> tuple[Store | None, str]:
    """The store, or None and why there is none although it was not switched off.

    Raises:
        ValueError: KNORM_STORE names no store.
    """
    try:
        return store_of(config.getoption("knorm_store"), fresh=bool(config.getoption("force_regen"))), ""
    except RuntimeError as error:  # a user without a home has no cache folder
        return None, f"results are not stored: {error}; --knorm-store FILE.sqlite names a place for them"


@pytest.fixture(scope="session")
def result_store(request: pytest.FixtureRequest) -> Store | None:
    """The store of --knorm-store; with --force-regen nothing is looked up in it."""
    config = request.config
    store, problem = _store_or_none(config)
    if problem:
        warnings.warn(StoreWarning(problem), stacklevel=1)
    if store is not None:
        config.stash[_stores].append(store)
    return store


@pytest.fixture(scope="session")
def cell_of(request: pytest.FixtureRequest, language_model: LoadedModel) -> Callable[..., Cell]:
    """``cell_of(text, input_ids, arguments)``: an evaluation of the model of the command line."""
    option = request.config.getoption
    identity = (language_model.name, *language_model.identity)

    def cell(text: str, input_ids: Any, arguments: Mapping[str, Any]) -> Cell:
        return Cell(*identity, text, input_ids, arguments, option("knorm_dtype"), option("knorm_device"))

    return cell


@pytest.fixture(scope="session")
def run_all(
    request: pytest.FixtureRequest, language_model: LoadedModel, result_store: Store | None
) -> Callable[..., dict[Cell, Outcome]]:
    """``run_all(cells)``: their outcomes, from the store, the cluster of --knorm-scheduler, or this process."""
    scheduler = request.config.getoption("knorm_scheduler")
    manager = request.config.pluginmanager
    terminal, capture = manager.get_plugin("terminalreporter"), manager.get_plugin("capturemanager")

    def run(cells: Iterable[Cell]) -> dict[Cell, Outcome]:
        cells = list(cells)
        coming = run_cells(cells, store=result_store, scheduler=scheduler, progress=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", SlowFallbackWarning)  # to be told of, not a failure
                if scheduler is None or terminal is None or capture is None:  # xdist's workers have no terminal
                    return {outcome.cell: outcome for outcome in coming}
                with capture.global_and_fixture_disabled():
                    terminal.ensure_newline()
                    return {outcome.cell: outcome for outcome in with_progress(coming, len(cells), terminal._tw._file)}
        except ClusterError as error:
            sentence = str(error)
        pytest.exit(sentence, pytest.ExitCode.USAGE_ERROR)

    return run


@pytest.fixture(scope="session")
def rows_of(cell_of: Callable[..., Cell], run_all: Callable[..., Any]) -> Callable[..., dict[Any, Evaluation]]:
    """``rows_of(text, input_ids, rows)``: `evaluate_rows` with the model of the command line."""

    def evaluated(text: str, input_ids: Any, rows: Mapping[Any, Mapping[str, Any]]) -> dict[Any, Evaluation]:
        cells = {key: cell_of(text, input_ids, arguments) for key, arguments in rows.items()}
        outcomes = run_all(cells.values())
        return {key: outcomes[cell].result() for key, cell in cells.items()}

    return evaluated


@pytest.fixture(scope="session")
def remembered(
    request: pytest.FixtureRequest, language_model: LoadedModel, result_store: Store | None
) -> Callable[..., Any]:
    """``remembered(what, text, input_ids, settings, compute, codec)``: any result, computed once for its inputs."""
    option = request.config.getoption

    def result(
        what: str, text: str, input_ids: Any, settings: Any, compute: Callable[[], Any], codec: Codec[Any]
    ) -> Any:
        inputs = inputs_of(
            what,
            **language_model.identity._asdict(),
            input_ids=input_ids,
            settings=settings,
            dtype=option("knorm_dtype"),
            environment=environment(option("knorm_device")),
        )
        return remember(result_store, f"{what} of {language_model.name} on {text}", inputs, compute, codec)

    return result


# --- what the run is told at its end


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    tallies = [
        {"path": str(store.path), "reused": store.reused, "computed": store.computed} for store in config.stash[_stores]
    ]
    config.stash[_tallies] += tallies
    if hasattr(config, "workeroutput"):
        config.workeroutput[_TALLY] = tallies


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_tallies] += getattr(node, "workeroutput", {}).get(_TALLY, [])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    tallies = config.stash[_tallies]
    reused = sorted(time[:16].replace("T", " ") for tally in tallies for time in tally["reused"])
    computed = sum(tally["computed"] for tally in tallies)
    if reused:
        when = reused[0] if reused[0] == reused[-1] else f"{reused[0]} … {reused[-1]}"
        terminalreporter.line(
            f"knorm: {len(reused)} of {len(reused) + computed} results from the store {tallies[0]['path']}, computed "
            f"{when} UTC; --knorm-store off computes them anew"
        )
    elif computed:
        terminalreporter.line(f"knorm: {computed} results computed, for the store {tallies[0]['path']}")
    if computed and exitstatus == pytest.ExitCode.INTERRUPTED:
        terminalreporter.line("knorm: interrupted; the same command goes on from there")
