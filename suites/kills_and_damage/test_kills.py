"""Kills at random and at exact moments: what was acknowledged is there and whole, and nothing is half-done."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from knorm_core import ModelNotFoundError
from knorm_core.inputs import embedded_model
from knorm_core.plugin import all_or_nothing
from knorm_core.sweeps.store import Store
from suites.kills_and_damage.killed import Process, killed_at
from suites.kills_and_damage.project import PROJECT, run_pytest, write_files
from suites.kills_and_damage.tiny_gguf import write_gguf

pytestmark = pytest.mark.xdist_group("kills")

ROOT = Path(__file__).parents[2]

few, many = pytest.mark.full, pytest.mark.faults_injected


# --- the store


def inputs(number):
    return {"what": "a number", "number": number}


def content(number):
    """Facts and tensors: some fit a page of SQLite, some need several."""
    return {"number": number}, number.to_bytes(4, "little") * (number % 7 * 300 + 1)


def put(store, number):
    store.put(f"number {number}", inputs(number), *content(number))


def get(store, number):
    stored = store.get(f"number {number}", inputs(number), decode=lambda facts, tensors: (facts, tensors))
    return None if stored is None else stored.value


@pytest.mark.parametrize("rounds", [pytest.param(2, marks=few), pytest.param(60, marks=many)])
def test_what_two_writers_had_stored_is_whole_after_each_is_killed(rounds, tmp_path):
    moments = random.Random(rounds)
    path = tmp_path / "results.sqlite"
    stored: set[int] = set()
    for first in range(0, 2000 * rounds, 2000):

        def write(tell, first):
            store = Store(path)
            for number in range(first, first + 1000):
                put(store, number)
                tell(number)

        writers = [Process(lambda tell, at=at: write(tell, at)) for at in (first, first + 1000)]
        for writer in writers:
            if moments.random() < 0.75:  # else the file's making may be what is killed
                writer.wait_for_a_word()
            writer.kill(after=moments.uniform(0, 0.08))
        ended = [writer.end() for writer in writers]
        # Where the disk is fast, the second may be through before the first has had its turn.
        assert {-signal.SIGKILL} <= {status for status, _ in ended} <= {-signal.SIGKILL, 0}
        stored |= {number for _, written in ended for number in written}
        store = Store(path)  # any StoreWarning would be an error
        assert all(get(store, number) == content(number) for number in stored if number >= first)
    assert len(stored) >= rounds
    assert all(get(store, number) == content(number) for number in stored)
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [count] = file.execute("SELECT count(*) FROM results").fetchone()
    assert 0 <= count - len(stored) <= 2 * rounds  # of each writer, at most one was stored and not yet told


# --- the model's conversion


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def conversion(gguf, tmp_path, monkeypatch):
    """The conversion of a tiny model into an empty cache: (the folder that it makes, its files' hashes)."""
    monkeypatch.setattr(embedded_model, "_package_file", lambda: gguf)
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "reference"))
    # Pin what it makes, as the embedded model's is pinned.
    with pytest.raises(ModelNotFoundError, match="not the pinned"):
        embedded_model.convert_embedded()
    whole = hashes(embedded_model.embedded_folder())
    monkeypatch.setattr(embedded_model, "_WEIGHTS_SHA256", whole["model.safetensors"])
    monkeypatch.setattr(embedded_model, "_TOKENIZER_SHA256", whole["tokenizer.json"])
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "cache"))
    return embedded_model.embedded_folder(), whole


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def assert_absent_or_whole(folder, whole):
    assert not folder.exists() or hashes(folder) == whole


@pytest.mark.parametrize("kills", [pytest.param(1, marks=few), pytest.param(30, marks=many)])
def test_a_conversion_killed_at_any_time_leaves_nothing_or_the_whole_model(kills, conversion):
    folder, whole = conversion
    moments = random.Random(kills)
    for _ in range(kills):
        process = Process(lambda _: embedded_model.convert_embedded())
        process.kill(after=moments.uniform(0.0, 0.4))
        process.end()
        assert_absent_or_whole(folder, whole)
        if folder.exists():
            assert embedded_model.convert_embedded() == folder
            shutil.rmtree(folder)
    embedded_model.convert_embedded()
    assert hashes(folder) == whole
    assert {path.name for path in folder.parent.iterdir()} - {f"{folder.name}.lock"} == {folder.name}


@pytest.mark.faults_injected
def test_a_conversion_killed_in_front_of_any_change_of_a_file_leaves_nothing_or_the_whole_model(conversion):
    folder, whole = conversion
    change = 1
    while killed_at(change, embedded_model.convert_embedded):
        assert_absent_or_whole(folder, whole)
        change += 1
        shutil.rmtree(folder, ignore_errors=True)
    assert change > 5
    assert hashes(folder) == whole
    assert {path.name for path in folder.parent.iterdir()} - {f"{folder.name}.lock"} == {folder.name}


@pytest.mark.faults_injected
@pytest.mark.parametrize("after", [2.0, 6.0, 11.0])
def test_the_embedded_models_conversion_leaves_nothing_or_the_whole_model(after, tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path))
    process = Process(lambda _: embedded_model.convert_embedded())
    process.kill(after)
    process.end()
    if (folder := embedded_model.embedded_folder()).exists():
        assert embedded_model.convert_embedded() == folder  # which compares all hashes with the pinned ones


# --- the baselines' regeneration

OLD = {"m/t/ppl.csv": "old", "m/t/ppl.yml": "old", "m/t/same.csv": "same", "text/a.txt": "old", "kept.txt": "kept"}
NEW = OLD | {
    "m/t/ppl.csv": "new",
    "m/t/ppl.yml": "new",
    "text/a.txt": "new",
    "m/new/x.csv": "new",
    "m/new/x.yml": "new",
}


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.full
@pytest.mark.faults_injected
def test_moving_killed_in_front_of_any_change_is_finished_by_the_next_run_or_had_not_begun(tmp_path):
    change, outcomes, dies = 0, [], True
    while dies:
        change += 1
        root, staging = tmp_path / str(change), tmp_path / str(change) / ".staging-1-x"
        write_files(root, OLD)
        write_files(staging, {name: text for name, text in NEW.items() if text == "new"})
        dies = killed_at(change, lambda: all_or_nothing.replace_all(staging, root))  # noqa: B023
        killed_at(1 + change % 4, lambda: all_or_nothing.finish(root))  # the next run, as it finishes  # noqa: B023
        all_or_nothing.finish(root)
        shutil.rmtree(staging, ignore_errors=True)
        outcomes.append(read_files(root))
        assert outcomes[-1] in (OLD, NEW)
        assert not (root / all_or_nothing.ACCEPTED).exists()
    first_new = outcomes.index(NEW)
    assert outcomes == [OLD] * first_new + [NEW] * (len(outcomes) - first_new)
    assert len(outcomes) > 10


@pytest.mark.faults_injected
def test_two_runs_that_finish_the_same_moving_lose_nothing(tmp_path):
    for round_ in range(20):
        root = tmp_path / str(round_)
        write_files(root, OLD)
        write_files(root / all_or_nothing.ACCEPTED, {name: text for name, text in NEW.items() if text == "new"})
        processes = [Process(lambda tell: tell(all_or_nothing.finish(root))) for _ in range(2)]  # noqa: B023
        moved = [process.end() for process in processes]
        assert [status for status, _ in moved] == [0, 0]
        assert sum(count for _, [count] in moved) == 5
        assert read_files(root) == NEW


@pytest.fixture
def project(tmp_path):
    """A small repository, and its baselines as they are when made from 20, which they are now, and from 21."""
    write_files(tmp_path, PROJECT)
    made = {}
    for value in (21, 20):
        assert regenerate(tmp_path, value).end() == (0, [0])
        made[value] = read_files(tmp_path / "baselines")
        assert len(made[value]) == 5
    return tmp_path, made


def regenerate(folder, value, **options):
    return run_pytest(folder, "--force-regen", VALUE=str(value), **options)


def value_after_next_run(folder, made):
    """Which of the two values all baselines are those of, once somebody has run pytest, without a flag."""
    status, [status_of_pytest] = run_pytest(folder, VALUE="20").end()
    assert status == 0
    value = 20 if status_of_pytest == pytest.ExitCode.OK else 21
    files = read_files(folder / "baselines")
    assert {name: text for name, text in files.items() if not name.startswith(".staging")} == made[value]
    return value


@pytest.mark.faults_injected
def test_a_regeneration_killed_in_front_of_any_change_of_a_file_leaves_all_baselines_old_or_all_new(project):
    folder, made = project
    value, change, accepted = 20, 1, []
    while regenerate(folder, 41 - value, dies_at=change).end()[0] == -signal.SIGKILL:
        now = value_after_next_run(folder, made)
        accepted.append(now != value)
        value, change = now, change + 1
    assert accepted == sorted(accepted)  # from one change on
    assert accepted.count(True) > 5  # files that are moved, and more
    assert accepted.count(False) > 5
    assert read_files(folder / "baselines") == made[41 - value]  # and nothing is left of the killed runs


@pytest.mark.faults_injected
def test_a_regeneration_killed_at_any_time_leaves_all_baselines_old_or_all_new(project):
    folder, made = project
    value, moments = 20, random.Random(0)
    for _ in range(20):
        process = regenerate(folder, 41 - value)
        process.kill(after=moments.uniform(0, 1.0))
        process.end()
        value = value_after_next_run(folder, made)


@pytest.mark.faults_injected
@pytest.mark.xdist_group("embedded model")
def test_the_first_load_in_a_process_converts_and_on_a_full_disk_ends_in_a_sentence_and_leaves_nothing(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))"

    def load(first=""):
        program = f"import knorm_core\n{first}\nknorm_core.load_model()"
        environment = {**os.environ, "KNORM_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    full = load(limit)
    assert full.returncode == 1
    assert f"ModelNotFoundError: the embedded model cannot be kept in {tmp_path} (" in full.stderr
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    room = load()
    assert room.returncode == 0, room.stderr
