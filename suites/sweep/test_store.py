"""The store's promises: what is in it is whole and right, whatever happened to its file or to a run."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core.sweeps import salvage, store_file
from knorm_core.sweeps.store import Store, StoreWarning, canonical, store_of
from suites.sweep.numbered import damage_page_of, get, in_the_file, inputs, page_of, put, quietly, value

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("without_waiting")]

ROOT = Path(__file__).parents[2]


def test_what_is_put_is_found_again_by_another_process_with_its_time_and_readable_inputs(store):
    assert get(store, 1) is None
    assert not store.path.parent.exists()  # looking makes nothing
    put(store, 1, 2)
    again = Store(store.path)
    assert [get(again, number) for number in (1, 2, 3)] == [value(1), value(2), None]
    assert len(again.reused) == 2
    assert again.reused[0].startswith("20")
    assert store.computed == 2
    with contextlib.closing(sqlite3.connect(store.path)) as file:
        assert file.execute("SELECT name, inputs FROM results ORDER BY name").fetchall() == [
            (f"number {number}", canonical(inputs(number))) for number in (1, 2)
        ]


def test_the_first_candidate_that_is_stored_is_found(store):
    put(store, 2, 3)
    entry = store.get("any", inputs(1), inputs(2), inputs(3), decode=lambda facts, _: facts["number"])
    assert entry.value == 2
    assert len(store.reused) == 1


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


def test_a_result_is_on_the_disk_when_it_is_stored(tmp_path):
    extra = 3  # https://www.sqlite.org/pragma.html#pragma_synchronous
    with contextlib.closing(store_file.open_file(tmp_path / "any.sqlite")) as file:
        assert file.execute("PRAGMA synchronous").fetchone() == (extra,)


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


def damaged_copy(whole, damage, folder):
    kind, where, what = damage
    content = bytearray(whole.read_bytes())
    at = int(where * len(content))
    if kind == "flip":
        content[at] ^= what
    elif kind == "cut":
        del content[at:]
    else:
        content[at : at + 512] = bytes([what]) * len(content[at : at + 512])
    path = folder / "damaged.sqlite"
    path.write_bytes(content)
    return Store(path)


@settings(max_examples=25)
@given(damage=damages)
def test_whatever_is_damaged_nothing_wrong_is_read(whole, damage, tmp_path_factory):
    store = damaged_copy(whole, damage, tmp_path_factory.mktemp("damaged"))
    for number in range(5):
        content, said = quietly(get, store, number)
        assert content in (None, value(number))
        assert all(str(store.path) in sentence for sentence in said)


@settings(max_examples=25)
@given(damage=damages)
def test_whatever_is_damaged_what_is_missing_can_be_stored_again(whole, damage, tmp_path_factory):
    store = damaged_copy(whole, damage, tmp_path_factory.mktemp("damaged"))
    quietly(lambda: [get(store, number) for number in range(5)])
    _, said = quietly(put, store, *range(5))
    if "not a store of this knorm" not in "".join(said):
        again = Store(store.path)
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


def test_beside_a_damaged_page_everything_else_is_kept(damaged):
    store, whole = damaged
    saved, said = quietly(lambda: [number for number in range(200) if get(store, number) == value(number)])
    assert saved == whole
    assert f"a new store has the {len(saved)} results that were whole" in said[0]


@pytest.mark.parametrize("rank", [3, 100, 198])
@pytest.mark.parametrize("bit", [0x40, 0x80])
def test_a_key_out_of_order_costs_its_own_entry_alone(filled, rank, bit):
    keys = sorted((hashlib.sha256(canonical(inputs(number)).encode()).hexdigest(), number) for number in range(200))
    key, number = keys[rank]
    content = bytearray(filled.path.read_bytes())
    content[content.index(key.encode())] ^= bit
    filled.path.write_bytes(content)
    saved, said = quietly(lambda: [number for number in range(200) if get(filled, number) == value(number)])
    assert set(range(200)) - set(saved) == {number}
    assert "a new store has the 199 results that were whole" in said[0]


def test_what_is_stored_while_another_run_replaces_the_file_is_in_the_new_one(damaged, monkeypatch):
    store, whole = damaged
    writer, stored = Store(store.path), []
    monkeypatch.setattr(writer, "_checked", True)  # it has not met the damage
    take_over = salvage._take_over

    def meanwhile(*paths):
        stored.append(ThreadPoolExecutor(1).submit(put, writer, 1000))
        time.sleep(0.2)  # it waits for the lock by then
        return take_over(*paths)

    monkeypatch.setattr(salvage, "_take_over", meanwhile)
    quietly(get, store, 0)
    stored[0].result(60)
    assert get(Store(store.path), 1000) == value(1000)
    assert [number for number in range(200) if get(store, number) == value(number)] == whole


def test_where_another_run_does_not_stop_writing_nothing_is_replaced(damaged, monkeypatch):
    store, _ = damaged
    monkeypatch.setattr(store_file, "_PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        _, said = quietly(put, store, 1000)
        assert "database is locked. Results are not stored from here on" in said[0]
        assert not list(store.path.parent.glob("*damaged*"))


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
