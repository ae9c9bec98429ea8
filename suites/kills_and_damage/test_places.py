"""Report folders and stores of any name work, or are refused before anything is computed, or cost a warning."""

from __future__ import annotations

import os
import sys

import pytest

from knorm_core.inputs import text_sources
from knorm_core.inputs.models import ModelNotFoundError, load_model
from knorm_core.results.file import read_results
from knorm_core.sweeps.store import Store, StoreWarning, store_of
from suites.core.test_paths import NAMES, REPEATED, TOO_LONG
from suites.kills_and_damage import privileges
from suites.kills_and_damage.killed import Process
from suites.kills_and_damage.project import run_pytest, write_files

pytestmark = [pytest.mark.full, pytest.mark.faults_injected, pytest.mark.xdist_group("kills")]

CONFTEST = 'pytest_plugins = ["knorm_core.plugin"]'
NOT_UTF8 = pytest.param(
    os.fsdecode(b"caf\xe9"),
    marks=pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8"),
    id="latin-1",
)


def decoded(facts, tensors):
    return facts, tensors


def put_and_get(path):
    Store(path).put("one", {"x": 1}, [1], b"1")
    return Store(path).get("one", {"x": 1}, decode=decoded)


@pytest.fixture
def project(tmp_path):
    # One per test: folders 1,500 levels deep, which one of them leaves, are more than pytest can collect from.
    folder = tmp_path / "project"
    write_files(
        folder, {"pytest.ini": "[pytest]\n", "conftest.py": CONFTEST, "test_it.py": "def test_it():\n    pass\n"}
    )
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    for circle in ("circle", "circle.sqlite"):
        (folder / circle).symlink_to(circle)
    return folder


@pytest.mark.parametrize("name", [*NAMES[:2], "real/../out/./deep/er", "link", "link/below", NOT_UTF8])
def test_a_report_folder_may_have_any_name(name, project):
    assert run_pytest(project, f"--knorm-report={name}").end() == (0, [0])
    results = read_results(project / name)
    assert [test.nodeid for test in results.tests] == ["test_it.py::test_it"]
    assert name in results.runs[0].options["knorm_report"]
    assert run_pytest(project, f"--knorm-report={name}").end() == (0, [0])  # and can be added to


@pytest.mark.parametrize("name", [TOO_LONG, REPEATED, "circle", "test_it.py/x"], ids=["part", "path", "circle", "file"])
def test_a_report_folder_that_cannot_be_is_refused_before_anything_runs(name, project):
    assert run_pytest(project, f"--knorm-report={name}").end() == (0, [pytest.ExitCode.USAGE_ERROR])


@pytest.mark.parametrize("name", [*NAMES, "real/../out/./store", "link/store", NOT_UTF8])
def test_a_store_may_have_any_name(name, project, monkeypatch):
    monkeypatch.chdir(project)
    assert put_and_get(f"{name}.sqlite").value == ([1], b"1")
    assert os.path.isfile(project / f"{name}.sqlite")


def test_a_store_that_is_a_link_is_found_under_both_names(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.sqlite").symlink_to("there/store.sqlite")
    assert put_and_get(tmp_path / "link.sqlite").value == ([1], b"1")
    assert Store(tmp_path / "there" / "store.sqlite").get("one", {"x": 1}, decode=decoded).value == ([1], b"1")


@pytest.mark.parametrize(
    "name",
    [TOO_LONG, REPEATED, "a/" * 1500 + "a", "circle", "real", "test_it.py/x"],
    ids=["part", "path", "levels", "circle", "folder", "file"],
)
def test_a_store_that_cannot_be_costs_one_warning_and_no_result(name, project, monkeypatch):
    monkeypatch.chdir(project)
    if name == "real":
        (project / "real" / "folder.sqlite").mkdir()
        name = "real/folder"
    store = store_of(f"{name}.sqlite")
    with pytest.warns(StoreWarning, match="Results are not stored from here on; the run goes on") as said:
        store.put("one", {"x": 1}, [1], b"1")
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    store.put("two", {"x": 2}, [2], b"2")  # says nothing: a warning would be an error


def test_the_home_of_nobody_is_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_of("~nobody-has-this-name/store.sqlite").path == tmp_path / "~nobody-has-this-name" / "store.sqlite"
    with pytest.raises(ValueError, match="unknown model '~nobody-has-this-name/a b'"):
        load_model("~nobody-has-this-name/a b")


@pytest.mark.skipif(sys.platform != "linux", reason="what root may is given up as Linux has it")
def test_a_folder_that_may_not_be_read_is_refused_in_a_sentence(tmp_path):
    for name in ("model", "texts/pg19"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name).chmod(0)

    said = tmp_path / "said.txt"

    def run(_):
        privileges.obey_permissions()
        for call in (lambda: load_model(tmp_path / "model"), lambda: text_sources.pg19_whole(tmp_path / "texts")):
            try:
                call()
            except (ModelNotFoundError, text_sources.TextNotFoundError) as refused:
                with said.open("a") as file:
                    print(refused, file=file)

    assert Process(run).end() == (0, [])
    assert said.read_text().splitlines() == [
        f"model folder {tmp_path / 'model'} cannot be read (Permission denied)",
        f"no text in {tmp_path / 'texts' / 'pg19'} (Permission denied)",
    ]
