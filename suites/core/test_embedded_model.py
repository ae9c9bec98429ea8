"""The embedded model: its own tokenizer, and four files that are what they should be."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from knorm_core import ModelNotFoundError, load_model
from knorm_core.inputs import embedded_model as embedded
from knorm_core.inputs.models import model_identity

pytestmark = pytest.mark.xdist_group("embedded model")


@pytest.fixture
def folder(embedded_model, tmp_path, monkeypatch):
    """A copy of the converted model, its weights a link, as the user's cache."""
    source = embedded.embedded_folder()
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path))
    embedded.embedded_folder().mkdir()
    for path in source.iterdir():
        copied = embedded.embedded_folder() / path.name
        if path.name == "model.safetensors":
            copied.symlink_to(path)
        else:
            shutil.copy(path, copied)
    return embedded.embedded_folder()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # Each digit is split off first, so that what is before it is a word of its own.
        ("     17", ["ĠĠĠĠĠ", "1", "7"]),
        ("in  12", ["in", "ĠĠ", "1", "2"]),
        ("in 12", ["in", "Ġ", "1", "2"]),
        ("\n\n12", ["ĊĊ", "1", "2"]),
        ("1999-12-31", ["1", "9", "9", "9", "-", "1", "2", "-", "3", "1"]),
        ("3.14", ["3", ".", "1", "4"]),
        ("the  end", ["the", "Ġ", "Ġend"]),
    ],
)
@pytest.mark.fast
def test_digits_and_what_stands_before_them_are_tokens_as_the_model_learned_them(text, tokens, embedded_model):
    assert embedded_model.tokenizer.tokenize(text) == tokens
    ids = embedded_model.tokenizer(text).input_ids
    assert embedded_model.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.fast
def test_ids_are_those_of_the_tokenizers_library_built_by_hand(embedded_model):
    from tokenizers import Tokenizer, models, pre_tokenizers

    content = json.loads((embedded.embedded_folder() / "tokenizer.json").read_text())
    merges = [tuple(merge) for merge in content["model"]["merges"]]
    oracle = Tokenizer(models.BPE(content["model"]["vocab"], merges))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    text = " Page    17\n\n\t1909, 3½ naïve 文字 ² 🙂  end\r\n" * 3
    assert embedded_model.tokenizer(text).input_ids == oracle.encode(text).ids


@pytest.mark.fast
def test_the_tokenizers_file_has_the_pinned_sha256(folder):
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == embedded._TOKENIZER_SHA256
    assert folder.name.endswith(digest[:8])  # so that what was converted with another tokenizer is not used


@pytest.mark.full
def test_the_converted_files_are_accepted(folder):
    assert embedded.convert_embedded() == folder
    assert model_identity("smollm2-135m").config == ""


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"rope_theta": 100000.0', '"rope_theta": 10000.0'),
        ("tokenizer_config.json", '"<|im_start|>"', '"<|im_end|>"'),
        ("tokenizer.json", '"individual_digits":true', '"individual_digits":false'),
    ],
)
@pytest.mark.fast
def test_a_changed_file_is_refused(file, old, new, folder):
    content = (folder / file).read_text()
    assert old in content
    (folder / file).write_text(content.replace(old, new))
    with pytest.raises(ModelNotFoundError, match=f"{file} has SHA-256 .* not the pinned .*: delete the folder"):
        embedded.convert_embedded()


@pytest.mark.fast
def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"not these")
    with pytest.raises(ModelNotFoundError, match=r"not the pinned a672150f.*: delete the folder and run again"):
        load_model()


@pytest.mark.parametrize("file", ["adapter_config.json", "added_tokens.json", "generation_config.json"])
@pytest.mark.fast
def test_a_file_too_many_is_refused(file, folder):
    (folder / file).write_text("{}")
    with pytest.raises(ModelNotFoundError, match=f"holds '{file}', which does not belong there: delete the folder"):
        embedded.convert_embedded()


@pytest.mark.fast
def test_a_file_too_few_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer.json is not there, or is no file: delete the folder"):
        embedded.convert_embedded()


@pytest.mark.parametrize("what", ["/dev/zero", "/proc/self/pagemap", "config.json"])
@pytest.mark.fast
def test_a_file_without_an_end_is_refused_before_it_is_read(what, folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(what)
    with pytest.raises(ModelNotFoundError, match=r"'config\.json', which .*: delete the folder and run again"):
        embedded.convert_embedded()


@pytest.mark.fast
def test_a_file_in_the_place_of_the_folder_is_refused(folder):
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(ModelNotFoundError, match=r"cannot be read .*: delete the folder and run again"):
        embedded.convert_embedded()


@pytest.mark.fast
def test_a_cache_of_a_name_that_is_too_long_is_refused(embedded_model, monkeypatch, tmp_path):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / ("x" * 300)))
    with pytest.raises(ModelNotFoundError, match=r"cannot be kept in .*: make room there, or name another folder"):
        embedded.convert_embedded()
