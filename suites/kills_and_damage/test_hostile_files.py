"""Truncated, bit-flipped and hostile files: each is refused in a sentence that names it; no crash, hang or bloat."""

from __future__ import annotations

import importlib.metadata
import shutil
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from knorm_core import ModelNotFoundError, TextNotFoundError, load_model, load_texts
from knorm_core.inputs import embedded_model, hub
from suites.families import tiny_model
from suites.hub.content import PG19, tokenizer_files
from suites.kills_and_damage.hostile import DEEP, HEADERS, assert_refused, few_and_many
from suites.kills_and_damage.mutations import for_every_change, refusal
from suites.kills_and_damage.tiny_gguf import write_gguf

pytestmark = pytest.mark.xdist_group("hostile")


# --- safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    for file, body in tokenizer_files().items():
        (folder / file).write_bytes(body)
    load_model(folder)  # imports what is imported late, before any process is forked
    return folder


@pytest.fixture
def loaded(folder, tmp_path):
    """Load the model with one file's content in the place of its own; how that is refused, or None."""

    def load(content, file="model.safetensors"):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        (copy / file).write_bytes(content)
        error = refusal(lambda: load_model(copy, torch.float64))
        if error is not None:
            assert_refused(error, ModelNotFoundError, copy)
        return error

    return load


@few_and_many
def test_changed_weights_are_refused_or_are_all_there(examples, folder, loaded):
    for_every_change((folder / "model.safetensors").read_bytes(), examples, loaded)


@pytest.mark.fast
@pytest.mark.faults_injected
@pytest.mark.parametrize("what", HEADERS)
def test_a_hostile_header_is_refused(what, loaded):
    assert_refused(loaded(HEADERS[what]), ModelNotFoundError, "damaged model.safetensors")


@pytest.mark.fast
@pytest.mark.faults_injected
def test_weights_without_one_of_the_tensors_are_refused_and_not_made_up(folder, loaded):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    key = state.pop(name)
    assert_refused(loaded(safetensors.torch.save(state)), ModelNotFoundError, "lacks 1 of its tensors", name)
    other = safetensors.torch.save({**state, name: key[:, :8].contiguous()})
    assert_refused(loaded(other), ModelNotFoundError, "cannot be loaded")


@pytest.mark.fast
@pytest.mark.faults_injected
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_configuration_of_many_levels_is_refused(file, loaded):
    assert_refused(loaded(DEEP, file), ModelNotFoundError)


@pytest.mark.faults_injected
def test_a_changed_tokenizer_is_refused_or_works(folder, loaded):
    for_every_change((folder / "tokenizer.json").read_bytes(), 100, lambda content: loaded(content, "tokenizer.json"))


# --- GGUF


@few_and_many
def test_a_changed_package_is_refused_before_anything_parses_it(examples, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / embedded_model._GGUF)
    packaged = importlib.metadata.PackagePath(path)
    packaged.dist = importlib.metadata.distribution("pytest")
    monkeypatch.setattr(embedded_model.importlib.metadata, "files", lambda package: [packaged])
    monkeypatch.setattr(embedded_model, "_convert", lambda *_: pytest.fail("parsed"))
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "cache"))

    def check(content):
        path.write_bytes(content)
        with pytest.raises(ModelNotFoundError, match="not the pinned") as error:
            embedded_model.convert_embedded()
        assert_refused(error.value, ModelNotFoundError, path, "pip install")

    for_every_change(path.read_bytes(), examples, check)


@few_and_many
def test_a_changed_gguf_is_refused_or_converted_whole(examples, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "cache"))
    load_model(path)  # imports what is imported late, before any process is forked

    def check(content):
        path.write_bytes(content)
        error = refusal(lambda: load_model(path, torch.float64))
        if error is not None:
            assert_refused(error, ModelNotFoundError)
            assert str(path) in str(error) or str(tmp_path / "cache") in str(error)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    for_every_change(content, examples, check)


# --- Parquet


@pytest.fixture
def pg19(tmp_path, monkeypatch):
    """Load PG-19 from a Parquet file with this content, as the hub's; how that is refused, or None."""
    [name] = hub.PINNED[PG19].sha256
    path = tmp_path / "hub" / name
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(hub, "pinned", lambda _: tmp_path / "hub")
    monkeypatch.delenv("KNORM_TEXT_DIR", raising=False)

    def load(content):
        path.write_bytes(content)
        error = refusal(lambda: load_texts("pg19", characters, bos="off"))
        if error is not None:
            assert_refused(error, TextNotFoundError, name, "emozilla/pg19-test")
        return error

    return load


def characters(text, **_):
    """A tokenizer."""
    return SimpleNamespace(input_ids=[ord(character) for character in text[:2000]])


def parquet(columns, times=1, **options):
    sink, table = pyarrow.BufferOutputStream(), pyarrow.table(columns)
    with pyarrow.parquet.ParquetWriter(sink, table.schema, store_schema=False, **options) as writer:
        for _ in range(times):
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


BOOKS = parquet({"short_book_title": ["A Novel", "Another"], "text": ["It was a novel.", "It was another."]})


@few_and_many
def test_changed_parquet_is_refused_or_is_text(examples, pg19):
    assert pg19(BOOKS) is None
    for_every_change(BOOKS, examples, pg19)


def repeated(value, rows):
    """A column of one value, which Parquet writes once."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([value]))


def hostile_parquet():
    """What is wrong, and a file with it."""
    rows, title = 20_000, {"short_book_title": ["title"]}
    yield (
        "fifty kilobytes that stand for 20 GB",
        parquet({"text": repeated("x" * (1 << 20), rows), "short_book_title": repeated("t", rows)}),
    )
    yield (
        "pages that decompress to 1.3 GB",
        parquet({"text": ["x" * (1 << 26)], **title}, times=20, compression="zstd", use_dictionary=False),
    )
    yield "a row without text", parquet({"text": pyarrow.array([None], pyarrow.string()), **title})
    yield "numbers", parquet({"text": [1], **title})
    yield "lists", parquet({"text": [["a"]], **title})
    yield "bytes that are not UTF-8", parquet({"text": pyarrow.array([b"\xff\xfe"]).view(pyarrow.string()), **title})
    yield "no such column", parquet({"text": ["text"]})
    yield (
        "no rows",
        parquet({"text": pyarrow.array([], pyarrow.string()), "short_book_title": pyarrow.array([], pyarrow.string())}),
    )
    # The number of rows, 2 in the footer as a variable-length integer, becomes 2**62.
    footer = BOOKS.rindex(b"schema")
    yield (
        "a count of rows that is too large",
        BOOKS[:footer] + BOOKS[footer:].replace(b"\x16\x04", b"\x16\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
    )


@pytest.mark.faults_injected
def test_hostile_parquet_is_refused(pg19):
    for what, content in hostile_parquet():
        assert len(content) < 1 << 20, what
        assert content != BOOKS, what
        assert_refused(pg19(content), TextNotFoundError, "of data set")
