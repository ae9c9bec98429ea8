"""The store's promises: what is in it is whole and right, whatever happened to its file or to a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core.sweeps import store as store_module
from knorm_core.sweeps.store import Store, StoreWarning, canonical, store_of
from suites.kills_and_damage.killed import Process, killed_at

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]


def inputs(number):
    return {"what": "a number", "number": number}


def value(number):
    """Long enough for pages of its own, and different for every number."""
    return {"number": number}, number.to_bytes(4, "little") * 1500


def put(store, *numbers):
    for number in numbers:
        store.put(f"number {number}", inputs(number), *value(number))


def get(store, number):
    found = store.get(f"number {number}", inputs(number), decode=lambda facts, tensors: (facts, tensors))
    return None if found is None else found.value


def quietly(action, *arguments):
    """The value, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return action(*arguments), [str(one.message) for one in said if one.category is StoreWarning]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "some folder" / "résultats.sqlite")


def test_what_is_put_is_found_again_by_another_process_with_its_time_and_readable_inputs(store):
    assert get(store, 1) is None
    assert not store.path.parent.exists()  # looking makes nothing
    put(store, 1, 2)
    again = Store(store.path)
    assert [get(again, number) for number in (1, 2, 3)] == [value(1), value(2), None]
    assert len(again.found) == 2
    assert again.found[0].startswith("20")
    assert store.computed == 2
    with contextlib.closing(sqlite3.connect(store.path)) as file:
        assert file.execute("SELECT name, inputs FROM results ORDER BY name").fetchall() == [
            (f"number {number}", canonical(inputs(number))) for number in (1, 2)
        ]


def test_the_first_candidate_that_is_stored_is_found(store):
    put(store, 2, 3)
    found = store.get("any", inputs(1), inputs(2), inputs(3), decode=lambda facts, _: facts["number"])
    assert found.value == 2
    assert len(store.found) == 1


def test_a_later_result_replaces_an_earlier_one_and_a_fresh_store_looks_nothing_up(store):
    put(store, 1)
    fresh = Store(store.path, fresh=True)
    assert get(fresh, 1) is None
    fresh.put("number 1", inputs(1), *value(9))
    assert get(store, 1) == value(9)


def test_an_option_or_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path))
    monkeypatch.delenv("KNORM_STORE", raising=False)
    assert store_of(None).path == tmp_path / "results.sqlite"
    assert store_of("off") is None
    monkeypatch.setenv("KNORM_STORE", "off")
    assert store_of(None) is None
    assert store_of(str(tmp_path / "x.sqlite")).path == tmp_path / "x.sqlite"
    with pytest.raises(ValueError, match=r"'notes.txt': the name of a store ends in .sqlite"):
        store_of("notes.txt")


# --- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a store of five results."""
    store = Store(tmp_path_factory.mktemp("whole") / "whole.sqlite")
    put(store, *range(5))
    return store.path


damages = st.one_of(
    st.builds(lambda at, bit: ("flip", at, 1 << bit), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.builds(lambda at: ("flip", at / 1000, 0xFF), st.integers(0, 20)),  # the header and the schema
    st.builds(lambda at: ("cut", at, 0), st.floats(0, 1)),
    st.builds(lambda at, by: ("fill", at, by), st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
)


@settings(max_examples=25)
@given(damage=damages)
def test_whatever_is_damaged_nothing_wrong_is_read_and_what_is_missing_can_be_stored_again(
    whole, damage, tmp_path_factory
):
    kind, where, what = damage
    content = bytearray(whole.read_bytes())
    at = int(where * len(content))
    if kind == "flip":
        content[at] ^= what
    elif kind == "cut":
        del content[at:]
    else:
        content[at : at + 512] = bytes([what]) * len(content[at : at + 512])
    path = tmp_path_factory.mktemp("damaged") / "damaged.sqlite"
    path.write_bytes(content)
    store = Store(path)
    for number in range(5):
        found, said = quietly(get, store, number)
        assert found in (None, value(number))
        assert all(str(path) in sentence for sentence in said)
    _, said = quietly(put, store, *range(5))
    if "not a store of this knorm" not in "".join(said):
        again = Store(path)
        assert quietly(lambda: [get(again, number) for number in range(5)]) == ([value(n) for n in range(5)], [])


def test_a_damaged_entry_is_named_and_does_not_touch_the_others(store):
    put(store, 1, 2)
    at = store.path.read_bytes().index(value(1)[1][:64]) + 32
    with store.path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.warns(StoreWarning, match="the entry of number 1 is damaged .its SHA-256 .*: it is computed anew"):
        assert get(store, 1) is None
    assert get(store, 2) == value(2)
    put(store, 1)
    assert get(store, 1) == value(1)


def test_an_entry_that_cannot_be_decoded_is_a_damaged_one(store):
    put(store, 1)

    def decode(facts, _):
        return facts["no such fact"]

    with pytest.warns(StoreWarning, match="number 1 is damaged .KeyError: 'no such fact'"):
        assert store.get("number 1", inputs(1), decode=decode) is None


def page_of(content, number):
    return content.index(canonical(inputs(number)).encode()) // 4096 * 4096


def damage_page_of(store, number, length):
    """Overwrite the beginning of the page that holds a number's inputs; return the file's content."""
    content = bytearray(store.path.read_bytes())
    page = page_of(content, number)
    content[page : page + length] = b"\xaa" * length
    store.path.write_bytes(content)
    return content


def test_a_damaged_file_is_moved_aside_and_what_is_whole_of_it_kept(store):
    put(store, *range(20))
    content = damage_page_of(store, 17, 8)
    _, said = quietly(lambda: [get(store, number) for number in range(20)])
    [sentence] = said
    [aside] = store.path.parent.glob("*.damaged-*")
    assert sentence.startswith(f"{store.path}: ")
    assert f"Moved to {aside}" in sentence
    assert aside.read_bytes() == content
    saved = [number for number in range(20) if get(store, number) == value(number)]
    assert f"has the {len(saved)} results that were whole" in sentence
    assert 17 not in saved
    assert saved == in_the_file(content.replace(content[page_of(content, 17) :][:4096], b""), range(20))


def in_the_file(content, numbers):
    """Of these numbers, those whose keys are still there, whatever SQLite makes of the file around them."""
    return [n for n in numbers if hashlib.sha256(canonical(inputs(n)).encode()).hexdigest().encode() in content]


@pytest.fixture
def damaged(store):
    """A store of 200 results of which two pages are damaged, and the numbers of those that are whole."""
    put(store, *range(200))
    damage_page_of(store, 30, 4096)
    whole = in_the_file(damage_page_of(store, 100, 4096), range(200))
    assert 180 < len(whole) < 200
    return Store(store.path), whole  # which has not looked at the file yet


def test_beside_a_damaged_page_everything_else_is_kept(damaged):
    store, whole = damaged
    saved, said = quietly(lambda: [number for number in range(200) if get(store, number) == value(number)])
    assert saved == whole
    assert f"a new store has the {len(saved)} results that were whole" in said[0]


@pytest.mark.parametrize("rank", [3, 100, 198])
@pytest.mark.parametrize("bit", [0x40, 0x80])
def test_a_key_out_of_order_costs_its_own_entry_alone(store, rank, bit):
    put(store, *range(200))
    keys = sorted((hashlib.sha256(canonical(inputs(number)).encode()).hexdigest(), number) for number in range(200))
    key, number = keys[rank]
    content = bytearray(store.path.read_bytes())
    content[content.index(key.encode())] ^= bit
    store.path.write_bytes(content)
    again = Store(store.path)
    saved, said = quietly(lambda: [number for number in range(200) if get(again, number) == value(number)])
    assert set(range(200)) - set(saved) == {number}
    assert "a new store has the 199 results that were whole" in said[0]


def test_what_is_stored_while_another_run_replaces_the_file_is_in_the_new_one(damaged, monkeypatch):
    store, whole = damaged
    writer, stored = Store(store.path), []
    monkeypatch.setattr(writer, "_checked", True)  # it has not met the damage
    take_over = store_module._take_over

    def meanwhile(*paths):
        stored.append(ThreadPoolExecutor(1).submit(put, writer, 1000))
        time.sleep(0.2)  # it waits for the lock by then
        return take_over(*paths)

    monkeypatch.setattr(store_module, "_take_over", meanwhile)
    quietly(get, store, 0)
    stored[0].result(60)
    assert get(Store(store.path), 1000) == value(1000)
    assert [number for number in range(200) if get(store, number) == value(number)] == whole


def test_where_another_run_does_not_stop_writing_nothing_is_replaced(damaged, monkeypatch):
    store, _ = damaged
    monkeypatch.setattr(store_module, "_PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        _, said = quietly(put, store, 1000)
        assert "database is locked. Results are not stored from here on" in said[0]
        assert not list(store.path.parent.glob("*damaged*"))


def test_a_run_killed_while_it_replaces_a_damaged_store_loses_nothing(damaged):
    store, whole = damaged
    content, change = store.path.read_bytes(), 1
    while killed_at(change, lambda: quietly(get, Store(store.path), 0)):
        saved, _ = quietly(lambda: [n for n in range(200) if get(Store(store.path), n) == value(n)])
        assert saved == whole, change
        for path in store.path.parent.iterdir():
            path.unlink()
        store.path.write_bytes(content)
        change += 1
    assert change > 4


def test_on_a_full_disk_a_damaged_store_stays_until_there_is_room(damaged):
    store, whole = damaged
    content = store.path.read_bytes()
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))"
    out, err = process(store, f"{limit}; put(store, 1000); print(get(store, 1000))").communicate(timeout=60)
    assert out == "None\n", err
    assert "Results are not stored from here on" in err
    assert store.path.read_bytes() == content
    assert [path for path in store.path.parent.iterdir() if path.suffix != ".lock"] == [store.path]
    saved, said = quietly(lambda: [number for number in range(200) if get(store, number) == value(number)])
    assert saved == whole
    assert "Moved to" in said[0]


@pytest.mark.parametrize("make", ["text", "other database", "view"])
def test_what_is_not_a_store_is_never_run_nor_lost(make, store):
    store.path.parent.mkdir()
    if make == "text":
        store.path.write_text("my notes " * 1000)
    else:
        put(store, 1) if make == "view" else None
        with contextlib.closing(sqlite3.connect(store.path)) as file:
            if make == "view":
                file.execute("DROP TABLE results")
                endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
                file.execute(f"CREATE VIEW results AS SELECT i key, 1 name, 1 inputs FROM ({endless})")
            else:
                file.execute("CREATE TABLE mine (content)")
            file.commit()
    before = store.path.read_bytes()
    _, said = quietly(lambda: (get(store, 1), put(store, 1), get(store, 1)))
    kept = [path for path in store.path.parent.glob("*sqlite*") if path.read_bytes() == before]
    assert len(kept) == 1
    if make == "other database":
        assert "is not a store of this knorm" in said[0]
        assert len(said) == 2  # once for looking up, once for storing
    else:
        assert get(store, 1) == value(1)


# --- a place that cannot be written


def test_where_nothing_can_be_written_the_run_goes_on_and_it_is_said_once(tmp_path):
    (tmp_path / "a file").write_text("")
    store = Store(tmp_path / "a file" / "results.sqlite")
    _, said = quietly(put, store, 1, 2, 3)
    [sentence] = said
    assert "FileExistsError" in sentence
    assert "Results are not stored from here on; the run goes on" in sentence
    assert get(store, 1) is None


# --- other processes: they import the store alone, which takes a tenth of a second

PROGRAM = """
import resource, sys, warnings
sys.path.insert(0, {root!r})
from suites.sweep.test_store import Store, get, put, value
warnings.simplefilter("always")
store = Store({path!r})
"""


def process(store, program):
    program = PROGRAM.format(root=str(ROOT), path=str(store.path)) + program
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_on_a_full_disk_the_run_goes_on_says_so_once_and_keeps_what_was_stored(store):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    full = f"{limit}; put(store, *range(30)); print(get(store, 0) == value(0))"
    out, err = process(store, full).communicate(timeout=60)
    assert out == "True\n", err
    assert err.count("Results are not stored from here on") == 1
    stored = [get(store, number) for number in range(30)]
    assert stored[:3] == [value(0), value(1), value(2)]
    assert stored[-1] is None
    put(store, 29)
    assert get(store, 29) == value(29)


def test_runs_at_once_lose_nothing_of_each_other_even_when_they_find_the_store_damaged(store):
    put(store, 1000)
    store.path.write_bytes(store.path.read_bytes()[:5000])
    writers = [process(store, f"put(store, *range({first}, {first + 10}))") for first in (0, 10, 20)]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert sum("Moved to" in error for error in errors) == 1, errors
    assert [get(store, number) for number in range(30)] == [value(number) for number in range(30)]


def test_a_store_that_is_deleted_again_and_again_goes_on_storing(store):
    def write(tell):
        _, sentences = quietly(put, store, *range(40))
        tell(len(sentences) + 1000 * store._writes)

    writers = [Process(write) for _ in range(4)]
    running = list(writers)
    while running:
        for path in (store.path, Path(f"{store.path}-journal")):
            path.unlink(missing_ok=True)
        time.sleep(0.01)
        running = [writer for writer in running if not writer.has_told()]
    assert [writer.end() for writer in writers] == [(0, [1000])] * 4
    put(store, 1)
    assert get(Store(store.path), 1) == value(1)


def test_what_was_stored_before_a_kill_is_there_after_it(store):
    for round_ in range(3):
        first = 100 * round_
        writer = process(store, f"for n in range({first}, {first + 100}): put(store, n); print(n, flush=True)")
        for _ in range(4 + round_):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        stored = first + 4 + round_ + len(writer.communicate()[0].split())
        for number in range(first, stored):
            assert get(store, number) == value(number)
