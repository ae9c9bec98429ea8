"""--force-regen where others work too: containers, other file systems, users without a name, folders that vanish."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from knorm_core.plugin import all_or_nothing, regeneration
from suites.kills_and_damage.killed import killed_at
from suites.kills_and_damage.project import PROJECT, run_pytest, write_files

pytestmark = [pytest.mark.faults_injected, pytest.mark.xdist_group("kills")]
full = pytest.mark.full

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A small repository whose baselines are made from 20; ``.run(value, …)`` gives exit status and output."""
    return Project(tmp_path / "project")


class Project:
    def __init__(self, folder):
        self.folder, self.baselines = folder, folder / "baselines"
        write_files(folder, PROJECT)
        assert self.run(20, "--force-regen")[0] == pytest.ExitCode.OK

    def run(self, value, *arguments, **options):
        output = self.folder.parent / "output.txt"
        status, [code] = run_pytest(self.folder, *arguments, output=output, VALUE=str(value), **options).end()
        assert status == 0
        return code, output.read_text()

    def files(self):
        return {
            str(path.relative_to(self.baselines)): path.read_text()
            for path in self.baselines.rglob("*")
            if path.is_file() and regeneration.STAGING not in str(path)
        }


@pytest.fixture
def other_file_system(tmp_path):
    """A folder on another file system than the tests' own."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    folder = Path(tempfile.mkdtemp(dir=place))
    yield folder
    shutil.rmtree(folder)


@full
def test_another_hosts_staging_folder_is_left_alone_and_named(project):
    other = project.baselines / f"{regeneration.STAGING}elsewhere-0123456789abcdef-999999999-0a"
    other.mkdir()
    (other / "x.csv").touch()
    code, output = project.run(21, "--force-regen")
    assert code == pytest.ExitCode.OK
    assert (other / "x.csv").exists()
    assert f"{other.name} belongs to a run on another host, boot or container" in output.replace("\n", "")


@full
def test_a_staging_folder_of_a_process_of_this_host_that_has_ended_is_removed(project):
    identity = regeneration._identity()
    dead = project.baselines / f"{regeneration.STAGING}{identity}-999999999-0a"
    alive = project.baselines / f"{regeneration.STAGING}{identity}-{os.getpid()}-0a"
    dead.mkdir()
    alive.mkdir()
    assert project.run(21, "--force-regen")[0] == pytest.ExitCode.OK
    assert not dead.exists()
    assert alive.exists()


MEDDLES = """
    import os, pathlib, shutil, pytest

    def test_numbers(golden):
        golden.check("m/a/ppl", [{"keep_ratio": 0.5, "ppl": float(os.environ["VALUE"])}], key=("keep_ratio",),
                     made_from={"text": os.environ["VALUE"]})

    def test_text(text_snapshot):
        assert "value " + os.environ["VALUE"] == text_snapshot

    def test_meddles(pytestconfig):
        for folder in (pytestconfig.rootpath / "baselines").glob(".staging-*"):
            exec(os.environ.get("MEDDLE", ""))

    def test_more_numbers(golden):
        golden.check("m/b/ppl", [{"keep_ratio": 0.5, "ppl": float(os.environ["VALUE"])}], key=("keep_ratio",),
                     made_from={"text": os.environ["VALUE"]})
"""


@full
@pytest.mark.parametrize(
    ("meddle", "sentence"),
    [
        ("shutil.rmtree(folder)", "another program has removed the staging folder"),
        ("shutil.rmtree(folder); folder.mkdir()", "none was changed"),
        ("(folder / 'm/a/ppl.csv').unlink()", "m/a/ppl.csv was staged and is not there any more"),
        ("(folder / 'm/a/ppl.csv').write_text('')", "m/a/ppl.csv is not what its test has staged"),
        ("(folder / 'stray.csv').touch()", "stray.csv was staged by no test of this run"),
    ],
    ids=["removed", "made anew", "a file gone", "a file emptied", "a file more"],
)
def test_a_staging_folder_that_is_not_as_the_tests_left_it_is_not_accepted(meddle, sentence, project):
    (project.folder / "test_it.py").write_text(textwrap.dedent(MEDDLES))
    assert project.run(20, "--force-regen")[0] == pytest.ExitCode.OK
    before = project.files()
    code, output = project.run(21, "--force-regen", MEDDLE=meddle)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert sentence in output
    assert "INTERNALERROR" not in output
    assert project.files() == before
    assert project.run(20)[0] == pytest.ExitCode.OK


@full
def test_two_tests_that_stage_one_name_are_not_accepted(project):
    twice = PROJECT["test_it.py"].replace('f"m/{table}/ppl"', '"m/a/ppl"').replace("12.5", '12.5 + (table == "b")')
    (project.folder / "test_it.py").write_text(twice)
    before = project.files()
    code, output = project.run(21, "--force-regen", "-k", "test_numbers")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "m/a/ppl.csv is staged by two tests that differ" in output.replace("\n", " ")
    assert project.files() == before


@full
def test_baselines_linked_to_another_file_system_are_regenerated_and_stay_there(project, other_file_system):
    shutil.move(project.baselines / "m", other_file_system / "m")
    (project.baselines / "m").symlink_to(other_file_system / "m")
    assert project.run(21, "--force-regen")[0] == pytest.ExitCode.OK
    assert project.run(21)[0] == pytest.ExitCode.OK
    assert (project.baselines / "m").is_symlink()
    names = sorted(path.name for path in (other_file_system / "m").rglob("*") if path.is_file())
    assert names == ["ppl.csv", "ppl.csv", "ppl.yml", "ppl.yml"]  # and no copy is left


@full
def test_a_move_to_another_file_system_killed_at_any_change_is_finished_by_the_next(tmp_path, other_file_system):
    old, new = {"m/a.csv": "old", "m/b.csv": "old"}, {"m/a.csv": "new", "m/b.csv": "new"}
    change, outcomes, dies = 0, [], True
    while dies:
        change += 1
        root, there = tmp_path / str(change), other_file_system / str(change)
        write_files(there, {"a.csv": "old", "b.csv": "old"})
        root.mkdir()
        (root / "m").symlink_to(there)
        write_files(root / ".staging-x", new)
        dies = killed_at(change, lambda: all_or_nothing.replace_all(root / ".staging-x", root))  # noqa: B023
        all_or_nothing.finish(root)
        outcomes.append({f"m/{path.name}": path.read_text() for path in there.iterdir()})
        assert outcomes[-1] in (old, new)
    first = outcomes.index(new)
    assert outcomes == [old] * first + [new] * (len(outcomes) - first)
    assert len(outcomes) > 6


@full
def test_accepted_baselines_that_cannot_be_moved_refuse_every_run_in_a_sentence_until_they_can(project):
    write_files(project.baselines / all_or_nothing.ACCEPTED, {"m/a/ppl.csv": "new", "broken/x.csv": "new"})
    (project.baselines / "broken").symlink_to("nowhere")
    for arguments in ([], ["--force-regen"]):
        code, output = project.run(20, *arguments)
        assert code == pytest.ExitCode.USAGE_ERROR
        assert "cannot be moved into place" in output
        assert "Traceback" not in output
    (project.baselines / "broken").unlink()
    assert "the last 2 files of a regeneration that was killed" in project.run(20)[1].replace("\n", " ")


# --- another user


@pytest.fixture
def open_project():
    """A project that any user may read and write."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        project = Project(Path(folder) / "project")
        for path in [project.folder, *project.folder.rglob("*")]:
            path.chmod(0o777)
        (Path(folder) / "output.txt").chmod(0o666)
        yield project


@full
def test_a_user_without_name_and_home_can_test_and_regenerate(open_project, monkeypatch):
    monkeypatch.delenv("KNORM_STORE", raising=False)
    monkeypatch.delenv("KNORM_CACHE", raising=False)
    code, output = open_project.run(20, user=12345)
    assert (code, "INTERNALERROR" in output) == (pytest.ExitCode.OK, False)
    code, output = open_project.run(21, "--force-regen", user=12345)
    assert code == pytest.ExitCode.OK, output


@full
@pytest.mark.parametrize("place", ["baselines", "baselines/m/a"])
def test_baselines_that_cannot_be_written_are_a_sentence_before_anything_runs(place, project):
    (project.folder / place).chmod(0o555)
    code, output = project.run(21, "--force-regen", obeys_permissions=True)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "new baselines cannot be written to" in output
    assert "Traceback" not in output
    assert "passed" not in output


# --- another container

STAYS = PROJECT["test_it.py"] + (
    "\ndef test_stays():\n    import time\n    time.sleep(float(os.environ.get('SLEEP', '0')))\n"
)


@pytest.mark.parametrize("inside", [1, 2], ids=["the first run", "the second run"])
def test_a_run_in_another_process_id_namespace_does_not_touch_the_staging_folder_of_this_one(inside, project):
    contained = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    try:
        subprocess.run([*contained, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no process-id namespace can be made here")
    (project.folder / "test_it.py").write_text(STAYS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "--force-regen"]

    def start(run, **environment):
        return subprocess.Popen(
            [*(contained if run == inside else []), *command],
            cwd=project.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.DEVNULL,
        )

    first = start(1, VALUE="21", SLEEP="60")
    deadline = time.monotonic() + 60
    while not list(project.baselines.glob(".staging-*/text/**/*.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    [staged] = project.baselines.glob(".staging-*")
    assert start(2, VALUE="22").wait(timeout=60) == 0
    assert (staged / "m" / "a" / "ppl.csv").exists()
    assert "22" in project.files()["m/a/ppl.csv"]
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
