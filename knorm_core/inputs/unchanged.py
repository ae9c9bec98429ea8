"""Whether a model in memory is still what was loaded: its numbers, its modules, its hooks and their settings.

Whoever holds a model can change it: with an optimiser, ``.data``, a NumPy view, a hook, an attribute. What it then
computes is not what its files say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of a module: what it is made of, which is looked at by itself, and what an evaluation makes the same for every model.
_NOT_SETTINGS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training", "_backward_hooks"}
_NOT_CONFIGURATION = {"_attn_implementation", "attn_implementation", "output_hidden_states", "output_attentions"}


def parts(model: nn.Module) -> tuple[Any, ...]:
    """What changes with a module, a tensor, a hook or a setting that is written to, replaced, converted or added.

    It takes milliseconds, and misses numbers that are written past torch (``.data``, NumPy): those `numbers` sees.
    """
    return (
        *(_tensor(name, tensor) for name, tensor in _tensors(model)),
        *(_module(name, module) for name, module in model.named_modules()),
        _configuration(getattr(model, "config", None)),
    )


def numbers(model: nn.Module) -> str:
    """SHA-256 of sums, in integers, over both axes of every parameter and buffer: a fifth of a second per GB.

    A row or a column that changed shows, and so do rows or columns that were exchanged.
    """
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in _tensors(model):
            digest.update(name.encode(errors="surrogateescape"))
            if tensor.is_meta or not tensor.numel():
                continue
            whole = tensor.detach().contiguous()
            table = whole.view(_INTEGERS[whole.element_size()] if not whole.is_complex() else torch.int64)
            if table.ndim < 2:
                axes = [table]
            else:
                table = table.reshape(table.shape[0], -1)
                axes = [table.sum(0, dtype=torch.int64), table.sum(1, dtype=torch.int64)]
            for each in axes:
                digest.update(each.cpu().numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _tensor(name: str, tensor: torch.Tensor) -> tuple[Any, ...]:
    # Of a tensor that was made in inference mode torch counts no versions.
    version = -1 if tensor.is_inference() else tensor._version
    return name, tensor.data_ptr(), version, tensor.dtype, tensor.device, tensor.shape


def _module(name: str, module: nn.Module) -> tuple[Any, ...]:
    settings = tuple((key, _setting(value)) for key, value in vars(module).items() if key not in _NOT_SETTINGS)
    return name, id(module), type(module), settings


def _setting(value: Any) -> Any:
    """A value that is compared by itself where it is plain, and by what it is elsewhere."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, repr(value)
    if isinstance(value, torch.Tensor):
        return _tensor("", value)
    if isinstance(value, dict):  # hooks among them
        return tuple((repr(key), id(each)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_setting, value))
    return id(value)


def _configuration(config: Any) -> str:
    if config is None or not hasattr(config, "to_dict"):
        return ""
    settings = {name: value for name, value in config.to_dict().items() if name not in _NOT_CONFIGURATION}
    return json.dumps(settings, sort_keys=True, default=str)
