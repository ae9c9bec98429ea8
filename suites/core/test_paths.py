"""Names of folders as people and file systems have them: each works, or is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch

from knorm_core import ModelNotFoundError, TextNotFoundError, load_model, load_texts
from knorm_core.inputs.models import model_identity
from knorm_core.plugin.inputs import LoadedModel
from suites.families import tiny_model
from suites.hub.content import tokenizer_files

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("paths")]

NAMES = ["with space", "naïve-文字-тест", "brackets [a] {b}", "star * mark ? # per%20cent", "a::b", "quote ' \"", "-n"]
TOO_LONG = "x" * 4096
NOVEL = "Title\n\nContents\n\nIt was a novel.\n"  # of which a quarter is the title
REPEATED = "/".join(["folder"] * 585)  # 4,094 characters, no part of it too long


@pytest.fixture(scope="module")
def model_home(tmp_path_factory):
    """A folder with a tiny model in ``model``."""
    home = tmp_path_factory.mktemp("home")
    tiny_model("gpt_neox").save_pretrained(home / "model")
    for file, body in tokenizer_files().items():
        (home / "model" / file).write_bytes(body)
    return home


@pytest.fixture(scope="module")
def tokenizer(model_home):
    return load_model(model_home / "model")[1]


@pytest.fixture(scope="module")
def text_home(tmp_path_factory):
    """A folder with a mirror of one novel in ``mirror``."""
    home = tmp_path_factory.mktemp("texts")
    (home / "mirror" / "pg19").mkdir(parents=True)
    (home / "mirror" / "pg19" / "1.txt").write_text(NOVEL)
    return home


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loads_from_a_folder_of_any_name(name, model_home):
    folder = model_home / name
    shutil.copytree(model_home / "model", folder, copy_function=os.link)
    model, _ = load_model(folder)
    assert torch.equal(model.gpt_neox.final_layer_norm.weight, tiny_model("gpt_neox").gpt_neox.final_layer_norm.weight)


@pytest.mark.parametrize("way", ["relative", "up and down", "link", "link to a link", "home"])
def test_a_model_is_the_same_whichever_way_leads_to_it(way, model_home, monkeypatch):
    monkeypatch.chdir(model_home)
    monkeypatch.setenv("HOME", str(model_home))
    link = model_home / f"{way} link"
    link.symlink_to("model")
    ways = {
        "relative": "model",
        "up and down": f"model/../../{model_home.name}/./model/",
        "link": link,
        "link to a link": str(link),
        "home": "~/model",
    }
    assert model_identity(ways[way]) == model_identity(model_home / "model")


@pytest.mark.parametrize(
    "name",
    [TOO_LONG, f"owner/{TOO_LONG}", f"/{REPEATED}", f"{REPEATED}/..", "a\0b", "owner/a\nb"],
    ids=["part", "id", "path", "up", "null", "newline"],
)
def test_a_model_name_that_cannot_be_is_refused_in_one_short_sentence(name):
    with pytest.raises(ModelNotFoundError, match="unknown model") as refusal:
        load_model(name)
    assert len(str(refusal.value)) < 700
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../up", "owner/..", "owner/--", "владелец/модель", "owner/mo del", ".hidden/name"])
def test_what_is_no_name_on_the_hub_is_not_asked_for(name):
    with pytest.raises(ModelNotFoundError, match=r"unknown model '.*': not .*, not a hub id"):
        load_model(name)


def test_a_link_in_a_circle_is_refused(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ModelNotFoundError, match="unknown model"):
        load_model(tmp_path / "circle")
    with pytest.raises(TextNotFoundError, match="no text at"):
        load_texts("pg19", None, text_dir=tmp_path / "circle")


@pytest.mark.parametrize("name", NAMES)
def test_a_mirror_may_have_any_name(name, text_home, tokenizer):
    shutil.copytree(text_home / "mirror", text_home / name)
    [novel] = load_texts("pg19", tokenizer, text_dir=text_home / name)
    assert novel.sha256 == hashlib.sha256(b"It was a novel.\n").hexdigest()


def test_a_mirror_is_found_on_any_way(text_home, tokenizer, monkeypatch):
    monkeypatch.chdir(text_home)
    (text_home / "link").symlink_to("mirror")
    for way in ("link", "mirror/../link/.", text_home / "link" / ".." / "mirror"):
        [novel] = load_texts("pg19", tokenizer, text_dir=way)
        assert novel.title == "1"


@pytest.mark.parametrize("text_set", ["pg19", "wikitext-short"])
@pytest.mark.parametrize("folder", [TOO_LONG, f"/{REPEATED}", "a\0b"], ids=["part", "path", "null"])
def test_a_mirror_that_cannot_be_is_refused_in_one_short_sentence(folder, text_set):
    with pytest.raises(TextNotFoundError, match="no text at ") as refusal:
        load_texts(text_set, None, text_dir=folder)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "slug"),
    [("model", "model"), (".", "HOME"), ("model/..", "HOME"), ("a link", "a-link"), ("owner/name", "owner-name")],
)
def test_no_name_leads_baselines_out_of_their_folder(name, slug, model_home, monkeypatch):
    monkeypatch.chdir(model_home)
    if name == "a link":
        (model_home / name).symlink_to("model")
    assert LoadedModel(name, None, None, None).slug == slug.replace("HOME", model_home.name)


REFUSED = {
    "asks for code of its own (auto_map in config.json)": {"config.json": {"auto_map": {}}},
    "asks for code of its own (auto_map in tokenizer_config.json)": {"tokenizer_config.json": {"auto_map": {}}},
    "has a damaged config.json (Expecting value": {"config.json": None},
    "has a damaged config.json (no JSON object)": {"config.json": [1]},
    "lacks 1 of the 1 files that its model.safetensors.index.json names, such as '../model.safetensors'": {
        "model.safetensors.index.json": {"weight_map": {"a": "../model.safetensors"}}
    },
    "has an model.safetensors.index.json without weight_map": {"model.safetensors.index.json": {}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_folder_that_is_not_loaded_is_refused_with_the_reason(reason, model_home, tmp_path):
    shutil.copytree(model_home / "model", tmp_path / "copy")
    for file, settings in REFUSED[reason].items():
        (tmp_path / "copy" / file).write_text("" if settings is None else json.dumps(settings))
        if "index" in file:
            (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError) as refusal:
        load_model(tmp_path / "copy")
    assert str(refusal.value).startswith(f"model folder {tmp_path / 'copy'} {reason}")


def test_weights_in_several_files_are_the_same_weights(tmp_path):
    tiny_model("gpt_neox").save_pretrained(tmp_path / "shards", max_shard_size="30kB")
    for file, body in tokenizer_files().items():
        (tmp_path / "shards" / file).write_bytes(body)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model, _ = load_model(tmp_path / "shards")
    for name, parameter in tiny_model("gpt_neox").named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
