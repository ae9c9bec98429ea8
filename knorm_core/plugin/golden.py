"""Golden files: numbers by pytest-regressions, text by syrupy, one flag for both.

Nothing under ``baselines/`` is ever written without ``--force-regen``. With it, new files are staged in a
folder beside them and moved into place when the whole run has passed; an interrupted or failing run changes
nothing, and one killed while it moves them is finished by the next, before that compares anything.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import psutil
import pytest
import yaml
from rich.table import Table
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from knorm_core.compare import changed_cells
from knorm_core.plugin.all_or_nothing import finish, replace_all
from knorm_core.plugin.recorder import RecordTable
from knorm_core.plugin.tables import print_table
from knorm_core.results.records import Baseline, ChangedCell

RTOL = 1e-6
_STAGING = "KNORM_STAGING"
_VERSIONS = "versions"


class Golden:
    """Compare rows of numbers with a baseline; see `check`."""

    def __init__(
        self,
        root: Path,
        staging: Path | None,
        regression: Any,
        command: str,
        record_table: RecordTable,
        missing: str = "fail",
    ) -> None:
        self._root, self._staging, self._regression, self._command = root, staging, regression, command
        self._record_table, self._missing = record_table, missing

    def exists(self, name: str) -> bool:
        """Whether ``baselines/<name>.csv`` is there to compare with."""
        return (self._root / f"{name}.csv").exists()

    def check(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        key: Sequence[str],
        made_from: Mapping[str, Any],
        rtol: float = RTOL,
        atol: float = 0.0,
    ) -> None:
        """Compare ``rows`` with ``baselines/<name>.csv``, or stage it under ``--force-regen``.

        Args:
            name: path below baselines/, without suffix: model/text/table.
            rows: one mapping per row; the columns named by ``key`` label it, the others are numbers.
            made_from: what decides the numbers (model, tokenizer and text hashes, settings), so that a
                changed text is told apart from a changed number. Stored beside, in <name>.yml.
            rtol, atol: tolerance of every number.
        """
        __tracebackhide__ = True
        frame = pandas.DataFrame(
            [{column: value for column, value in row.items() if column not in key} for row in rows],
            index=pandas.Index([" ".join(str(row[column]) for column in key) for row in rows], name=" ".join(key)),
        )
        if not frame.index.is_unique:
            raise ValueError(f"{name}: {', '.join(key)} does not tell the rows apart")
        provenance = {**made_from, _VERSIONS: _versions()}

        def record(status: str, cells: Sequence[ChangedCell] = ()) -> None:
            self._record_table(name, rows, key=key, made_from=provenance, baseline=Baseline(status, rtol, atol, cells))

        if self._staging is not None:
            self._stage(name, frame, provenance, rtol, atol)
            record("same")
            return
        table, source = self._root / f"{name}.csv", self._root / f"{name}.yml"
        if not table.exists() or not source.exists():
            record("missing")
            if self._missing == "skip":
                pytest.skip(
                    f"no baseline {table}, so nothing was compared: the same command with --force-regen makes it"
                )
            pytest.fail(f"no baseline {table}: to make it, run\n    {self._command}", pytrace=False)
        old, made = _read_or_none(table), _provenance_or_none(source)
        if old is None or made is None:
            record("damaged")
            pytest.fail(
                f"{source if made is None else table} is damaged, so nothing was compared: take it from version "
                f"control again, or make it anew with\n    {self._command}",
                pytrace=False,
            )
        changed = [
            f"{what}: {made.get(what)} -> {value}" for what, value in made_from.items() if made.get(what) != value
        ]
        if changed:
            record("other source")
            pytest.fail(
                f"{table} was made from something else, so its numbers say nothing about this run:\n  "
                + "\n  ".join(changed)
                + f"\nIf that is meant: {self._command}",
                pytrace=False,
            )
        cells = changed_cells(_rows(old), _rows(frame))
        if differences := _other_shape(old, frame):
            record("changed", cells)
            pytest.fail(
                f"the table has another shape than {table}:\n  "
                + "\n  ".join(differences)
                + f"\nIf that is meant: {self._command}",
                pytrace=False,
            )
        try:
            self._regression.check(
                frame,
                fullpath=table,
                default_tolerance={"rtol": rtol, "atol": atol},
                tolerances={column: {"rtol": Baseline("same", rtol).rtol_of(column), "atol": atol} for column in frame},
            )
            record("same", cells)
        except AssertionError as error:
            record("changed", cells)
            now = _versions()
            versions = [f"{what} {old} -> {now[what]}" for what, old in made[_VERSIONS].items() if old != now[what]]
            pytest.fail(
                f"the numbers changed against {table} (rtol {rtol}); the model, text and settings are the same, "
                + (f"the versions are not: {', '.join(versions)}" if versions else "and so are the versions")
                + f"\n{error}\nIf that is meant: {self._command}",
                pytrace=False,
            )

    def _stage(self, name: str, frame: Any, provenance: Mapping[str, Any], rtol: float, atol: float) -> None:
        if self._staging is None:
            raise RuntimeError("nothing is staged without --force-regen")
        staged = self._staging / f"{name}.csv"
        staged.parent.mkdir(parents=True, exist_ok=True)
        old = _read_or_none(self._root / f"{name}.csv")
        if old is not None and not _other_shape(old, frame):  # so that numbers within the tolerance stay as they are
            shutil.copy(self._root / f"{name}.csv", staged)
        # pytest-regressions fails whenever it writes a file; here that is what was asked for.
        with contextlib.suppress(pytest.fail.Exception):
            self._regression.check(frame, fullpath=staged, default_tolerance={"rtol": rtol, "atol": atol})
        staged.with_suffix(".yml").write_text(yaml.safe_dump(dict(provenance), sort_keys=False), encoding="utf-8")


class BaselineText(SingleFileSnapshotExtension):
    """syrupy's snapshots as text files under baselines/, one per test."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"
    root: Path

    @classmethod
    def dirname(cls, *, test_location: Any) -> str:
        return str(cls.root / "text" / test_location.basename)


@pytest.fixture
def golden(request: pytest.FixtureRequest, dataframe_regression: Any, record_table: RecordTable) -> Golden:
    config = request.config
    missing = config.getoption("knorm_missing_baseline")
    return Golden(_root(config), _staging(config), dataframe_regression, _command(config), record_table, missing)


@pytest.fixture
def text_snapshot(request: pytest.FixtureRequest, snapshot: Any) -> Any:
    """syrupy's ``snapshot``, kept under baselines/."""
    BaselineText.root = _staging(request.config) or _root(request.config)
    return snapshot.use_extension(BaselineText)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[_finished] = finish(_root(config))
    # A run of some tests must not complain about the snapshots of the others.
    config.option.warn_unused_snapshots = True
    if not config.getoption("force_regen"):
        for option, flag in [("regen_all", "--regen-all"), ("update_snapshots", "--snapshot-update")]:
            if config.getoption(option):
                raise pytest.UsageError(
                    f"{flag} would write baselines one by one: use --force-regen, which stages them"
                )
        return
    config.option.update_snapshots = True
    if not hasattr(config, "workerinput"):
        root = _root(config)
        root.mkdir(exist_ok=True)
        for left in root.glob(".staging-*"):  # by a run that was killed
            if not psutil.pid_exists(int(left.name.split("-")[1])):
                shutil.rmtree(left, ignore_errors=True)
        # The environment hands it to xdist's workers.
        os.environ[_STAGING] = tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=root)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workerinput") or not config.getoption("force_regen"):
        return
    staging = Path(os.environ.pop(_STAGING))
    try:
        if exitstatus == pytest.ExitCode.OK:
            config.stash[_changed] = list(_changes(staging, _root(config)))
            replace_all(staging, _root(config))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(_finished, 0):
        terminalreporter.line(f"baselines: the last {count} files of a regeneration that was killed are now in place")
    if not config.getoption("force_regen"):
        return
    changes = config.stash.get(_changed, None)
    if changes is None:
        terminalreporter.line("baselines: not everything passed, so none was changed", red=True)
        return
    table = Table(title="What changed in the baselines", title_justify="left")
    for heading in ("file", "row", "column", "from", "to"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        table.add_row(*change)
    if changes:
        print_table(terminalreporter, table)
    else:
        terminalreporter.line("baselines: regenerated, nothing changed")


_changed: pytest.StashKey[list[tuple[str, ...]]] = pytest.StashKey()
_finished: pytest.StashKey[int] = pytest.StashKey()


def _changes(staging: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """What is about to change, cell by cell for tables."""
    for staged in sorted(path for path in staging.rglob("*") if path.is_file()):
        relative = staged.relative_to(staging)
        target = root / relative
        if staged.suffix == ".csv":
            yield from _cells(str(relative), target, staged)
        elif staged.suffix != ".yml":
            if not target.exists():
                yield (str(relative), "", "", "", "new")
            elif target.read_bytes() != staged.read_bytes():
                yield (str(relative), "", "", "", "changed")


def _cells(name: str, old: Path, new: Path) -> Iterator[tuple[str, ...]]:
    after = _read(new)
    if not old.exists():
        yield (name, f"{len(after)} rows", "", "", "new")
        return
    before = _read_or_none(old)
    if before is None:
        yield (name, f"{len(after)} rows", "", "damaged", "new")
        return
    for cell in changed_cells(_rows(before), _rows(after)):
        was, now = ("–" if value is None else str(value) for value in (cell.baseline, cell.value))
        yield (name, cell.row, cell.column, was, now)


def _read(table: Path) -> Any:
    frame = pandas.read_csv(table, index_col=0)
    labels = pandas.read_csv(table, usecols=[0], dtype=str, keep_default_na=False)  # "1" is not "1.0", nor "None" none
    frame.index = pandas.Index(labels.iloc[:, 0], name=frame.index.name)
    return frame


def _read_or_none(table: Path) -> Any:
    """None where there is no table, or none that can be compared with: empty, half a merge, cut off."""
    try:
        frame = _read(table)
    except (FileNotFoundError, ValueError):  # pandas' own errors among the latter
        return None
    return frame if frame.index.is_unique and frame.columns.is_unique else None


def _provenance_or_none(source: Path) -> dict[str, Any] | None:
    try:
        made = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        return None
    return made if isinstance(made, dict) and isinstance(made.get(_VERSIONS), dict) else None


def _other_shape(old: Any, new: Any) -> list[str]:
    """What rows and columns one table has and the other has not."""
    sides = [
        ("columns", set(map(str, old.columns)), set(map(str, new.columns))),
        ("rows", set(old.index), set(new.index)),
    ]
    return [
        f"{what} {verb}: {', '.join(sorted(names))}"
        for what, was, now in sides
        for verb, names in (("that are gone", was - now), ("that are new", now - was))
        if names
    ]


def _rows(frame: Any) -> dict[str, dict[str, Any]]:
    return frame.to_dict(orient="index")


def _root(config: pytest.Config) -> Path:
    return config.rootpath / "baselines"


def _staging(config: pytest.Config) -> Path | None:
    return Path(os.environ[_STAGING]) if config.getoption("force_regen") else None


def _command(config: pytest.Config) -> str:
    arguments = [a for a in config.invocation_params.args if str(a) != "--force-regen"]
    if hasattr(config, "workerinput"):
        arguments = config.workerinput["knorm_arguments"]
    return shlex.join(["pytest", *map(str, arguments), "--force-regen"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["knorm_arguments"] = list(map(str, node.config.invocation_params.args))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch": version("torch"), "transformers": version("transformers"), "python": sys.version.split()[0]}
