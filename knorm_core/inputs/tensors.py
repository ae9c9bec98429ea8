"""Checks that every tensor of a checkpoint is used by the loaded model: otherwise another model is evaluated."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from knorm_core.inputs.checkpoints import ModelNotFoundError, StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")
_NOT_READ = re.compile(
    r"(^|.*\.)(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|position_ids|masked_bias"  # computed anew
    r"|pooler\..*|seq_relationship\..*"  # which read a model's states, for other tasks
    r"|mtp\..*)"  # drafts of tokens
)
_FREQUENCIES = re.compile(r"(^|.*\.)rotary_emb\.inv_freq")
_HALF = 1e-2  # relative, of what was stored in bfloat16
_TINY = 1e-7  # absolute, of the smallest numbers of float16
_MASK = re.compile(r"(^|.*\.)attn(ention)?\.bias")  # the causal mask, as older versions stored it: four-dimensional


def check_tensors(
    model: PreTrainedModel, loading: Mapping[str, Any], stored: Mapping[str, StoredTensor], folder: Path
) -> None:
    """Raise a ModelNotFoundError unless what is stored is what the model computes with.

    Args:
        model: as transformers loaded it.
        loading: transformers' own account of that.
        stored: the tensors in the files.
        folder: where they are, for messages.
    """
    what = f"the model in {folder}"
    if lacking := sorted(loading["missing_keys"]):  # which transformers fills with random numbers
        raise ModelNotFoundError(
            f"{what} lacks {len(lacking)} of its tensors, such as {lacking[0]!r}: its weights are not those of its "
            f"configuration"
        )
    config = model.config.get_text_config()
    drafting = _drafting(stored, config)
    unexpected = {key for key in loading["unexpected_keys"] if not _harmless(key, stored.get(key), drafting)}
    _check_layers(unexpected, config, drafting, what)
    if unexpected:
        raise ModelNotFoundError(
            f"{what} has tensors that its configuration has no place for ({len(unexpected)}, such as "
            f"{min(unexpected)!r}): its weights are not those of its configuration, or are quantised"
        )
    left_out = _left_out_by_class(model, stored)
    read = {name: t for name, t in stored.items() if name not in left_out and not _harmless(name, t, drafting)}
    _check_dtypes(model, read, what)
    _check_computed_anew(model, stored, folder, what)
    _check_tied(model, what)
    repeated = _check_shared(model, read, folder, what)
    places = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    if sum(tensor.numel for name, tensor in read.items() if name not in repeated) > places:
        raise ModelNotFoundError(
            f"{what} has more numbers in its tensors than the {places} that its configuration has places for: its "
            f"weights are not those of its configuration"
        )


def _harmless(key: str, tensor: StoredTensor | None, drafting: Collection[int]) -> bool:
    if _NOT_READ.fullmatch(key):
        return True
    if _MASK.fullmatch(key):
        return tensor is not None and len(tensor.shape) == 4
    at = _LAYER.search(key)
    return bool(at and int(at[1]) in drafting)


def _drafting(stored: Iterable[str], config: Any) -> set[int]:
    """The layers beyond the model's own that draft tokens, for which transformers has no use.

    Each joins a token's embedding to a hidden state (``eh_proj``); a further layer without that is one of the model's.
    """
    layers, drafts = (getattr(config, name, None) for name in ("num_hidden_layers", "num_nextn_predict_layers"))
    if not isinstance(layers, int) or not isinstance(drafts, int):
        return set()
    joining = {int(at[1]) for key in stored if ".eh_proj." in key and (at := _LAYER.search(key))}
    return {layer for layer in joining if layers <= layer < layers + drafts}


def _check_layers(unexpected: Iterable[str], config: Any, drafting: Collection[int], what: str) -> None:
    """Raise a ModelNotFoundError where weights of further layers were left out: half a model is another model."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return
    layers += len(drafting)
    further = [key for key in unexpected if (at := _LAYER.search(key)) and int(at[1]) >= layers]
    if further:
        raise ModelNotFoundError(
            f"{what} has weights of more than the {layers} layers of its configuration, such as "
            f"{min(further)!r}: its weights are not those of its configuration"
        )


def _check_computed_anew(model: PreTrainedModel, stored: Mapping[str, StoredTensor], folder: Path, what: str) -> None:
    """Raise a ModelNotFoundError where what older versions stored, and transformers computes, has other numbers.

    Frequencies were stored in half precision, and before they were scaled. A mask of a model with local attention is
    left to its configuration.
    """
    frequencies = [buffer.detach().cpu() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    local = any(getattr(model.config, name, None) for name in ("attention_types", "attention_layers"))
    for name, tensor in stored.items():
        if _FREQUENCIES.fullmatch(name) and frequencies:
            numbers = _tensor(folder, name, stored).double()
            unscaled = [
                theta ** -(torch.arange(len(numbers)) / len(numbers)) for theta in _thetas(model.config.to_dict())
            ]
            own = [each.double() for each in (*frequencies, *unscaled) if each.shape == numbers.shape]
            if not any(torch.allclose(numbers, each, rtol=_HALF, atol=_TINY) for each in own):
                raise ModelNotFoundError(
                    f"{what} has rotary frequencies in {name!r} that are not those of its configuration (rope_theta, "
                    f"rope_scaling): set these right, or remove the tensor"
                )
        elif _MASK.fullmatch(name) and len(tensor.shape) == 4 and not local:
            mask = _tensor(folder, name, stored) != 0
            if not torch.equal(mask, torch.ones_like(mask).tril()):
                raise ModelNotFoundError(
                    f"{what} has a mask in {name!r} that is not causal, and its configuration names no other: its "
                    f"weights are not those of its configuration"
                )


def _thetas(settings: Mapping[str, Any]) -> Iterator[float]:
    """The bases of rotary frequencies in a configuration, at whatever depth transformers has put them."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _thetas(value)
        elif name == "rope_theta" and isinstance(value, int | float):
            yield float(value)


def _left_out_by_class(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> set[str]:
    """Tensors that the model's class declares as not read, and that transformers therefore does not report."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    return {name for name in stored if any(pattern.search(name) for pattern in patterns)}


def _check_dtypes(model: PreTrainedModel, read: Mapping[str, StoredTensor], what: str) -> None:
    """Raise a ModelNotFoundError where a weight is stored in what is no floating point type, and would be cast."""
    for name, tensor in read.items():
        if tensor.dtype not in _FLOATS:
            buffer = dict(model.named_buffers()).get(name)
            if buffer is None or buffer.is_floating_point():
                raise ModelNotFoundError(
                    f"{what} has {name!r} stored as {tensor.dtype}: weights are {', '.join(_FLOATS)}, and quantised "
                    f"ones mean nothing by themselves"
                )


def _check_tied(model: PreTrainedModel, what: str) -> None:
    """Raise a ModelNotFoundError where transformers 5 did not tie embeddings that the configuration ties."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    ties = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and model._tied_weights_keys
    if ties and last is not None and getattr(first, "weight", None) is not getattr(last, "weight", None):
        raise ModelNotFoundError(
            f"{what} ties its embeddings (tie_word_embeddings) and stores two with different numbers, of which "
            f"versions of transformers take one or both: its weights are not those of its configuration"
        )


def _check_shared(model: PreTrainedModel, read: Mapping[str, StoredTensor], folder: Path, what: str) -> set[str]:
    """Names of tensors that are stored once more, for a layer that shares them; they must be equal."""
    names: dict[int, list[str]] = {}
    base = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stored = [key for key in (name, name.removeprefix(base), base + name) if key in read]
        names.setdefault(id(parameter), []).extend(key for key in stored if key not in names.get(id(parameter), ()))
    repeated: set[str] = set()
    for first, *others in (shared for shared in names.values() if len(shared) > 1):
        for other in others:
            if not torch.equal(_tensor(folder, first, read), _tensor(folder, other, read)):
                raise ModelNotFoundError(
                    f"{what} shares {first!r} and {other!r}, which are stored with different numbers: its weights are "
                    f"not those of its configuration"
                )
            repeated.add(other)
    return repeated


def _tensor(folder: Path, name: str, read: Mapping[str, StoredTensor]) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(folder / read[name].file, framework="pt") as content:
        tensor: torch.Tensor = content.get_tensor(name)
    return tensor
