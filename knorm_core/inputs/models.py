"""Models: the embedded one, a local folder, a GGUF file, or a hub id; safetensors only, and no code of theirs."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from knorm_core.counts import check_path
from knorm_core.default_device import cpu_by_default
from knorm_core.inputs import checkpoints, configuration, gguf, hub
from knorm_core.inputs.checkpoints import ModelNotFoundError as ModelNotFoundError
from knorm_core.inputs.digests import digest_of
from knorm_core.inputs.embedded_model import EMBEDDED as EMBEDDED
from knorm_core.inputs.embedded_model import convert_embedded, embedded_folder
from knorm_core.inputs.garbage import no_garbage_collection
from knorm_core.inputs.tensors import check_tensors
from knorm_core.inputs.tokenizers import SUFFIXES, load_tokenizer, tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float64", "float32", "bfloat16", "float16")


class ModelIdentity(NamedTuple):
    """What decides a model's numbers, by SHA-256.

    ``weights`` is that of a GGUF file where the model came as one. ``config`` is then "", and so it is for the
    embedded model: both configurations come from the file, and are checked when it is loaded.
    """

    weights: str
    tokenizer: str
    config: str


@no_garbage_collection()  # what transformers' imports make stays, and would be gone through again and again
def load_model(
    name: str | os.PathLike[str] = EMBEDDED, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2-135m" (embedded), a local folder with safetensors, a GGUF file, or a hub id.
        dtype: torch.float64, float32, bfloat16 or float16.
        device: where the weights go, such as "cpu" or "cuda".

    Raises:
        ModelNotFoundError: (a ValueError) no such model, no safetensors in it, a wrong checksum, weights that are
            not those of its configuration, or files that make transformers load others than those that were checked.
        ValueError: there is no such device here.
    """
    check_device(device)
    with ThreadPoolExecutor(1) as pool:
        # Checking the weights' SHA-256 takes as long as importing part of transformers: do both at once.
        sought = pool.submit(model_folder, name)
        if name != EMBEDDED or not os.path.exists(embedded_folder()):
            sought.result()  # two threads must not import huggingface_hub or transformers at once
        from transformers import AutoModelForCausalLM

        folder = sought.result()
        with cpu_by_default():
            try:
                model, loading = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            except Exception as error:  # whatever transformers makes of files that do not fit together
                reason = " ".join(str(error).split())[:300]
                raise ModelNotFoundError(
                    f"the model in {folder} cannot be loaded ({type(error).__name__}: {reason})"
                ) from error
            what = f"model folder {folder}"
            stored = checkpoints.stored_tensors(
                folder, checkpoints.weight_files(folder, os.listdir(folder), what), what
            )
            copied = pool.submit(_copy_weights, model, in_double=any(each.dtype == "F64" for each in stored.values()))
            tokenizer = load_tokenizer(folder)
            copied.result()
            configuration.check_extra_files(model.config, folder, what)
            check_tensors(model, loading, stored, folder)
            configuration.check_windows(model.config, what)
    configuration.neutralise(model.config)
    return model.to(device).eval(), tokenizer


def _copy_weights(model: PreTrainedModel, *, in_double: bool) -> None:
    """Copy what lies in a memory-mapped file: its pages are dropped and read again, by then perhaps with other numbers.

    Args:
        in_double: whether the file holds any tensor in float64; else those are copies already.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if in_double or tensor.dtype != torch.float64:
            tensor.data = tensor.data.clone()


def check_device(device: str) -> None:
    """Raise a ValueError where torch cannot put a tensor on ``device``, or keeps no numbers there."""
    try:
        where = torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if where.is_meta:
        raise ValueError(f"device={device!r} cannot be used here: tensors there have no numbers")


def model_folder(name: str | os.PathLike[str]) -> Path:
    """The local folder with a model's safetensors, converting or downloading it where needed."""
    check_model_name(name)
    if name == EMBEDDED:
        return convert_embedded()
    path = Path(os.path.expanduser(name))  # Path's own raises for an unknown ~user
    if is_gguf(name):
        return gguf.convert(path)
    return path if os.path.isdir(path) else _from_hub(str(name))


def is_gguf(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a GGUF file, which is there."""
    path = os.path.expanduser(name)
    return os.fspath(path).endswith(gguf.SUFFIX) and os.path.exists(path) and not os.path.isdir(path)


def check_model_name(name: str | os.PathLike[str]) -> None:
    """Raise a ModelNotFoundError where ``name`` cannot be a model, as far as can be told without a network.

    Raises:
        TypeError: it is no name and no path.
    """
    check_path("name", name)
    if name == EMBEDDED:
        return
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        configuration.check_folder(path, f"model folder {path}")
    elif is_gguf(name):
        gguf.check_name(path)
    elif not _is_hub_id(str(name)):
        raise ModelNotFoundError(
            f"unknown model '{hub.shortened(name)}': not {EMBEDDED!r}, not a hub id (owner/name), "
            f"and there is no folder at {hub.shortened(path.absolute())}, nor a GGUF file"
        )


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with contextlib.suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name and name.isascii()
    return False


def _from_hub(name: str) -> Path:
    what = f"model {name!r}"
    try:
        if name in hub.PINNED:
            folder = hub.pinned(name)
        else:
            commit, files = hub.contents(name)
            checkpoints.check_format(files, what)
            hub.fetch(name, "model", "main", [checkpoints.CONFIG])  # so that the cache knows which commit main is
            folder = hub.fetch(name, "model", commit, [f for f in files if "/" not in f and f.endswith(SUFFIXES)])
            configuration.check_no_other_files(folder, what)
            hub.fetch(name, "model", commit, checkpoints.weight_files(folder, files, what))
    except hub.HubError as error:
        raise ModelNotFoundError(str(error)) from error
    configuration.check_folder(folder, what)
    return folder


def model_identity(name: str | os.PathLike[str], folder: Path | None = None) -> ModelIdentity:
    """SHA-256 of what decides a model's numbers.

    Args:
        name: as for `load_model`.
        folder: what `model_folder` said; to be loaded too, since a hub's name may come to mean another model.
    """
    folder = folder or model_folder(name)
    tokenizer = tokenizer_digest(folder)
    if is_gguf(name):
        return ModelIdentity(gguf.identity(folder), tokenizer, "")
    files = {path.name for path in folder.iterdir()}
    weights = [folder / file for file in checkpoints.weight_files(folder, files, f"model folder {folder}")]
    config = "" if name == EMBEDDED else configuration.config_digest(folder)
    return ModelIdentity(digest_of(weights), tokenizer, config)
