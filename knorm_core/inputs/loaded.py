"""Models that are in memory, each known by what it was loaded from, so that a result is stored under no other name.

A model is shared by all that ask for the same name, identity, precision, device and product of matrices while somebody
holds it. One that was changed after it was loaded (see `knorm_core.inputs.unchanged`) is not handed out again.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from knorm_core.inputs.checkpoints import ModelNotFoundError, files_as_they_are
from knorm_core.inputs.models import ModelIdentity, load_model, model_folder, model_identity
from knorm_core.inputs.onednn import multiply_with_onednn
from knorm_core.inputs.unchanged import numbers, parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """A model, its tokenizer, and the SHA-256 of the files that both were loaded from."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity


@dataclass(frozen=True)
class _Source:
    key: tuple[str, str, str, bool]  # name, dtype, device, onednn
    identity: ModelIdentity
    tokenizer: PreTrainedTokenizerBase
    parts: tuple[Any, ...]
    numbers: str


_sources: weakref.WeakKeyDictionary[nn.Module, _Source] = weakref.WeakKeyDictionary()


def loaded(
    name: str,
    dtype: str = "float64",
    device: str = "cpu",
    identity: ModelIdentity | None = None,
    *,
    onednn: bool = False,
) -> Loaded:
    """The model of that name, from memory where it is there.

    Args:
        name: as for `load_model`.
        dtype: torch's name of it.
        device: of torch.
        identity: what the model should be, where that is known: a model in memory that is the same is then taken
            without a look at its files. Otherwise the files decide, so that the answer's identity may be another.
        onednn: a model whose linear layers multiply with oneDNN where they can: `multiply_with_onednn`.

    Raises:
        ModelNotFoundError, ValueError: as `load_model`; or its files were changed while they were read.
    """
    key = (name, dtype, device, onednn)
    if identity is not None and (known := _in_memory(key, identity)):
        return known
    folder = model_folder(name)  # once: a hub's name may come to mean another model
    before = files_as_they_are(folder)
    here = model_identity(name, folder)
    if known := _in_memory(key, here):
        return known
    model, tokenizer = load_model(folder, getattr(torch, dtype), device)
    if files_as_they_are(folder) != before:  # what was loaded may not be what was hashed
        raise ModelNotFoundError(f"the files of the model in {folder} changed while they were read: run again")
    if onednn:
        multiply_with_onednn(model)
    _sources[model] = _Source(key, here, tokenizer, parts(model), numbers(model))
    return Loaded(model, tokenizer, here)


def is_as_loaded(model: nn.Module) -> bool:
    """Whether a model that `loaded` gave was not changed since, as far as can be told in milliseconds."""
    source = _sources.get(model)
    return source is not None and source.parts == parts(model)


def _in_memory(key: tuple[str, str, str, bool], identity: ModelIdentity) -> Loaded | None:
    for model, source in list(_sources.items()):
        same = (source.key, source.identity) == (key, identity)
        if same and source.parts == parts(model) and source.numbers == numbers(model):
            return Loaded(model, source.tokenizer, source.identity)
    return None
