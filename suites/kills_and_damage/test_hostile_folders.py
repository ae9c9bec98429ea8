"""Model folders that would have transformers load something else than what is hashed: refused, or it changes nothing.

Whatever loads gives the numbers of the folder as it was, or has another identity: no number under the wrong name.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knorm_core import ModelNotFoundError, load_model
from knorm_core.inputs.models import model_identity
from suites.families import random_ids, tiny_model
from suites.hub.content import tokenizer_files
from suites.kills_and_damage.hostile import assert_refused, few_and_many
from suites.kills_and_damage.mutations import refusal

pytestmark = pytest.mark.xdist_group("hostile")

WEIGHTS = "model.safetensors"
OTHER_FILES = ["other.safetensors", "adapter_model.bin", "pytorch_model.bin", "../model.safetensors", "/dev/zero"]
SETTINGS = {
    "transformers_weights": [*OTHER_FILES, 1, {}, []],
    "auto_map": [{}, {"AutoModelForCausalLM": "x--y.Z"}],
    "configuration_files": [["config.4.0.0.json"], [], "x"],
    "fusion_config": [{"patch_embeddings": True}, {"nonsense": True}, "x"],
    "num_nextn_predict_layers": [1, 3, 10**9],
    "attn_implementation": ["org/repo", "eager", "flash_attention_2", 7],
    "_attn_implementation": ["org/repo", "eager"],
    "quantization_config": [{"quant_method": "fp8"}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, 3],
    "num_hidden_layers": [0, -1, 4, 10**7, 10**30, "3", None],
    "num_labels": [10**9, -1],
    "id2label": [{}, {"0": "x"}],
    "vocab_size": [0, 3, 10**12],
    "hidden_size": [0, 33, 10**9],
    "num_attention_heads": [0, 3, 10**8],
    "max_position_embeddings": [0, -1, 10**15],
    "rope_theta": [0, -1.0, 1e300, "x"],
    "rms_norm_eps": [0.0, 1e10, "x"],
    "tie_word_embeddings": [True, "x"],
    "attention_bias": [True, "x"],
    "sliding_window": [0, -3, 20],
    "layer_types": [["sliding_attention"] * 3, ["full_attention"] * 3, [], "x"],
    "return_dict": [False],
    "dtype": ["float16", "nonsense", 3],
    "model_type": ["gpt_neox", "nonsense", "", 3],
    "architectures": [["GPTNeoXForCausalLM"], [], 3],
    "use_cache": [False],
    "pruned_heads": [{"0": [0]}],
}
FILES = [
    *OTHER_FILES[:3], "adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json",
    "modeling_llama.py", "configuration_llama.py", "generation_config.json", "quantize_config.json",
    "config.4.0.0.json", "shard-00000-model-00001-of-00001.safetensors", "quant_config.json", "head.safetensors",
    "model-00001-of-00002.safetensors", "pytorch_model.bin.index.json", "consolidated.safetensors",
    "preprocessor_config.json", "chat_template.jinja", "added_tokens.json", "special_tokens_map.json",
]  # fmt: skip
CONTENTS = ["empty", "{}", "[]", "adapter", "index", "weights", "pickle", "fifo", "zero", "folder", "circle"]
TENSORS = [
    "bias",
    "weight_scale",
    "SCB",
    "weight_scale_inv",
    "q_norm.weight",
    "rotary_emb.inv_freq",
    "weight2",
    "g_idx",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    tiny_model("llama").save_pretrained(folder)
    for file, body in tokenizer_files().items():
        (folder / file).write_bytes(body)
    return folder


@pytest.fixture(scope="module")
def logits(folder):
    return logits_of(folder)


def logits_of(folder):
    with torch.no_grad():
        return load_model(folder)[0](random_ids(40)[None]).logits


@pytest.fixture
def check(folder, logits, tmp_path):
    """``check(change)``: the folder is then refused in a sentence, is another model, or gives the same numbers."""
    before = model_identity(folder)

    def run(change):
        place = tmp_path / "copy"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        change(place)

        def load():
            if torch.equal(logits_of(place), logits) or model_identity(place) != before:
                return
            raise AssertionError("other numbers under the same identity")

        error = refusal(load)
        if error is not None:
            assert_refused(error, ModelNotFoundError)

    return run


@few_and_many
def test_a_setting_that_asks_for_something_else_changes_no_number_under_the_same_name(examples, check):
    pairs = st.sampled_from([(name, value) for name, values in SETTINGS.items() for value in values])

    @settings(max_examples=examples)
    @given(changes=st.lists(pairs, min_size=1, max_size=2))
    def run(changes):
        def change(place):
            config = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps(config | dict(changes)))

        check(change)

    run()


@few_and_many
def test_a_file_that_lies_beside_the_model_changes_no_number_under_the_same_name(examples, check):
    @settings(max_examples=examples)
    @given(files=st.dictionaries(st.sampled_from(FILES), st.sampled_from(CONTENTS), min_size=1, max_size=3))
    def run(files):
        check(lambda place: [put(place / name, content) for name, content in files.items()])

    run()


@few_and_many
def test_what_is_no_regular_file_in_the_place_of_one_is_refused(examples, check):
    names = st.sampled_from([WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"])
    contents = st.sampled_from(["fifo", "zero", "folder", "circle", "empty", "[]", "index", "pickle"])

    @settings(max_examples=examples)
    @given(files=st.dictionaries(names, contents, min_size=1, max_size=3))  # one name has too few contents for many
    def run(files):
        check(lambda place: [put(place / name, content) for name, content in files.items()])

    run()


@few_and_many
def test_tensors_without_a_place_or_of_another_kind_change_no_number_under_the_same_name(examples, check, folder):
    names = sorted(safetensors.torch.load_file(folder / WEIGHTS))

    @settings(max_examples=examples)
    @given(
        name=st.sampled_from(names),
        beside=st.sampled_from(["", *TENSORS]),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn]),
    )
    def run(name, beside, dtype):
        def change(place):
            state = safetensors.torch.load_file(place / WEIGHTS)
            target = f"{name.removesuffix('weight')}{beside}" if beside else name
            state[target] = state[name].to(dtype).clone()
            safetensors.torch.save_file(state, place / WEIGHTS, metadata={"format": "pt"})

        check(change)

    run()


def put(path, content):
    """Make what ``content`` names at a path, in the place of what is there."""
    path.unlink(missing_ok=True)
    match content:
        case "fifo":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "circle":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()
        case "weights":
            shutil.copy(path.parent / WEIGHTS, path)
        case _:
            path.write_bytes(
                {
                    "empty": b"",
                    "adapter": b'{"peft_type": "LORA", "r": 1, "base_model_name_or_path": "x"}',
                    "index": b'{"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}}',
                    "pickle": b"\x80\x04cos\nsystem\n(S'exit'\ntR.",
                }.get(content, content.encode())
            )
