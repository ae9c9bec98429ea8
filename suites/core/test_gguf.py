"""GGUF files by path: converted once, with the tokenizer that the file names, or refused by the name."""

from __future__ import annotations

import gc
import json

import gguf as gguf_library
import pytest
import torch
from tokenizers import Tokenizer

from knorm_core import ModelNotFoundError, evaluate, load_model
from knorm_core.inputs import cache, gguf, gguf_tokenizers
from knorm_core.inputs.gguf_header import read_header
from knorm_core.inputs.models import model_folder, model_identity
from suites.kills_and_damage.tiny_gguf import WIDTH, write_gguf

pytestmark = pytest.mark.xdist_group("gguf")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A GGUF file, and a cache folder in which it is converted."""
    home = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNORM_CACHE", str(home / "cache"))
        path = write_gguf(home / "my model.gguf")
        model_folder(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(converted, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(converted.parent / "cache"))


@pytest.mark.fast
def test_a_gguf_file_is_loaded_by_its_path(converted):
    model, tokenizer = load_model(converted)
    embedding = next(t for t in gguf_library.GGUFReader(converted).tensors if t.name == "token_embd.weight")
    assert torch.equal(model.model.embed_tokens.weight, torch.tensor(embedding.data).double())
    assert model.model.embed_tokens.weight.shape == (259, WIDTH)
    ids = tokenizer("the thin thing, thinking: " * 3, return_tensors="pt").input_ids[0][:60]
    assert evaluate(model, ids, keep_ratio=0.5, prune_after=40).ppl > 0


@pytest.mark.fast
def test_it_is_converted_once_and_its_identity_is_its_own_sha256(converted, monkeypatch):
    monkeypatch.setattr(gguf, "write_model", lambda *_: pytest.fail("converted again"))
    assert model_folder(str(converted)) == model_folder(converted)
    identity = model_identity(converted)
    assert identity.weights == gguf.digest_of([converted])
    assert identity.config == ""


@pytest.mark.fast
def test_another_file_under_the_same_name_is_another_model(converted, tmp_path):
    (tmp_path / "a").mkdir()
    other = write_gguf(tmp_path / "a" / converted.name, pre="gpt-2")
    assert model_folder(other) != model_folder(converted)
    assert model_identity(other).weights != model_identity(converted).weights


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "conversion.json"])
@pytest.mark.full
def test_a_conversion_that_was_changed_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf")
    changed = model_folder(path) / file
    gc.collect()
    content = changed.read_bytes()
    if file == "conversion.json":  # another GGUF file's
        content = content.replace(b'"gguf": "', b'"gguf": "0')
    else:
        content = content[:-1] + b" "
    changed.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="delete the folder and run again"):
        load_model(path)


@pytest.mark.parametrize(
    ("tokenizer", "pre", "named"),
    [
        ("gpt2", "default", "pre-tokenizer 'default'"),
        ("gpt2", "deepseek-llm", "pre-tokenizer 'deepseek-llm'"),
        ("gpt2", None, "no pre-tokenizer"),
        ("llama", "default", "tokenizer 'llama', architecture 'llama'"),
        ("t5", "default", "tokenizer 't5'"),
    ],
)
@pytest.mark.fast
def test_a_pre_tokenizer_that_is_not_reproduced_is_refused_by_name(tokenizer, pre, named, tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", pre=pre, tokenizer=tokenizer)
    with pytest.raises(ModelNotFoundError, match=named):
        load_model(path)
    assert not list((tmp_path / "cache").glob("tiny*-transformers*[0-9]"))


_WORDS = [",", "Ġdon", "'t", "ĠDON"]
PIECES = {
    "gpt-2": ["in", "ĠĠ", "Ġ12345", *_WORDS, "'", "T", "Ġ(", "x", ")", "Ċ", "Ċ", "end"],
    "smollm": ["in", "ĠĠĠ", *"12345", *_WORDS, "'", "T", "Ġ(", "x", ")", "Ċ", "Ċ", "end"],
    "llama-bpe": ["in", "ĠĠ", "Ġ", "123", "45", *_WORDS, "'T", "Ġ(", "x", ")ĊĊ", "end"],
    "qwen2": ["in", "ĠĠ", "Ġ", *"12345", *_WORDS, "'T", "Ġ(", "x", ")ĊĊ", "end"],
}


def tokenizer_of(path):
    return Tokenizer.from_str(gguf_tokenizers.convert_tokenizer(read_header(path), str(path))[0].decode())


@pytest.mark.parametrize("pre", PIECES)
@pytest.mark.fast
def test_a_text_is_split_as_the_pre_tokenizer_of_that_name_does(pre, tmp_path):
    tokenizer = tokenizer_of(write_gguf(tmp_path / "tiny.gguf", pre=pre))
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("in   12345, don't DON'T (x)\n\nend")
    assert [piece for piece, _ in pieces] == PIECES[pre]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
@pytest.mark.fast
def test_ids_are_those_of_transformers_own_conversion_where_it_knows_the_pre_tokenizer(pre, tmp_path):
    known = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping", exc_type=ImportError)
    path = write_gguf(tmp_path / "tiny.gguf", pre=pre)
    architecture, vocabulary, _ = known.get_gguf_tokenizer(str(path))
    theirs, _ = known.convert_gguf_tokenizer(architecture, vocabulary)
    text = "In the thinnest  ink 12345\n\n\n  don't <|endoftext|> naïve 文字 \t 🙂\r\nend  " * 3
    ours = tokenizer_of(path).encode(text, add_special_tokens=False).ids
    assert ours == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("pre", "says", "begins"),
    [("smollm", None, False), ("smollm", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
@pytest.mark.fast
def test_a_text_begins_with_bos_where_the_file_says_so_or_the_family_does(pre, says, begins, tmp_path):
    tokenizer = tokenizer_of(write_gguf(tmp_path / "tiny.gguf", pre=pre, add_bos=says))
    assert (tokenizer.encode("thin").ids[0] == 0) == begins


def gemma_header():
    """A vocabulary in the order of its merges, as Gemma's: runs of spaces are spelled as spaces."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [3, 3, 3, 2, *[6] * 256]
    tokens += ["  ", "    ", "▁th", "▁the", "th", "he", *"▁theinx"]
    types += [4, 4] + [1] * 11
    return {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
    }


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("in the", ["<bos>", "i", "n", "▁the"]),
        ("in    the", ["<bos>", "i", "n", "▁▁▁▁", "th", "e"]),
        ("thé", ["<bos>", "th", "<0xC3>", "<0xA9>"]),
    ],
)
@pytest.mark.fast
def test_gemmas_tokenizer_merges_in_the_order_of_its_vocabulary_and_falls_back_to_bytes(text, tokens):
    content, _ = gguf_tokenizers.convert_tokenizer(gemma_header(), "gemma")
    encoding = Tokenizer.from_str(content.decode()).encode(text)
    assert encoding.tokens == tokens
    assert max(encoding.ids) < len(gemma_header()["tokenizer.ggml.tokens"])


@pytest.mark.fast
def test_a_vocabulary_that_is_damaged_is_refused():
    header = gemma_header()
    for changed in ({"tokenizer.ggml.token_type": [1]}, {"tokenizer.ggml.unknown_token_id": 10**6}):
        with pytest.raises(ModelNotFoundError, match="gemma has a damaged vocabulary"):
            gguf_tokenizers.convert_tokenizer(header | changed, "gemma")


@pytest.mark.fast
def test_the_head_of_a_file_is_read_as_the_gguf_package_reads_it(converted):
    reader = gguf_library.GGUFReader(converted)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert json.dumps(read_header(converted)) == json.dumps(fields)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16])
@pytest.mark.fast
def test_what_is_no_gguf_is_refused(content, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="is no whole GGUF file"):
        load_model(path)


@pytest.mark.fast
def test_a_cache_without_a_home_is_a_folder_for_temporary_files(monkeypatch):
    monkeypatch.delenv("KNORM_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(cache.os.path, "expanduser", lambda path: path)
    assert cache.cache_folder().name.startswith("knorm-")
    assert cache.cache_folder().is_absolute()
