"""A tiny Llama with a byte-level tokenizer, as GGUF: what the embedded model comes as, in a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
from tokenizers import pre_tokenizers

LAYERS, HEADS, WIDTH, INNER = 2, 2, 16, 32


def write_gguf(path: Path, pre: str | None = "smollm", tokenizer: str = "gpt2", add_bos: bool | None = None) -> Path:
    """Write the file, the same bytes every time; its path.

    ``pre``, ``tokenizer`` and ``add_bos`` are what it says of its tokenizer: the name of the pre-tokenizer, the kind
    of vocabulary, and whether a text begins with BOS; None leaves the word out.
    """
    vocabulary = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "in"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model(tokenizer)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(vocabulary) - 1))
    writer.add_token_merges(["t h", "i n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    numbers = numpy.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", numbers.standard_normal(shape, dtype=numpy.float32))

    add("token_embd", len(vocabulary), WIDTH)
    add("output_norm", WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}", WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
