"""A folder's tokenizer: the files that decide ids, their identity, and the tokenizer itself."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from knorm_core.inputs.checkpoints import CONFIG, ModelNotFoundError, settings_of
from knorm_core.inputs.digests import file_digest
from knorm_core.inputs.gguf_tokenizers import TOKENIZER_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: how the names of files end that a tokenizer is read from
SUFFIXES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".codes", ".vocab", ".tokenizer")
# Each tokenizer class reads files of its own, so what is listed is what none of them reads.
_OTHERS = re.compile(
    r"(config|generation_config|(pre)?processor_config|video_preprocessor_config|chat_template|conversion|trainer_state|"
    r"(all|train|eval)_results|.*\.index)\.json|(README|LICEN[CS]E|NOTICE|USE_POLICY|requirements).*\.txt",
    re.IGNORECASE,
)
_NO_VOCABULARY = {TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}


def tokenizer_files(folder: Path) -> list[Path]:
    """Every file that may decide ids, sorted by name."""
    names = sorted(path.name for path in folder.iterdir())
    return [folder / name for name in names if name.endswith(SUFFIXES) and not _OTHERS.fullmatch(name)]


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files that may decide ids."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        digest.update(hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).digest() + file_digest(path))
    what = f"model folder {folder}"
    if "fix_mistral_regex" in settings_of(folder / TOKENIZER_CONFIG, what):  # which goes by the model's, too
        model = settings_of(folder / CONFIG, what)
        digest.update(repr([model.get(name) for name in ("model_type", "transformers_version")]).encode())
    return digest.hexdigest()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that `model_folder` gave.

    Raises:
        ModelNotFoundError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    lacking = {path.name for path in tokenizer_files(folder)} <= _NO_VOCABULARY
    without = (
        f"the model in {folder} has no tokenizer (tokenizer.json, or the vocabulary that its class wants): "
        f"save_pretrained of the tokenizer writes it"
    )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("norm", add_special_tokens=False).input_ids
    except Exception as error:  # whatever transformers makes of files that do not fit together
        reason = " ".join(str(error).split())[:300]
        raise ModelNotFoundError(
            without
            if lacking
            else f"the tokenizer of the model in {folder} cannot be loaded ({type(error).__name__}: {reason})"
        ) from error
    if not ids or (lacking and set(ids) <= {tokenizer.unk_token_id}):
        raise ModelNotFoundError(without)
    if drawn := _drawn_at_random(tokenizer):
        raise ModelNotFoundError(
            f"the tokenizer of the model in {folder} draws ids at random ({drawn}), so that a text has others each "
            f"time: remove that setting"
        )
    return tokenizer


def _drawn_at_random(tokenizer: PreTrainedTokenizerBase) -> str:
    """The setting, of training, by which ids are drawn at random; empty where they are not."""
    dropout = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None)
    if dropout:
        return f"dropout={dropout:g} in tokenizer.json"
    sampling = getattr(tokenizer, "sp_model_kwargs", None)
    return "enable_sampling in sp_model_kwargs" if sampling and sampling.get("enable_sampling") else ""


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer by itself puts the beginning-of-sequence token (BOS) before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("norm", verbose=False).input_ids[:1]) == [bos]
