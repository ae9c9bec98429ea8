"""Models in a GGUF file: de-quantised once, into the user's cache folder, with the tokenizer that the file names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from knorm_core.inputs import cache
from knorm_core.inputs.checkpoints import CONFIG, SINGLE, ModelNotFoundError, check_regular
from knorm_core.inputs.digests import digest_of, file_digest, is_regular
from knorm_core.inputs.gguf_header import read_header
from knorm_core.inputs.gguf_tokenizers import TOKENIZER, TOKENIZER_CONFIG, convert_tokenizer

SUFFIX = ".gguf"
#: names the GGUF file that a folder was made from, and the SHA-256 of the files in it
CONVERSION = "conversion.json"


def convert(source: Path) -> Path:
    """Convert a GGUF file where that was not done yet; return the folder with safetensors and tokenizer.

    Raises:
        ModelNotFoundError: transformers cannot read the file, or its pre-tokenizer is not known.
    """
    digest = digest_of([source])
    # A later version of transformers may read the same file in another way.
    version = importlib.metadata.version("transformers")
    name = re.sub(r"[^\w.-]+", "-", source.stem)[:60]
    folder = cache.cache_folder() / f"{name}-{digest[:16]}-transformers{version}"
    cache.made_once(folder, lambda unfinished: _convert(source, digest, unfinished), f"the model of {source}")
    try:
        made = json.loads((folder / CONVERSION).read_bytes())
        files = {str(file): str(expected) for file, expected in made["files"].items() if made["gguf"] == digest}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        files = {}  # so that all that is there is refused
    check_files(folder, files, "the converted", (CONVERSION,))
    return folder


def check_files(folder: Path, expected: Mapping[str, str], which: str, others: tuple[str, ...] = ()) -> None:
    """Raise a ModelNotFoundError unless the folder holds files of these SHA-256, perhaps ``others``, and no more."""
    again = "delete the folder and run again"
    try:
        names = set(os.listdir(folder))
    except OSError as error:  # a file in its place, or no permission
        raise ModelNotFoundError(f"{folder} cannot be read ({error.strerror}): {again}") from None
    if foreign := sorted(names - expected.keys() - set(others)):
        raise ModelNotFoundError(f"{folder} holds {foreign[0]!r}, which does not belong there: {again}")
    try:
        check_regular(folder, str(folder))  # before any is read: it may have no end
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}: {again}") from None
    for name, pinned in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelNotFoundError(f"{path} is not there, or is no file: {again}")
        if (digest := digest_of([path])) != pinned:
            raise ModelNotFoundError(f"{path} has SHA-256 {digest}, not {which} {pinned}: {again}")


def check_name(path: Path) -> None:
    """Raise a ModelNotFoundError unless the path leads to a regular file."""
    if not is_regular(path.stat()):
        raise ModelNotFoundError(f"model {path} is no regular file")


def identity(folder: Path) -> str:
    """SHA-256 of the GGUF file that a folder, which `convert` has checked, was made from."""
    return str(json.loads((folder / CONVERSION).read_bytes())["gguf"])


def write_model(source: Path, folder: Path) -> None:
    """Write the de-quantised weights in float32, the configuration, and the tokenizer, into an empty folder."""
    tokenizer, settings = convert_tokenizer(read_header(source), str(source))
    try:
        _write_weights(source, folder)
    except MemoryError:
        raise
    except Exception as error:  # whatever transformers makes of a file that it cannot read
        if (isinstance(error, OSError) and error.errno is not None) or type(error).__name__ == "SafetensorError":
            raise  # about what is written
        reason = " ".join(str(error).split())[:300]
        raise ModelNotFoundError(
            f"{source} cannot be read by transformers ({type(error).__name__}: {reason})"
        ) from error
    (folder / TOKENIZER).write_bytes(tokenizer)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _convert(source: Path, digest: str, folder: Path) -> None:
    write_model(source, folder)
    if digest_of([source]) != digest:
        raise ModelNotFoundError(f"{source} changed while it was converted: run again")
    files = {path.name: file_digest(path).hex() for path in sorted(folder.iterdir())}
    (folder / CONVERSION).write_text(json.dumps({"gguf": digest, "files": files}, indent=2) + "\n")


def _write_weights(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    read, loading = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys"):
        if keys := sorted(loading[kind]):
            raise ValueError(f"{kind.replace('_', ' ')}, such as {keys[0]!r}")
    config = read.config
    with contextlib.suppress(AttributeError):
        del config.quantization_config
    # A model loaded from GGUF refuses to be saved; one built afresh from the same weights does not.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder, max_shard_size="1TB")
    for path in folder.iterdir():
        if path.name not in (SINGLE, CONFIG):  # generation's settings
            path.unlink()
