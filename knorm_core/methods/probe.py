"""What a model's attention allows: one pass, a real cache alone, or neither.

One pass puts softmax attention, with the scale and the soft-capping that the model asks for, in the place
of a model's own. That this is the same is not taken on trust: once per model, every layer's own attention
is asked for an answer to random queries and keys. Attention that adds a sink, a bias or a scale of its own,
or that never goes through transformers' AttentionInterface, is left to the stepwise evaluation, which runs
the model's own code on a real cache. Where that code reads a key's age off its place in the cache, which an
eviction changes, neither can be right.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from knorm_core.cache import cache_argument, with_layers
from knorm_core.methods.forward import copy_sharing_weights, private_copy, register_attention
from knorm_core.methods.language_model import text_config
from knorm_core.methods.rotation import check_rotation, rotary_frequencies
from knorm_core.setting import Setting, UnsupportedModelError

#: Attention of one query to every key in the cache, as one pass has it; and by the model's own eager code.
#: Neither takes a mask: of a cache in which everything is meant to be seen, transformers' masks hide some
#: keys where layers differ in length (4.57 takes every layer's length for that of layer 0).
PLAIN, OWN = "knorm_plain", "knorm_own"
#: The model's own eager code too, with queries and attention noted for a policy: `knorm_core.methods.watched`.
WATCHED = "knorm_watched"


@dataclass(frozen=True)
class Support:
    """What a model allows of one evaluation.

    Attributes:
        method: "onepass", "stepwise" or "refused".
        reason: why one pass cannot serve it, or why neither method can; empty where one pass can.
        attention: the attention implementation of the stepwise evaluation; None for the model's own.
    """

    method: str
    reason: str = ""
    attention: str | None = None


@dataclass(frozen=True)
class AttentionSupport:
    """What a model's attention allows, whatever the text.

    Attributes:
        obstacle: why one pass cannot serve it; None if it can.
        stepwise: the attention implementation of the stepwise evaluation; None for the model's own.
    """

    obstacle: str | None
    stepwise: str | None


# Models whose use of position_ids has been seen.
_positioned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_probed: weakref.WeakKeyDictionary[nn.Module, AttentionSupport] = weakref.WeakKeyDictionary()


def support(model: nn.Module, setting: Setting) -> Support:
    """What a model allows of this evaluation: the one place that is asked, before anything is evaluated."""
    try:
        if setting.positions == "rerotated":
            check_rotation(model, rotary_frequencies(model))
        check_positions_are_used(model)
        obstacle = one_pass_obstacle(model, setting) if setting.compressor is None else ""
        if obstacle is None and setting.method == "onepass":
            return Support("onepass")
        check_stepwise(model, setting)
        attention = _stepwise_attention(model, setting)
    except UnsupportedModelError as refusal:
        return Support("refused", str(refusal))
    return Support("stepwise", obstacle or "", attention)


def attention_support(model: nn.Module) -> AttentionSupport:
    """What a model's attention allows: one forward pass of one token, once per model."""
    if model not in _probed:
        _probed[model] = _probe(model)
    return _probed[model]


def _stepwise_attention(model: nn.Module, setting: Setting) -> str | None:
    attention = attention_support(model).stepwise
    if setting.compressor is not None or setting.policy.reads not in ("queries", "attention"):
        return attention
    if attention is None:
        raise UnsupportedModelError(
            f"policy {setting.policy!r} reads {setting.policy.reads!r}, which {type(model).__name__} does not show: "
            f"{attention_support(model).obstacle}; a policy that reads 'key' or 'cache' can be evaluated on it"
        )
    return WATCHED


def one_pass_obstacle(model: nn.Module, setting: Setting) -> str | None:
    """Why one pass cannot serve this model and setting, or None if it can."""
    longest = int(setting.fed_positions().max()) + 1
    original = _first_table_end(text_config(model))
    if original is not None and longest > original:
        return (
            f"its rotary table changes beyond position {original} (longrope), and the text reaches {longest}: keys "
            f"cached before and after have different ones"
        )
    return attention_support(model).obstacle


@torch.inference_mode()
def check_stepwise(model: nn.Module, setting: Setting) -> None:
    """Refuse a model whose own attention, on a real cache, would take an eviction for something else.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if attention_support(model).stepwise is not None:
        return
    name = type(model).__name__
    check_equal_lengths(model, [(layer in setting.sliding, setting.schedule(layer)) for layer in range(setting.layers)])
    try:
        logits, reordered = _answers_to_reordered_keys(model, setting.seq_len - 1)
    except Exception as error:  # whatever a family's own code makes of a cache
        raise UnsupportedModelError(
            f"{name} cannot be fed on a DynamicCache ({type(error).__name__}: {error})"
        ) from error
    tolerance = 1e-3 if torch.finfo(logits.dtype).eps < 1e-6 else 5e-2
    if float((logits - reordered).norm()) > tolerance * float(logits.norm()):
        raise UnsupportedModelError(
            f"{name} reads the distance of a key off its place in the cache (a local window or a bias), and an "
            f"eviction changes places: its numbers would be silently wrong"
        )


def check_equal_lengths(model: nn.Module, lengths: Sequence[Hashable]) -> None:
    """Refuse layers of unequal length, which a model whose masks are its own would mask by the length of one."""
    if len(set(lengths)) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} makes its own masks, the same for all layers, so all of them have to be "
            f"compressed alike: skip_layers, ratios or budgets by layer, sliding windows and compressors that leave a "
            f"layer out do not go with it"
        )


@torch.inference_mode()
def check_positions_are_used(model: nn.Module) -> None:
    """Refuse a model that accepts ``position_ids`` and ignores them, as BLOOM and MPT do (ALiBi).

    Such a model derives positions from the cache length, so after an eviction its numbers would be
    silently wrong. It is found out by feeding the same tokens at other positions, once per model.

    Raises:
        UnsupportedModelError: the logits do not change.
    """
    if model in _positioned:
        return
    probed = copy_sharing_weights(model)
    tokens = torch.arange(4, device=_device(model)).unsqueeze(0)
    try:
        # With a cache, since without one transformers takes a jump in positions for a second text.
        near, far = (
            probed(input_ids=tokens, position_ids=tokens * stretch, use_cache=True).logits for stretch in (1, 3)
        )
    except TypeError as error:
        raise UnsupportedModelError(f"{type(model).__name__} takes no position_ids: {error}") from None
    if torch.equal(near, far):
        raise UnsupportedModelError(
            f"{type(model).__name__} ignores position_ids: it derives positions from the cache length, which an "
            f"eviction shortens, so its numbers would be silently wrong"
        )
    _positioned.add(model)


@dataclass
class _Found:
    """What a probe saw: the layers that called, and why the first of them that is not plain is not."""

    layers: list[int] = field(default_factory=list)
    obstacle: str | None = None
    eager: bool = True  # whether every layer's family has an eager form of its attention


_found: ContextVar[_Found] = ContextVar("knorm_probe")
_PROBE = "knorm_probe"
_EAGER = "eager_attention_forward"


@torch.inference_mode()
def _probe(model: nn.Module) -> AttentionSupport:
    for name, forward in ((_PROBE, _compare), (PLAIN, plain_attention), (OWN, own_attention)):
        register_attention(name, forward)
    found = _Found()
    token = _found.set(found)
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=_device(model))
        private_copy(model, _PROBE)(input_ids=ids, position_ids=ids, use_cache=False)
    except TypeError:
        if found.layers:
            raise  # else the model attends by code of its own, which misses the mask that a probe has none of
    finally:
        _found.reset(token)
    layers = text_config(model).num_hidden_layers
    if found.layers != list(range(layers)):
        through = f"; {len(found.layers)} of its {layers} layers do" if found.layers else ""
        return AttentionSupport(f"its attention does not go through transformers' AttentionInterface{through}", None)
    if found.obstacle is None:
        return AttentionSupport(None, PLAIN)
    return AttentionSupport(found.obstacle, OWN if found.eager else None)


def _compare(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **arguments: Any
) -> tuple[torch.Tensor, None]:
    """`plain_attention` that also holds a layer's own attention against it, on random queries and keys."""
    found = _found.get()
    found.layers.append(int(module.layer_idx))  # type: ignore[arg-type]
    if found.obstacle is None:
        generator = torch.Generator().manual_seed(0)
        # Queries large enough for soft-capping to show, and several keys, which a sink or a bias would share with.
        sizes = ((query, 1, 4.0), (key, 8, 1.0), (value, 8, 1.0))
        tensors = [
            (torch.randn(1, one.shape[1], count, one.shape[3], generator=generator) * size).to(query.device)
            for one, count, size in sizes
        ]
        found.obstacle = _difference(module, tensors, arguments)
    return plain_attention(module, query, key, value, mask, **arguments)


def _difference(module: nn.Module, tensors: list[torch.Tensor], arguments: dict[str, Any]) -> str | None:
    layer = module.layer_idx
    if not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"layer {layer} is not causal: tokens that are fed later would change earlier ones")
    if _eager_form(module) is None:
        _found.get().eager = False
        return f"layer {layer} has no eager attention to hold one pass against"
    query, key, value = tensors
    plain, _ = plain_attention(module, query, key, value, None, **arguments)
    own, _ = own_attention(module, query, key, value, None, **arguments)
    if torch.allclose(plain, own.to(plain.dtype), rtol=1e-4, atol=1e-4):
        return None
    extras = sorted(
        name
        for name, given in arguments.items()
        if isinstance(given, torch.Tensor) and name not in ("position_ids", "cache_position")
    )
    return f"layer {layer} attends with {', '.join(extras)}" if extras else f"layer {layer} is not plain attention"


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: one query (batch, heads, 1, head_dim) attends to every key it is given."""
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        out = scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=groups > 1)
    else:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        out = (torch.tanh(scores / softcap) * softcap).softmax(dim=-1) @ value
    return out.transpose(1, 2).contiguous(), None


def own_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **arguments: Any
) -> tuple[torch.Tensor, Any]:
    """The same by the family's own eager code, which takes the softmax in float32."""
    return eager_attention(module, query, key, value, None, **arguments)


def eager_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **arguments: Any
) -> tuple[torch.Tensor, Any]:
    """The family's own eager code: outputs (batch, queries, heads, head_dim), weights (batch, heads, queries, keys)."""
    eager = _eager_form(module)
    if eager is None:
        raise UnsupportedModelError(f"{type(module).__name__} has no eager attention")
    return eager(module, query, key, value, mask, **arguments)


def _eager_form(module: nn.Module) -> Callable[..., Any] | None:
    """The family's own attention function; transformers calls it the same in every modelling file."""
    homes = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    return next((home[_EAGER] for home in homes if _EAGER in home), None)


def _answers_to_reordered_keys(model: nn.Module, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one token after ``length`` others, with their keys in order and in the opposite order."""
    from transformers import DynamicCache

    model = copy_sharing_weights(model)
    positions = torch.arange(length + 1, device=_device(model))[None]
    ids = positions % model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    cache = DynamicCache()
    model(input_ids=ids[:, :-1], position_ids=positions[:, :-1], use_cache=True, **cache_argument(model, cache))
    reordered = with_layers(cache, [(layer.keys.flip(2), layer.values.flip(2)) for layer in cache.layers])
    last = {"input_ids": ids[:, -1:], "position_ids": positions[:, -1:], "use_cache": True}
    one, other = (model(**last, **cache_argument(model, either)).logits[0, -1] for either in (cache, reordered))
    return one, other


def _first_table_end(config: Any) -> int | None:
    """From which position on a model's rotary table is another one, where there is such a position."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    for one in kinds:
        if one.get("rope_type", one.get("type")) == "longrope":
            original = one.get("original_max_position_embeddings")
            return int(original or config.original_max_position_embeddings)
    return None


def _device(model: nn.Module) -> torch.device:
    return model.get_input_embeddings().weight.device  # type: ignore[operator]
