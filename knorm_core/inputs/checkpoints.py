"""What a model's folder or repository must hold to be loaded: a configuration, safetensors, and no code.

Pickled weights run code when they are read, and a configuration with ``auto_map`` asks for code that lies
beside it: both are refused, by the names of the files and before any weights are downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

CONFIG = "config.json"
# Weights in one file, or in several that an index names.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# Of a configuration: where it came from, who wrote it, and the precision that it was stored in.
_INDECISIVE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".gguf", ".safetensors")


class ModelNotFoundError(ValueError):
    """The model that was named is not there, or not in a form that is loaded; the message says where it was sought."""


def check_folder(folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError unless everything is in the folder; ``what`` is its name in the message."""
    files = {path.name for path in folder.iterdir()}
    check_format(files, what)
    check_no_code(folder, what)
    _check_whole(folder, weight_files(folder, files, what), what)


def check_format(files: Collection[str], what: str) -> None:
    """Raise a ModelNotFoundError unless a configuration and safetensors are among these file names."""
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


def check_no_code(folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError where the configuration of model or tokenizer asks for code (``auto_map``)."""
    for file in (CONFIG, "tokenizer_config.json"):
        if "auto_map" in _settings(folder / file, what):
            raise ModelNotFoundError(
                f"{what} asks for code of its own (auto_map in {file}), which is never run: choose a model that "
                f"transformers has the code for, or, if it has this one's, a local copy without auto_map"
            )


def weight_files(folder: Path, files: Collection[str], what: str) -> list[str]:
    """The names of the files with weights, which have to be among ``files``."""
    if SINGLE in files:
        return [SINGLE]
    weight_map = _settings(folder / INDEX, what).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelNotFoundError(f"{what} has an {INDEX} without weight_map")
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if shard not in files]
    if missing:
        raise ModelNotFoundError(
            f"{what} lacks {len(missing)} of the {len(shards)} files that its {INDEX} names, such as {missing[0]!r}"
        )
    return shards


def config_digest(folder: Path) -> str:
    """SHA-256 of the settings in a folder's configuration that decide numbers, in whatever order and form."""
    settings = _settings(folder / CONFIG, f"model folder {folder}")
    decisive = {name: value for name, value in settings.items() if name not in _INDECISIVE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _check_whole(folder: Path, weights: list[str], what: str) -> None:
    """Raise a ModelNotFoundError where a header does not describe exactly the bytes that follow it."""
    from safetensors import safe_open

    for file in weights:
        try:
            with safe_open(folder / file, framework="np"):
                pass
        except Exception as error:  # safetensors' own, and those of the file system
            raise ModelNotFoundError(f"{what} has a damaged {file} ({error})") from None


def _settings(path: Path, what: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, JSON of a thousand levels
        raise ModelNotFoundError(f"{what} has a damaged {path.name} ({error})") from None
    if not isinstance(settings, dict):
        raise ModelNotFoundError(f"{what} has a damaged {path.name} (no JSON object)")
    return settings
