r"""The tokenizer of a GGUF file, in the form of the tokenizers library.

A GGUF file holds vocabulary and merges, and only the name of its pre-tokenizer: how a text is split before
merges apply. A wrong one still gives plausible ids, so a name that is not known here is refused. The same
file gives the same bytes with every version of transformers and tokenizers.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from knorm_core.inputs.checkpoints import ModelNotFoundError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are never split or merged


class _ByteLevel(NamedTuple):
    """What a byte-level vocabulary does before its merges, and two settings that go with it."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    whole_words: bool = False  # a word that is in the vocabulary is taken whole, whatever the merges say
    begins_with_bos: bool = False  # where the file does not say


def _bytes(expression: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": expression}


def _split(expression: str) -> tuple[dict[str, Any], ...]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return (split, _bytes(False))


def _words(digits: str) -> str:
    contractions, letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{contractions}|{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_LLAMA3 = _ByteLevel(_split(_words(r"\p{N}{1,3}")), whole_words=True, begins_with_bos=True)
_BYTE_LEVEL = {
    "gpt-2": _ByteLevel((_bytes(True),)),
    "smollm": _ByteLevel(({"type": "Digits", "individual_digits": True}, _bytes(True))),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _ByteLevel(_split(_words(r"\p{N}")), normalizer={"type": "NFC"}),
}
_GEMMA = ("gemma", "gemma2", "gemma3")  # whose SentencePiece vocabulary is in the order of its merges


def convert_tokenizer(header: dict[str, Any], what: str) -> tuple[bytes, dict[str, Any]]:
    """The content of tokenizer.json, and the settings for tokenizer_config.json.

    Args:
        header: of a GGUF file, as `read_header` gives it.
        what: the file's name for messages.

    Raises:
        ModelNotFoundError: the pre-tokenizer is not reproduced here, or the vocabulary is damaged.
    """
    kind, split = header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre")
    architecture = header.get("general.architecture")
    if kind == "gpt2" and split in _BYTE_LEVEL:
        make, bos = _byte_level, _BYTE_LEVEL[split].begins_with_bos
    elif kind == "llama" and architecture in _GEMMA:
        make, bos = _gemma, True
    else:
        named = f"pre-tokenizer {split!r}" if split else "no pre-tokenizer"
        raise ModelNotFoundError(
            f"{what} names {named} for its tokenizer {kind!r}, architecture {architecture!r}, which is not reproduced: "
            f"{', '.join(_BYTE_LEVEL)} are, and the tokenizer of {', '.join(_GEMMA)}; save model and tokenizer with "
            f"save_pretrained instead"
        )
    try:
        tokens: list[str] = [str(token) for token in header["tokenizer.ggml.tokens"]]
        special = {
            name: tokens[header[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if f"tokenizer.ggml.{key}_token_id" in header
        }
        add_bos = bool(header.get("tokenizer.ggml.add_bos_token", bos))
        parts = make(tokens, header)
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(tokens, header["tokenizer.ggml.token_type"], parts["model"]["vocab"]),
            **parts,
            "post_processor": _beginning(tokens, special["bos"]) if add_bos else None,
        }
    except (LookupError, TypeError, ValueError) as error:
        raise ModelNotFoundError(f"{what} has a damaged vocabulary ({type(error).__name__}: {error})") from None
    settings = {f"{name}_token": token for name, token in special.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape"), settings


def _byte_level(tokens: list[str], header: dict[str, Any]) -> dict[str, Any]:
    split = _BYTE_LEVEL[header["tokenizer.ggml.pre"]]
    merges = [merge.split(" ") for merge in header["tokenizer.ggml.merges"]]
    return {
        "normalizer": split.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(split.steps)},
        "decoder": _bytes(True),
        "model": _pairs(_vocabulary(tokens), merges, ignore_merges=split.whole_words),
    }


def _gemma(tokens: list[str], header: dict[str, Any]) -> dict[str, Any]:
    # Runs of spaces are spelled as spaces, and looked up as the marks that the normalizer puts in their place.
    vocabulary = _vocabulary(["▁" * len(token) if token and not token.strip(" ") else token for token in tokens])
    merges = [
        (place, -cut, token[:cut], token[cut:])
        for token, place in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    unknown = tokens[header["tokenizer.ggml.unknown_token_id"]]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _pairs(
            vocabulary,
            [[left, right] for _, _, left, right in sorted(merges)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _pairs(vocabulary: dict[str, int], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    """A byte-pair encoding."""
    defaults = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**defaults, **settings, "vocab": vocabulary, "merges": merges}


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a token twice")
    return vocabulary


def _added(tokens: list[str], types: list[int], vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    # A token that is spelled otherwise in the vocabulary, Gemma's runs of spaces, is one that merges make.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind == _CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token in vocabulary
    ]


def _beginning(tokens: list[str], bos: str) -> dict[str, Any]:
    mark, first, second = ({"SpecialToken": {"id": bos, "type_id": 0}}, *_sequences())
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }


def _sequences() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
