"""Hash what was really opened, refuse what would open anything else: no number stands under another model's name."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from knorm_core import ModelNotFoundError, evaluate, load_model
from knorm_core.inputs import loaded as inputs_loaded
from knorm_core.inputs.models import model_identity
from knorm_core.inputs.tokenizers import load_tokenizer
from suites.families import PROMISED, random_ids, tiny_model
from suites.hub.content import tokenizer_files

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("identity")]

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a tiny Llama and a tokenizer; not to be changed."""
    return saved(tiny_model("llama"), tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "model")


def saved(model, folder):
    model.save_pretrained(folder)
    for file, body in tokenizer_files().items():
        (folder / file).write_bytes(body)
    return folder


def change_settings(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change_tensors(folder, **changed):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name.replace("/", "."): of for name, of in changed.items()}, folder / "model.safetensors")


def change(folder, **settings):
    change_settings(folder / "config.json", **settings)


def assert_refused(folder, *named):
    with pytest.raises(ModelNotFoundError) as refusal:
        load_model(folder)
    sentence = str(refusal.value)
    assert str(folder) in sentence
    assert all(part in sentence for part in named), sentence
    assert len(sentence) < 700
    assert "\n" not in sentence


@pytest.mark.parametrize("family", PROMISED)
def test_every_promised_family_is_loaded_as_it_was_saved(family, tmp_path):
    model, _ = load_model(saved(tiny_model(family), tmp_path / "model"))
    for name, parameter in tiny_model(family).named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


# --- other files than those that are hashed


@pytest.mark.parametrize("file", ["other.safetensors", "adapter_model.bin", "model.safetensors"])
def test_a_configuration_that_names_another_file_with_weights_is_refused(file, folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    change(folder, transformers_weights=file)
    assert_refused(folder, f"transformers_weights='{file}'")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_in_the_folder_is_refused_whether_or_not_peft_is_installed(file, folder):
    (folder / file).write_text("{}")
    assert_refused(folder, file, "merge_and_unload")


def test_weights_of_a_distributed_run_are_refused(folder):
    (folder / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"")
    assert_refused(folder, "shard-00000-model-00001-of-00001.safetensors")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("kernel", ["org/repo", "flash_attention_2", {"": "org/repo"}, ["org/repo"]])
def test_a_configuration_that_names_a_kernel_is_refused(name, kernel, folder):
    change(folder, **{name: kernel})
    assert_refused(folder, name, "kernel from elsewhere")


@pytest.mark.parametrize("within", [False, True])
def test_what_is_refused_is_refused_in_a_configuration_within_the_configuration_too(within, folder):
    change(folder, **({"text_config": {"transformers_weights": "x"}} if within else {"transformers_weights": "x"}))
    assert_refused(folder, "transformers_weights='x'")


def test_a_tokenizer_that_names_a_file_elsewhere_is_refused(folder, tmp_path):
    shutil.copy(folder / "tokenizer.json", tmp_path / "other.json")
    change_settings(folder / "tokenizer_config.json", tokenizer_file=str(tmp_path / "other.json"))
    assert_refused(folder, "tokenizer_file=", "other.json")


def test_two_files_with_one_tensor_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    index = {"metadata": {}, "weight_map": {QUERY: "a.safetensors", "model.norm.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "twice, in a.safetensors and in b.safetensors")


# --- tensors that the configuration has no place for


@pytest.mark.parametrize(
    "name",
    [
        "model/layers/1/self_attn/q_proj/bias",  # of attention_bias
        "model/layers/1/mlp/up_proj/bias",
        "model/layers/1/self_attn/q_norm/weight",  # a Qwen3 under model_type llama
        "model/layers/1/self_attn/q_proj/weight_scale",  # fp8
        "model/layers/1/mlp/up_proj/SCB",  # int8
        "model/norm/gamma",  # which older versions rename to model.norm.weight
        "norm/weight",  # so do others, since the prefix is left out
    ],
)
def test_a_tensor_without_a_place_is_refused(name, folder):
    change_tensors(folder, **{name: torch.ones(32)})
    reason = "" if name == "norm/weight" else "has tensors that its configuration has no place for (1, such as"
    assert_refused(folder, reason, "its weights are not those of its configuration")


FREQUENCIES = 10_000.0 ** -(torch.arange(4) / 4)  # of rope_theta 10,000 and heads of width 8


@pytest.mark.parametrize(
    "tensors",
    [
        {"model/layers/1/self_attn/rotary_emb/inv_freq": FREQUENCIES.half()},
        {"model/layers/1/attn/bias": torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()},
        {"model/layers/3/mlp/up_proj/weight": torch.ones(48, 32), "model/layers/3/eh_proj/weight": torch.ones(32, 64)},
        {"model/embeddings/position_ids": torch.arange(64)[None]},
    ],
    ids=["frequencies", "mask", "a layer that drafts tokens", "positions"],
)
def test_a_tensor_that_decides_nothing_is_none_too_many(tensors, folder):
    change(folder, num_nextn_predict_layers=1)
    change_tensors(folder, **tensors)
    load_model(folder)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0},  # stored before they were scaled
        {"rope_theta": 1e8, "rope_type": "default"},  # the last of which float16 hardly holds
    ],
    ids=["scaled", "small"],
)
def test_frequencies_as_older_versions_stored_them_are_none_too_many(rope, folder):
    pairs = len(FREQUENCIES)
    stored = rope["rope_theta"] ** -(torch.arange(pairs) / pairs)
    # As transformers 5 has it, and as 4 has it.
    change(folder, rope_parameters=rope, rope_theta=rope["rope_theta"], rope_scaling=rope)
    change_tensors(folder, **{"model/layers/1/self_attn/rotary_emb/inv_freq": stored.half()})
    load_model(folder)


def test_half_a_model_is_refused_whose_other_half_calls_itself_drafts(folder):
    change(folder, num_hidden_layers=2, num_nextn_predict_layers=1)
    assert_refused(folder, "weights of more than the 2 layers")


def test_what_transformers_computes_is_refused_where_it_is_stored_with_other_numbers(folder):
    change_tensors(folder, **{"model/rotary_emb/inv_freq": FREQUENCIES * 1.05})
    assert_refused(folder, "model.rotary_emb.inv_freq", "rope_theta")


def test_a_mask_that_is_not_causal_is_refused(folder):
    change_tensors(folder, **{"model/layers/1/attn/bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)})
    assert_refused(folder, "model.layers.1.attn.bias", "not causal")


def test_weights_that_are_not_finite_are_said_to_be(folder):
    change_tensors(folder, **{QUERY.replace("q_proj", "k_proj").replace(".", "/"): torch.full((16, 32), math.nan)})
    with pytest.raises(ValueError, match="keys in layer 1 that are not finite: its weights hold NaN or infinity"):
        evaluate(load_model(folder)[0], random_ids(60), keep_ratio=0.5, prune_after=40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_are_those_that_were_read_whatever_is_written_into_the_file_afterwards(dtype, folder):
    stored = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, dtype)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size // 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_whose_files_change_between_hash_and_load_is_refused(folder, monkeypatch):
    def changed_first(*arguments):
        os.replace(shutil.copy(folder / "model.safetensors", folder / "new"), folder / "model.safetensors")
        return load_model(*arguments)

    monkeypatch.setattr(inputs_loaded, "load_model", changed_first)
    with pytest.raises(ModelNotFoundError, match="changed while they were read"):
        inputs_loaded.loaded(str(folder))


def test_a_tokenizer_that_draws_ids_at_random_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change_settings(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert_refused(folder, "draws ids at random", "dropout=0.5")


def test_what_repairs_a_tokenizer_by_the_models_version_goes_into_its_identity(folder):
    change_settings(folder / "tokenizer_config.json", fix_mistral_regex=True)
    change(folder, model_type="mistral", transformers_version="4.50.0")
    before = model_identity(folder).tokenizer
    change(folder, transformers_version="5.1.0")
    assert model_identity(folder).tokenizer != before


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"metadata": {}, "weight_map": {QUERY: "pytorch_model.bin"}}, "names 'pytorch_model.bin'"),
        ({"metadata": {}, "weight_map": {QUERY: "config.json"}}, "names 'config.json'"),
        ({"metadata": {}, "weight_map": {}}, "names no weights"),
        ({"weight_map": {QUERY: "a.safetensors"}}, "without metadata"),
        ({"metadata": {}, "weight_map": ["a.safetensors"]}, "without weight_map"),
    ],
)
def test_an_index_names_safetensors_or_is_refused(index, named, folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, named)


def test_a_configuration_by_version_is_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.4.0.0.json").write_text(json.dumps(settings | {"transformers_weights": "pytorch_model.bin"}))
    change(folder, configuration_files=["config.4.0.0.json"])
    assert_refused(folder, "configuration_files=['config.4.0.0.json']")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_weights_in_no_floating_point_type_are_refused_and_not_cast(dtype, folder):
    change_tensors(folder, **{QUERY: torch.ones(32, 32).to(dtype)})
    assert_refused(folder)


def test_a_quantised_model_is_refused_by_its_configuration(folder):
    change(folder, quantization_config={"quant_method": "fp8"})
    assert_refused(folder, "is quantised", "'fp8'")


def test_tied_embeddings_that_are_stored_twice_have_to_be_equal(folder):
    change(folder, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, **{"lm_head/weight": embedding.clone()})
    load_model(folder)
    change_tensors(folder, **{"lm_head/weight": embedding + 1})
    assert_refused(folder, "different numbers")


# --- the tokenizer's identity


@pytest.mark.parametrize(
    "file",
    [
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer.4.0.0.json",
    ],
)
def test_a_file_that_changes_ids_changes_the_identity(file, folder):
    before = model_identity(folder)
    (folder / file).write_text('{"<new>": 800}')
    assert model_identity(folder).tokenizer != before.tokenizer
    assert model_identity(folder)[::2] == before[::2]


def test_a_token_that_is_added_beside_the_tokenizer_changes_ids_and_identity(folder):
    identity, ids = model_identity(folder), load_tokenizer(folder)(" norm").input_ids
    token = {"content": " norm", "special": False, "normalized": False, "single_word": False}
    change_settings(
        folder / "tokenizer_config.json", added_tokens_decoder={"800": token | {"lstrip": False, "rstrip": False}}
    )
    assert load_tokenizer(folder)(" norm").input_ids != ids
    assert model_identity(folder).tokenizer != identity.tokenizer


def test_what_decides_no_ids_does_not_change_the_tokenizers_identity(folder):
    before = model_identity(folder)
    for file in ("README.md", "LICENSE.txt", "chat_template.jinja", "generation_config.json", "config.json"):
        (folder / file).write_text("{}")
    assert model_identity(folder).tokenizer == before.tokenizer


# --- settings that make a traceback, or take for ever


@pytest.mark.parametrize("name", ["return_dict", "use_cache"])
def test_the_form_of_a_models_answers_is_made_the_same(name, folder):
    expected = evaluate(load_model(folder)[0], random_ids(60), keep_ratio=0.5, prune_after=40).nll
    change(folder, **{name: False}, output_hidden_states=True, output_attentions=True)
    for method in ("onepass", "stepwise"):
        nll = evaluate(load_model(folder)[0], random_ids(60), keep_ratio=0.5, prune_after=40, method=method).nll
        assert torch.allclose(nll, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window=0"),
        ("mistral", {"sliding_window": -1}, "sliding_window=-1"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "no window to slide over"),
    ],
)
def test_a_window_that_cannot_be_is_refused(family, settings, named, tmp_path):
    folder = saved(tiny_model(family), tmp_path / "model")
    change(folder, **settings)
    assert_refused(folder, named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**7),
        ("num_labels", 10**9),
        ("num_attention_heads", 10**9),
        ("head_dim", 10**10),
        ("vocab_size", 10**12),
        ("hidden_size", 10**400),
    ],
)
def test_a_configuration_of_a_far_larger_model_is_refused(name, value, folder):
    change(folder, **{name: value})
    assert_refused(folder, f"{name}={str(value)[:40]}")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "/proc/self/pagemap", "nothing", "a hole of a terabyte"])
def test_a_file_without_an_end_is_refused(file, what, folder):
    (folder / file).unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(folder / file)
    elif what == "a hole of a terabyte":
        with (folder / file).open("wb") as hole:
            hole.truncate(1 << 40)
    else:
        (folder / file).symlink_to(what)
    assert_refused(folder, file)


@pytest.mark.parametrize("lacking", [["tokenizer.json"], list(tokenizer_files())])
def test_a_folder_without_a_tokenizer_is_refused(lacking, folder):
    for file in lacking:
        (folder / file).unlink()
    assert_refused(folder, "has no tokenizer (tokenizer.json, or the vocabulary that its class wants)")


def test_a_default_device_is_kept_out_of_the_model(folder):
    expected = load_model(folder)[0](random_ids(20)[None]).logits
    torch.set_default_device("meta")
    try:
        model, _ = load_model(folder)
    finally:
        torch.set_default_device(None)
    assert torch.equal(model(random_ids(20)[None]).logits, expected)
    again, _ = load_model(folder)  # what was taken back has left something behind in torch 2.6
    assert torch.equal(again(random_ids(20)[None]).logits, expected)
