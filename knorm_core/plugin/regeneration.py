"""``--force-regen`` and ``--knorm-baselines DIR``: where baselines are, and how new ones come there.

Nothing under the baselines' folder is ever written without ``--force-regen``. With it, new files are staged in a
folder of this run beside them and moved into place when the whole run has passed and every staged file is there, as
its test wrote it. An interrupted or failing run changes nothing, and a run that is killed while it moves them is
finished by the next, before that compares anything.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.table import Table

from knorm_core.compare import changed_cells
from knorm_core.contract.command_line import options
from knorm_core.plugin.all_or_nothing import finish, replace_all
from knorm_core.plugin.baseline import read_table, rows_of
from knorm_core.plugin.tables import print_table
from knorm_core.results.terminal import plain

STAGING = ".staging-"
_PROPERTY = "knorm_staged"
_WORKER = "knorm_staging"  # what xdist's workers are told


def pytest_addoption(parser: pytest.Parser) -> None:
    options(parser).addoption(
        "--knorm-baselines",
        default=None,
        metavar="DIR",
        help="folder of the golden files (default: baselines/ under pytest's rootdir)",
    )


def baselines_folder(config: pytest.Config) -> Path:
    """The folder of the golden files."""
    folder = config.getoption("knorm_baselines")
    return config.rootpath / "baselines" if folder is None else config.invocation_params.dir / Path(folder).expanduser()


class Staging:
    """The staging folder of a run, and what its tests have put there.

    Attributes:
        root: the baselines' folder.
        folder: the staging folder, in ``root``.
        digests: SHA-256 of each staged file by its path below ``folder``, as the tests reported it.
        changes: rows of the table "What changed in the baselines", once they have.
        problem: why none has changed, where it is not that a test failed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: dict[str, str] = {}
        self._tests: dict[str, str] = {}  # which test has staged a file
        self.changes: list[tuple[str, ...]] | None = None
        self.problem = ""
        root.mkdir(parents=True, exist_ok=True)
        self.foreign = _remove_abandoned(root)
        self.folder = root / f"{STAGING}{_identity()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir()
        self._made = self.folder.stat()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, content in report.user_properties:
            if name == _PROPERTY and isinstance(content, dict):
                for file, digest in content.items():
                    test = self._tests.setdefault(file, report.nodeid)
                    if test != report.nodeid and digest != self.digests[file]:
                        self.problem = f"{file} is staged by two tests that differ: {test} and {report.nodeid}"
                self.digests |= content

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_WORKER] = str(self.folder)

    def accept(self) -> None:
        """Move everything into place, or set `problem` and leave everything as it was."""
        try:
            self.problem = self.problem or self._incomplete()
            if not self.problem:
                changes = list(_changes(self.folder, self.root))
                replace_all(self.folder, self.root)
                self.changes = changes
        except OSError as error:
            self.problem = f"they cannot be moved into place: {error}; the next run with pytest goes on with it"

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _incomplete(self) -> str:
        """Why the staging folder is not what the tests have written, or empty."""
        try:
            same = os.path.samestat(self.folder.stat(), self._made)
        except FileNotFoundError:
            same = False
        if not same:
            return f"another program has removed the staging folder {self.folder}"
        staged = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}
        for name in sorted({*staged, *self.digests}):
            if name not in staged:
                return f"{name} was staged and is not there any more"
            if name not in self.digests:
                return f"{name} was staged by no test of this run"
            if _digest_on_disk(staged[name]) != self.digests[name]:
                return f"{name} is not what its test has staged: another program has written over it"
        return ""


def _digest_on_disk(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity() -> str:
    """Host, boot and process-id namespace: where a process id means the same process as here."""
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [
        platform.node(),
        boot.read_text(encoding="ascii").strip() if boot.exists() else str(int(psutil.boot_time())),
        os.readlink(namespace) if namespace.is_symlink() else "",
    ]
    host = re.sub(r"[^A-Za-z0-9]+", "_", platform.node())[:32] or "host"
    return f"{host}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"


def _remove_abandoned(root: Path) -> list[str]:
    """Remove the staging folders of killed runs of this host and boot; the names of those that may be in use."""
    identity, others = _identity(), []
    for folder in sorted(root.glob(f"{STAGING}*")):
        ours = re.fullmatch(rf"{re.escape(STAGING + identity)}-(\d+)-[0-9a-f]+", folder.name)
        if ours and not psutil.pid_exists(int(ours[1])):
            shutil.rmtree(folder, ignore_errors=True)
        elif not ours:
            others.append(folder.name)
    return others


class Stage:
    """What a test's fixtures write with: into the staging folder, and each file reported to the run."""

    def __init__(self, folder: Path, record_property: Callable[[str, object], None]) -> None:
        self.folder, self._record_property = folder, record_property

    def place(self, name: str) -> Path:
        """The path for a staged file, its folders made; the staging folder itself is never made anew."""
        folder = self.folder
        for part in Path(name).parent.parts:
            folder = folder / part
            try:
                folder.mkdir(exist_ok=True)
            except FileNotFoundError:
                pytest.fail(f"another program has removed the staging folder {self.folder}", pytrace=False)
        return folder / Path(name).name

    def report(self, name: str, content: bytes) -> None:
        """Tell the run what the file holds."""
        self._record_property(_PROPERTY, {name: hashlib.sha256(content).hexdigest()})


_staging: pytest.StashKey[Staging] = pytest.StashKey()
_finished: pytest.StashKey[int] = pytest.StashKey()


@pytest.fixture
def stage(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Stage | None:
    """Where new baselines go with ``--force-regen``; None without."""
    config = request.config
    if not config.getoption("force_regen"):
        return None
    folder = config.workerinput[_WORKER] if hasattr(config, "workerinput") else config.stash[_staging].folder
    return Stage(Path(folder), record_property)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("force_regen"):
        for option, flag in [
            ("regen_all", "--regen-all"),
            ("update_snapshots", "--snapshot-update"),
            ("update_new_snapshots_only", "--snapshot-update-new-only"),
        ]:
            if config.getoption(option, False):
                raise pytest.UsageError(
                    f"{flag} would write baselines one by one: use --force-regen, which stages them"
                )
    else:
        config.option.update_snapshots = True
    # A run of some tests must not complain about the snapshots of the others.
    config.option.warn_unused_snapshots = True
    if hasattr(config, "workerinput"):
        return
    root = baselines_folder(config)
    try:
        config.stash[_finished] = finish(root)
    except OSError as error:
        raise pytest.UsageError(
            f"a regeneration that was killed has left accepted baselines in {root / '.accepted'}, and they cannot be "
            f"moved into place ({error}): put that right and run again; until then nothing can be compared"
        ) from None
    if config.getoption("force_regen"):
        try:
            _check_writable(root)
            config.stash[_staging] = Staging(root)
        except OSError as error:
            raise pytest.UsageError(
                f"--force-regen: new baselines cannot be written to {root} ({error}); make it writable, or name "
                f"another folder with --knorm-baselines"
            ) from None
        config.pluginmanager.register(config.stash[_staging], "knorm-staging")


def _check_writable(root: Path) -> None:
    """Raise an OSError where a folder below ``root``, through links too, takes no files."""
    for folder, folders, _ in os.walk(root, followlinks=True):
        for name in (".", *(name for name in folders if not name.startswith("."))):
            path = Path(folder, name)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write to {path}")
        folders[:] = [name for name in folders if not name.startswith(".")]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    staging = session.config.stash.get(_staging, None)
    if staging is None:
        return
    try:
        if exitstatus == pytest.ExitCode.OK:
            staging.accept()
            if staging.problem:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
    finally:
        staging.discard()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(_finished, 0):
        terminalreporter.line(f"baselines: the last {count} files of a regeneration that was killed are now in place")
    staging = config.stash.get(_staging, None)
    if staging is None:
        return
    for name in staging.foreign:
        terminalreporter.line(
            f"baselines: {staging.root / name} belongs to a run on another host, boot or container; remove it if that "
            f"run has ended"
        )
    if staging.problem:
        terminalreporter.line(f"baselines: {staging.problem}; none was changed", red=True)
    elif staging.changes is None:
        terminalreporter.line("baselines: not everything passed, so none was changed", red=True)
    elif not staging.changes:
        terminalreporter.line("baselines: regenerated, nothing changed")
    else:
        table = Table(title="What changed in the baselines", title_justify="left")
        for heading in ("file", "row", "column", "from", "to"):
            table.add_column(heading, overflow="fold")
        for change in staging.changes:
            table.add_row(*map(plain, change))
        print_table(terminalreporter, table)


def _changes(staging: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """What is about to change, cell by cell for tables."""
    for staged in sorted(path for path in staging.rglob("*") if path.is_file()):
        relative = staged.relative_to(staging)
        target = root / relative
        if staged.suffix == ".csv":
            yield from _changed_cells(str(relative), target, staged)
        elif staged.suffix != ".yml":
            if not target.exists():
                yield (str(relative), "", "", "", "new")
            elif target.read_bytes() != staged.read_bytes():
                yield (str(relative), "", "", "", "changed")


def _changed_cells(name: str, old: Path, new: Path) -> Iterator[tuple[str, ...]]:
    before, after = read_table(old), read_table(new)
    rows = {} if after is None else rows_of(after)
    if before is None:
        yield (name, f"{len(rows)} rows", "", "damaged" if old.exists() else "", "new")
        return
    for cell in changed_cells(rows_of(before), rows):
        was, now = ("–" if value is None else str(value) for value in (cell.baseline, cell.value))
        yield (name, cell.row, cell.column, was, now)
