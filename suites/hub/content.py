"""What the stand-in serves: the names, files, columns and shapes of the real thing, filled with our own.

A tiny random GPT-NeoX saved as Pythia is: half precision, the buffers of old transformers still in it, and a
configuration in the old words. A byte-level tokenizer as Pythia's, trained on the embedded texts. Wikitext
and PG-19 as Parquet files made from the embedded texts.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import knorm_core
from knorm_core.inputs.hub import PINNED
from suites.hub.stand_in import Repository, sha256

PYTHIA, WIKITEXT, PG19 = "EleutherAI/pythia-70m-deduped", "Salesforce/wikitext", "emozilla/pg19-test"
LAYERS, HEADS, WIDTH, VOCABULARY = 3, 4, 32, 800

_EMBEDDED = Path(knorm_core.__file__).parent / "inputs" / "embedded"
_END = "<|endoftext|>"


def repositories() -> dict[str, Repository]:
    """Stand-ins for what is pinned, by name, at the pinned commits."""
    return {
        PYTHIA: Repository("model", PINNED[PYTHIA].revision, dict(model_files())),
        WIKITEXT: Repository("dataset", PINNED[WIKITEXT].revision, _wikitext_files()),
        PG19: Repository("dataset", PINNED[PG19].revision, _pg19_files()),
    }


def pins(served: Mapping[str, Repository]) -> dict[str, dict[str, str]]:
    """The SHA-256 that the pinned files of the stand-ins have: {repository: {file: SHA-256}}."""
    return {name: {file: sha256(served[name].files[file]) for file in PINNED[name].sha256} for name in PINNED}


@functools.cache
def model_files() -> dict[str, bytes]:
    """A checkpoint with its tokenizer."""
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "config.json": _json(_config()),
        "model.safetensors": weights(_state()),
        "pytorch_model.bin": b"what would be a pickle",
        **tokenizer_files(),
    }


@functools.cache
def tokenizer_files() -> dict[str, bytes]:
    """A byte-level tokenizer of 800 tokens, in the files and words of Pythia's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END, "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(_EMBEDDED.glob("*.txt"))], trainer)
    special = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
    settings = {"add_prefix_space": False, **special, "tokenizer_class": "GPTNeoXTokenizer"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }


@functools.cache
def sharded_model_files() -> dict[str, bytes]:
    """The same checkpoint with its weights in two files and an index."""
    state = _state()
    names = sorted(state)
    shards = {f"model-0000{n + 1}-of-00002.safetensors": {name: state[name] for name in names[n::2]} for n in range(2)}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {name: shard for shard, part in shards.items() for name in part},
    }
    files = {shard: weights(part) for shard, part in shards.items()}
    whole = {name: body for name, body in model_files().items() if name != "model.safetensors"}
    return {**whole, **files, "model.safetensors.index.json": _json(index)}


def weights(state: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(dict(state), metadata={"format": "pt"})


def wikitext_rows() -> list[str]:
    """The embedded articles and short samples as Wikitext's rows: headings, paragraphs, and blank ones that are ''."""
    rows = []
    for path in sorted(_EMBEDDED.glob("article-*.txt")):
        title, *paragraphs = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows += ["", f" = {title.strip('= ')} = \n", "", *(f" {paragraph} \n" for paragraph in paragraphs)]
    shorts = [path.read_text(encoding="utf-8").strip() for path in sorted(_EMBEDDED.glob("short-*.txt"))]
    # Cut, so that some are within the range of tokens with the stand-in's small vocabulary, and some are not.
    return [*rows, "", *(f" {text[: 300 + 40 * index]} \n" for index, text in enumerate(shorts)), ""]


def books() -> dict[str, list[Any]]:
    """PG-19's columns."""
    text = (_EMBEDDED / "narrative.txt").read_text(encoding="utf-8")
    return {
        "short_book_title": ["A Narrative", "The Same from the Middle"],
        "publication_date": [1909, 1910],
        "url": ["http://www.gutenberg.org/ebooks/1", "http://www.gutenberg.org/ebooks/2"],
        "text": [text, text[len(text) // 2 :]],
    }


def _wikitext_files() -> dict[str, bytes]:
    splits = {"test": wikitext_rows(), "train": [" Train . \n"], "validation": [" Validation . \n"]}
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
        for name in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    )
    files = {"README.md": f"---\nconfigs:\n{configurations}---\n# Stand-in\n".encode()}
    for split, rows in splits.items():
        files[f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"] = _parquet({"text": rows})
        files[f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet"] = _parquet({"text": [" Not this one . \n"]})
    return files


def _pg19_files() -> dict[str, bytes]:
    [file] = PINNED[PG19].sha256
    return {"README.md": b"# Stand-in\n", file: _parquet(books())}


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    types = {"publication_date": pyarrow.int32()}
    arrays = {name: pyarrow.array(values, types.get(name)) for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), file)
    return file.getvalue()


def _config() -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": VOCABULARY,
    }


def _state() -> dict[str, torch.Tensor]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    arguments = {name: value for name, value in _config().items() if name not in ("architectures", "torch_dtype")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**arguments))
        for parameter in model.parameters():
            if parameter.ndim == 2:  # large, so that who is evicted shows in the loss
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    state = {name: parameter.detach().half().contiguous() for name, parameter in model.named_parameters()}
    for layer in range(LAYERS):
        # Buffers that transformers kept in checkpoints when Pythia was saved, the causal mask among them.
        attention = f"gpt_neox.layers.{layer}.attention"
        state[f"{attention}.bias"] = torch.ones(1, 1, 2048, 2048, dtype=torch.uint8).tril()
        state[f"{attention}.masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1, dtype=torch.float16)
    return state


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
