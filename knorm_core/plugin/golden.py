"""Golden files as fixtures: tables of numbers (`golden`) and text (`text_snapshot`), one flag for both.

`knorm_core.plugin.baseline` decides what a table is against its baseline, `knorm_core.plugin.regeneration` writes new
ones; here a test hears about it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from knorm_core.contract.command_line import options
from knorm_core.plugin.baseline import (
    RTOL,
    VERSIONS,
    Decision,
    as_stored,
    as_table,
    decide,
    not_numbers,
    provenance_text,
    read_baseline,
)
from knorm_core.plugin.recorder import RecordTable
from knorm_core.plugin.regeneration import Stage, baselines_folder
from knorm_core.results.records import Baseline

_ARGUMENTS = "knorm_arguments"  # what xdist's workers are told


def pytest_addoption(parser: pytest.Parser) -> None:
    options(parser).addoption(
        "--knorm-missing-baseline",
        choices=("fail", "skip"),
        default=None,
        help="a table without a baseline fails, or is shown and the comparison skipped (default: fail; with "
        "--knorm-policy, skip)",
    )


class Golden:
    """Compare rows of numbers with a baseline; see `check`."""

    def __init__(
        self,
        root: Path,
        stage: Stage | None,
        regression: Any,
        command: str,
        record_table: RecordTable,
        missing: str = "fail",
        dtype: str = "float64",
    ) -> None:
        self._root, self._stage, self._regression, self._command = root, stage, regression, command
        self._record_table, self._missing, self._dtype = record_table, missing, dtype

    def notes(self, name: str) -> list[str]:
        """What to print below a table: that it was compared with nothing, where that is so."""
        if self._dtype != "float64":
            return [f"Baselines are float64: these numbers are {self._dtype}'s and were compared with nothing."]
        if self._stage is not None or (self._root / f"{name}.csv").exists():
            return []
        return ["No baseline yet: these numbers were compared with nothing."]

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
        """Record ``rows`` and compare them with the baseline ``<name>.csv``; with ``--force-regen``, stage it.

        Baselines are float64. Where the test uses the model of the command line (`language_model`) in another dtype,
        the table is recorded and the test skipped; the model's slug, with which such a name begins, has the dtype.

        Args:
            name: path below the baselines' folder, without suffix: model/text/table.
            rows: one mapping per row; the columns named by ``key`` label it, the others are numbers.
            made_from: what decides the numbers (model, tokenizer and text hashes, settings), so that a changed text
                can be told from a changed number. Stored beside the table, in <name>.yml.
            rtol, atol: tolerance of every number.

        Raises:
            ValueError: two rows have one label.
        """
        __tracebackhide__ = True
        table = as_table(name, rows, key)
        provenance = {**made_from, VERSIONS: _versions()}
        if self._dtype != "float64":
            self._record_table(name, rows, key=key, made_from={**provenance, "dtype": self._dtype})
            pytest.skip(f"baselines are float64: this table, of {self._dtype}, is recorded and compared with nothing")
        new = as_stored(table)
        old = read_baseline(self._root, name)
        decision = decide(old, new, provenance, rtol, atol)
        status = decision.status if self._stage is None else "same"
        cells = decision.cells if self._stage is None else ()
        self._record_table(name, rows, key=key, made_from=provenance, baseline=Baseline(status, rtol, atol, cells))
        if self._stage is not None:
            if undefined := not_numbers(new):
                pytest.fail(
                    f"{name}: {'; '.join(undefined)} is NaN, which a baseline would compare with nothing: leave "
                    f"such cells out of the table, or mend what makes them",
                    pytrace=False,
                )
            self._write(self._stage, name, table, provenance, decision)
        elif status == "missing" and self._missing == "skip":
            path = self._root / f"{name}.csv"
            pytest.skip(f"no baseline {path}, so nothing was compared: the same command with --force-regen makes it")
        elif status != "same":
            pytest.fail(self._sentence(name, decision, rtol), pytrace=False)

    def _sentence(self, name: str, decision: Decision, rtol: float) -> str:
        """Why the test fails, and the command that makes the baseline anew."""
        path, command = self._root / f"{name}.csv", self._command
        reasons = "\n  ".join(decision.reasons)
        match decision.status:
            case "missing":
                return f"no baseline {path}: to make it, run\n    {command}"
            case "damaged":
                damaged = path if decision.reasons == ("table",) else path.with_suffix(".yml")
                return (
                    f"{damaged} is damaged, so nothing was compared: take it from version control again, or make it "
                    f"anew with\n    {command}"
                )
            case "other source":
                return (
                    f"{path} was made from something else, so its numbers say nothing about this run:\n  {reasons}"
                    f"\nIf that is meant: {command}"
                )
        if decision.other_shape:
            return f"the table has another shape than {path}:\n  {reasons}\nIf that is meant: {command}"
        versions = (
            f"the versions are not: {', '.join(decision.other_versions)}"
            if decision.other_versions
            else "and so are the versions"
        )
        return (
            f"the numbers changed against {path} (rtol {rtol}); the model, text and settings are the same, {versions}"
            f"\n  {reasons}\nIf that is meant: {command}"
        )

    def _write(self, stage: Stage, name: str, table: Any, provenance: Mapping[str, Any], decision: Decision) -> None:
        numbers, source = stage.place(f"{name}.csv"), stage.place(f"{name}.yml")
        if decision.same_numbers:  # then they stay as they are, to the last digit
            shutil.copy(self._root / f"{name}.csv", numbers)
        else:
            numbers.unlink(missing_ok=True)
            # pytest-regressions fails whenever it writes a file; here that is what was asked for.
            with contextlib.suppress(pytest.fail.Exception):
                self._regression.check(table, fullpath=numbers)
        source.write_text(provenance_text(provenance), encoding="utf-8")
        for path in (numbers, source):
            stage.report(str(path.relative_to(stage.folder)), path.read_bytes())


class BaselineText(SingleFileSnapshotExtension):
    """syrupy's snapshots as text files under the baselines' folder, one per test."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"
    root: Path

    @classmethod
    def dirname(cls, *, test_location: Any) -> str:
        return str(cls.root / "text" / test_location.basename)


@pytest.fixture
def golden(
    request: pytest.FixtureRequest, stage: Stage | None, dataframe_regression: Any, record_table: RecordTable
) -> Golden:
    """``golden.check(name, rows, key=…, made_from=…)``: a table of numbers against its golden file; see `Golden`."""
    config = request.config
    return Golden(
        baselines_folder(config),
        stage,
        dataframe_regression,
        _command(config),
        record_table,
        config.getoption("knorm_missing_baseline") or ("skip" if config.getoption("knorm_policy") else "fail"),
        config.getoption("knorm_dtype") if "language_model" in request.fixturenames else "float64",
    )


@pytest.fixture
def text_snapshot(request: pytest.FixtureRequest, stage: Stage | None, snapshot: Any) -> Iterator[Any]:
    """syrupy's ``snapshot``, kept under the baselines' folder: ``assert text == text_snapshot``."""
    BaselineText.root = baselines_folder(request.config) if stage is None else stage.folder
    text = snapshot.use_extension(BaselineText)
    yield text
    if stage is not None:
        for result in text.executions.values():
            name = Path(result.snapshot_location).relative_to(stage.folder)
            stage.report(str(name), str(result.final_data).encode())


def _command(config: pytest.Config) -> str:
    arguments = [argument for argument in config.invocation_params.args if str(argument) != "--force-regen"]
    if hasattr(config, "workerinput"):
        arguments = config.workerinput[_ARGUMENTS]
    return shlex.join(["pytest", *map(str, arguments), "--force-regen"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput[_ARGUMENTS] = list(map(str, node.config.invocation_params.args))


def _versions() -> dict[str, str]:
    return {"torch": version("torch"), "transformers": version("transformers"), "python": sys.version.split()[0]}
