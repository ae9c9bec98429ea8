"""What a model's folder or repository must hold to be loaded: a configuration, safetensors, and nothing that runs.

Pickled weights run code when they are read, and some files make transformers load others than the ones that
are hashed. All of them are refused, by the names of the files and before any weights are downloaded.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from knorm_core.inputs.digests import is_regular

CONFIG = "config.json"
# Weights in one file, or in several that an index names.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".gguf", ".safetensors")
_ADAPTER = re.compile(r"adapter_(config\.json|model\..*)")  # PEFT's, which transformers applies where peft is installed
_DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")  # which transformers takes in the place of SINGLE

# Bytes. Real configurations have a few thousand, real indices up to ten million.
_LARGEST = {CONFIG: 1 << 22, INDEX: 1 << 25}
_LARGEST_TEXT = 1 << 28
_TEXTS = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken")


class ModelNotFoundError(ValueError):
    """The named model is missing, or in a form that is not loaded. The message says where it was sought."""


class StoredTensor(NamedTuple):
    """A tensor in a file: the file, the dtype by safetensors' name, and the shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def check_format(files: Collection[str], what: str) -> None:
    """Raise a ModelNotFoundError unless these file names are those of a whole model in safetensors, and of it alone."""
    if SINGLE not in files and INDEX not in files:
        pickled = sorted(file for file in files if file.endswith(_PICKLED))
        others = sorted(file for file in files if file.endswith(_OTHER_WEIGHTS))
        if pickled:
            raise ModelNotFoundError(
                f"{what} has no {SINGLE}, only {pickled[0]}: pickled weights can run code and are never loaded; "
                f"where you trust them, save them again with save_pretrained"
            )
        raise ModelNotFoundError(
            f"{what} has no {SINGLE}{f', only {others[0]}' if others else ''}: save_pretrained of a whole model writes "
            f"one"
        )
    if CONFIG not in files:
        raise ModelNotFoundError(f"{what} has no {CONFIG}, so it is no model of transformers")
    for file in sorted(files):
        if _ADAPTER.fullmatch(file):
            raise ModelNotFoundError(
                f"{what} has {file}: an adapter is applied where peft is installed and left out elsewhere; merge it "
                f"(merge_and_unload), save the merged model, or remove the adapter's files"
            )
        if _DISTRIBUTED.fullmatch(file):
            raise ModelNotFoundError(
                f"{what} has {file}, which some versions of transformers load in the place of {SINGLE}: remove one"
            )


def weight_files(folder: Path, files: Collection[str], what: str) -> list[str]:
    """The names of the files with weights, which have to be among ``files``."""
    if SINGLE in files:
        return [SINGLE]
    index = settings_of(folder / INDEX, what)
    if not isinstance(index.get("weight_map"), dict):
        raise ModelNotFoundError(f"{what} has an {INDEX} without weight_map")
    if not index["weight_map"]:
        raise ModelNotFoundError(f"{what} has an {INDEX} that names no weights")
    shards = sorted({str(shard) for shard in index["weight_map"].values()})
    others = [shard for shard in shards if not shard.endswith(".safetensors")]
    if others:
        raise ModelNotFoundError(
            f"{what} has an {INDEX} that names {others[0]!r}: weights are loaded from files named .safetensors alone"
        )
    missing = [shard for shard in shards if shard not in files]
    if missing:
        raise ModelNotFoundError(
            f"{what} lacks {len(missing)} of the {len(shards)} files that its {INDEX} names, such as {missing[0]!r}"
        )
    if not isinstance(index.get("metadata"), dict):
        raise ModelNotFoundError(f"{what} has an {INDEX} without metadata")
    return shards


def stored_tensors(folder: Path, weights: list[str], what: str) -> dict[str, StoredTensor]:
    """Every tensor in these files, by name.

    Raises:
        ModelNotFoundError: a header does not describe exactly the bytes that follow it, or two files have a tensor.
    """
    from safetensors import safe_open

    tensors: dict[str, StoredTensor] = {}
    for file in weights:
        try:
            with safe_open(folder / file, framework="np") as content:
                names = list(content.keys())
                slices = [content.get_slice(name) for name in names]
                read = {
                    n: StoredTensor(file, s.get_dtype(), tuple(s.get_shape()))
                    for n, s in zip(names, slices, strict=True)
                }
        except Exception as error:  # safetensors' own, and those of the file system
            raise ModelNotFoundError(f"{what} has a damaged {file} ({error})") from None
        if twice := sorted(read.keys() & tensors.keys()):
            raise ModelNotFoundError(f"{what} has {twice[0]!r} twice, in {tensors[twice[0]].file} and in {file}")
        tensors.update(read)
    return tensors


def settings_of(path: Path, what: str) -> dict[str, Any]:
    """The settings in a JSON file, none where there is no file."""
    try:
        size = path.stat().st_size
    except OSError:
        return {}
    try:
        if size > (most := _LARGEST.get(path.name, _LARGEST[INDEX])):
            raise ValueError(f"{size} bytes, more than {most}")
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, JSON of a thousand levels
        raise ModelNotFoundError(f"{what} has a damaged {path.name} ({error})") from None
    if not isinstance(settings, dict):
        raise ModelNotFoundError(f"{what} has a damaged {path.name} (no JSON object)")
    return settings


def check_regular(folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError for what is no regular file (reading a pipe may never end) or is far too large."""
    for path in sorted(folder.iterdir()):
        try:
            status = path.stat()
        except OSError as error:
            raise ModelNotFoundError(f"{what} has {path.name!r}, which cannot be read ({error.strerror})") from None
        if stat.S_ISDIR(status.st_mode):
            if path.name in (CONFIG, SINGLE, INDEX):
                raise ModelNotFoundError(f"{what} has a folder in the place of {path.name}")
        elif not is_regular(status):
            raise ModelNotFoundError(f"{what} has {path.name!r}, which is no regular file")
        elif path.name.endswith(_TEXTS) and status.st_size > _LARGEST_TEXT:
            raise ModelNotFoundError(f"{what} has {path.name!r} of {status.st_size} bytes, more than {_LARGEST_TEXT}")


def files_as_they_are(folder: Path) -> list[tuple[str | int, ...]]:
    """What tells a folder's files from others of the same names: a file that is written to gets another ctime."""
    files: list[tuple[str | int, ...]] = []
    for path in sorted(folder.iterdir()):
        status = path.stat()
        files.append((path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return files
