"""A stand-in for a GPU, where there is none: its tensors are the CPU's, and may not meet a tensor of the CPU.

It shows that everything is made on, or sent to, the device that it has to be on, and that numbers do not depend on
the device's name. It shows nothing of a GPU's own arithmetic, memory or speed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"

_aten = torch.ops.aten
_COPY = {_aten.copy_.default, _aten._copy_from.default, _aten._to_copy.default} | {
    getattr(_aten.to, overload) for overload in _aten.to.overloads()
}
# As on a GPU: its tensors can be indexed by tensors of the CPU, but not the other way round.
_INDEX = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
# What torch would otherwise make of operators that are not here, or calls below Python's tensors.
_OPERATORS = ("empty.memory_format", "empty_strided", "_copy_from", "arange", "arange.start", "arange.start_step")
_libraries: list[torch.library.Library] = []


class Elsewhere(torch.Tensor):
    """A tensor on the device, and in ``host`` what it consists of."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Elsewhere:
        with torch.inference_mode(False):  # else torch refuses to index what it made below Python's tensors
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                host.size(),
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=f"{NAME}:0",
            )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.host.tolist()


def install() -> None:
    """Make ``device="elsewhere"`` known to torch, for the rest of this process.

    Raises:
        ImportError: this torch cannot have a device in Python.
    """
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    # What torch.autocast asks of a device before it is switched on or off there.
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    for namespace in ("aten", "_"):
        _libraries.append(torch.library.Library(namespace, "IMPL"))
    for name in _OPERATORS:
        base, _, overload = name.partition(".")
        operator = getattr(getattr(_aten, base), overload or "default")
        _libraries[0].impl(name, functools.partial(_run, operator), "PrivateUse1")
    _libraries[1].fallback(_run, "PrivateUse1")
    # A parameter becomes another tensor there, not the same one with other contents.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    if there and here and operator not in _COPY and not (operator in _INDEX and isinstance(args[0], Elsewhere)):
        devices = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{operator} expects all tensors to be on the same device, but found {devices}")
    if operator is _aten._copy_from.default:
        source, target = args[:2]
        _host(target).copy_(_host(source))
        return target
    on_host, options = tree_map(_host, (args, kwargs))
    if operator is _aten.histc.default:  # of integers, a GPU can and a CPU cannot
        result = operator(on_host[0].double(), *on_host[1:], **options).to(on_host[0].dtype)
    else:
        result = operator(*on_host, **options)
    for given in there:
        if given.shape != given.host.shape:
            raise NotImplementedError(f"{operator} resizes {tuple(given.shape)} to {tuple(given.host.shape)}")
    if not _stays(operator, args, leaves, bool(there)):
        return result
    result = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
    return return_and_correct_aliasing(operator, args, kwargs, result) if there else result


def _stays(operator: Any, args: Any, leaves: list[Any], any_there: bool) -> bool:
    """Whether the result is on the device."""
    if operator is _aten.copy_.default:
        return isinstance(args[0], Elsewhere)
    named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    return named[0].type == NAME if named else any_there


def _host(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.host
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
