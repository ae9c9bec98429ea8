"""A model's configuration: what in it is refused, what is made the same for every model, and its identity."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knorm_core.inputs.checkpoints import (
    CONFIG,
    ModelNotFoundError,
    check_format,
    check_regular,
    settings_of,
    stored_tensors,
    weight_files,
)
from knorm_core.inputs.gguf_tokenizers import TOKENIZER_CONFIG

# Of a configuration: where it came from, who wrote it, and the precision that it was stored in.
_INDECISIVE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}

# What calls itself attention of transformers' own; another name is a package or a repository with a kernel.
_OWN_IMPLEMENTATIONS = {None, "eager", "sdpa", "batched_mm", "grouped_mm", True, False}
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation.*")

# Settings that make as many modules or labels as they say, and the most of each beyond the number of tensors.
_COUNTS = (
    (re.compile(".*(layer|block|depth|stage|hop)s?.*"), 1_000),
    (re.compile(".*(expert|head|label|group).*"), 100_000),
)
_SIZES = re.compile(".*(size|dim|width|rank|channels)")
_LARGEST_SIZE = 1 << 24

_WINDOWS = ("sliding_window", "local_attention", "attention_window_size", "window_size")


def check_folder(folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError unless everything is in the folder; ``what`` is its name in the message."""
    try:
        files = set(os.listdir(folder))
    except OSError as error:
        raise ModelNotFoundError(f"{what} cannot be read ({error.strerror})") from None
    check_format(files, what)
    check_regular(folder, what)
    check_no_other_files(folder, what)
    tensors = stored_tensors(folder, weight_files(folder, files, what), what)
    check_size(folder, len(tensors), what)


def check_no_other_files(folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError where the configuration of model or tokenizer names code or files to be loaded."""
    for file in (CONFIG, TOKENIZER_CONFIG):
        for name, value in _settings(settings_of(folder / file, what)):
            if name == "auto_map":
                raise ModelNotFoundError(
                    f"{what} asks for code of its own (auto_map in {file}), which is never run: choose a model that "
                    f"transformers has the code for, or, if it has this one's, a local copy without auto_map"
                )
            if file == CONFIG:
                _check_setting(name, value, what)
            elif name.endswith("_file") and isinstance(value, str) and os.path.exists(value):
                raise ModelNotFoundError(
                    f"{what} has {name}={value!r} in {file}, which some versions of transformers open in the place of "
                    f"the tokenizer's own file: remove that setting"
                )


def check_extra_files(config: Any, folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError where the folder holds further weights that the model's class loads beside its own."""
    further = [file for file in getattr(type(config), "extra_files", ()) if (folder / file).exists()]
    if further:
        raise ModelNotFoundError(
            f"{what} has {further[0]}, which {type(config).__name__} loads beside the model's own weights: remove it"
        )


def _check_setting(name: str, value: Any, what: str) -> None:
    if name == "transformers_weights" and value is not None:
        raise ModelNotFoundError(
            f"{what} has transformers_weights={value!r} in {CONFIG}, which makes transformers load another file than "
            f"model.safetensors: remove it, or give that file's weights the usual name"
        )
    if name == "configuration_files":
        raise ModelNotFoundError(
            f"{what} has configuration_files={str(value)[:80]} in {CONFIG}: versions of transformers read "
            f"others of them in the place of {CONFIG}; remove that setting"
        )
    if name in ("quantization_config", "compression_config") and value is not None:
        method = value.get("quant_method") if isinstance(value, dict) else value
        raise ModelNotFoundError(
            f"{what} is quantised ({name} in {CONFIG}, method {str(method)[:40]!r}), and what its weights mean depends "
            f"on other packages: name a copy that is not quantised, or a GGUF file"
        )
    if _IMPLEMENTATION.fullmatch(name):
        for named in value.values() if isinstance(value, dict) else (value,):
            if not isinstance(named, str | bool | None) or named not in _OWN_IMPLEMENTATIONS:
                raise ModelNotFoundError(
                    f"{what} has {name}={str(named)[:80]!r} in {CONFIG}, which may load a kernel from elsewhere: "
                    f"remove it, or name 'eager' or 'sdpa'"
                )


def check_size(folder: Path, tensors: int, what: str) -> None:
    """Raise a ModelNotFoundError where the configuration describes a far larger model than its ``tensors`` can be."""
    for name, value in _settings(settings_of(folder / CONFIG, what)):
        if isinstance(value, bool) or not isinstance(value, int) or name.endswith("_id"):
            continue
        most = next((max(tensors, beyond) for form, beyond in _COUNTS if form.fullmatch(name)), None)
        if most is None and _SIZES.fullmatch(name):
            most = _LARGEST_SIZE
        if most is not None and value > most:
            raise ModelNotFoundError(
                f"{what} has {name}={str(value)[:40]} in {CONFIG} and {tensors} tensors: its weights are not those of "
                f"its configuration"
            )


def neutralise(config: Any) -> None:
    """Set what changes the form of a model's answers and no number: a tuple in place of names, further outputs."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.return_dict = True
        part.output_hidden_states = False
        if getattr(part, "output_attentions", False):
            part.output_attentions = False


def check_windows(config: Any, what: str) -> None:
    """Raise a ModelNotFoundError where layers slide over a window that is nothing, or that nobody names."""
    text = config.get_text_config()
    windows = {name: getattr(text, name, None) for name in _WINDOWS}
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) and not any(windows.values()):
        raise ModelNotFoundError(
            f"{what} has layers of sliding_attention in {CONFIG}, and no window to slide over: name sliding_window "
            f"there, or remove layer_types"
        )
    window = windows["sliding_window"]
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ModelNotFoundError(
            f"{what} has sliding_window={window!r} in {CONFIG}: it must be 1 or more tokens, or null for no window"
        )


def config_digest(folder: Path) -> str:
    """SHA-256 of the settings in a folder's configuration that decide numbers, in whatever order and form."""
    settings = settings_of(folder / CONFIG, f"model folder {folder}")
    decisive = {name: value for name, value in settings.items() if name not in _INDECISIVE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every setting, those of configurations within the configuration too."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield from part.items()
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
