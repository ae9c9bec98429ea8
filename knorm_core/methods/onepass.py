"""The exact two-phase evaluation in one forward pass over the text.

Teacher forcing makes it possible: all tokens are known, so are the positions they are fed with, and
what a layer evicts depends only on that layer's own queries, keys and values and on a schedule of lengths
that is known before the start (`knorm_core.counts`). So every key of a head has a birth and a death. An
attention function registered with transformers computes the deaths of its layer: in one go where a policy
looks at keys alone (`knorm_core.methods.deaths`), else by playing its evictions forward
(`knorm_core.methods.replay`). It lets each query attend to the keys then alive (`knorm_core.methods.attention`);
the rest of the model never knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from knorm_core.methods.attention import mortal_attention, moving_attention
from knorm_core.methods.deaths import layer_deaths, window_deaths
from knorm_core.methods.entered import Entered, entered, noting
from knorm_core.methods.fed import Fed, Prefix, after
from knorm_core.methods.forward import last_logits, private_copy, register_attention, token_nll
from knorm_core.methods.head import last_states, separate_head
from knorm_core.methods.replay import Logits, Move, replayed_deaths
from knorm_core.methods.rotation import Rotation, rotary_frequencies, rotate
from knorm_core.setting import Setting, UnsupportedModelError

ATTENTION = "knorm_onepass"
# Tokens whose logits exist at one time: those of a long text would take more memory than all else together,
# and below some hundreds at a time the head's matrix product gets slower.
LOGITS_AT_ONCE = 1024
Watch = Callable[[int, torch.Tensor | None], None]


@dataclass
class _Walk:
    """One forward pass as its attention calls see it."""

    layers: int
    # (layer, what was fed to it, scale and soft-capping, what entered it) -> deaths of the keys, or None for none
    deaths: Callable[[int, Fed, Logits, Entered | None], torch.Tensor | None]
    phase_1: int
    sliding: Mapping[int, int] = field(default_factory=dict)  # window by layer
    steps: Sequence[int] = ()  # of all evictions, where survivors move
    move: Move | None = None
    prior: Sequence[Fed] | None = None  # of the tokens before this pass, per layer
    keep: bool = False  # whether to hand on what this pass feeds
    seen: list[int] = field(default_factory=list)
    kept: list[Fed] = field(default_factory=list)


# A context variable, so that two threads can evaluate at once.
_walk: ContextVar[_Walk] = ContextVar("knorm_walk")


def run(
    model: nn.Module,
    input_ids: torch.Tensor,
    setting: Setting,
    prefix: Prefix | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of every scored token, float64, shaped as ``input_ids`` but for the length.

    Args:
        model: a causal language model of transformers.
        input_ids: (n,), int64, on the model's device; or (batch, n), texts of equal length.
        setting: what to evaluate; see `knorm_core.setting`.
        prefix: phase 1 of the same text (not of a batch), from `knorm_core.methods.prefix`, to save feeding it again.
        watch: called with each layer's index and the deaths of its keys, int64 (batch, kv_heads, length), or None.

    Raises:
        PolicyError: the policy does not return scores.
    """
    start = prefix.length if prefix else 0
    if prefix and start == setting.seq_len - 1:
        return prefix.nll
    first = max(setting.first_scored - 1, start)  # the query that predicts the first token scored here
    targets = input_ids[..., first + 1 :]
    feed = partial(_feed, model, input_ids, setting, prefix, watch)
    head = separate_head(model) if targets.numel() > LOGITS_AT_ONCE else None
    if head is None:
        logits = feed(partial(last_logits, count=targets.shape[-1]))
        nll = token_nll(logits.flatten(0, 1), targets.flatten())
    else:
        states = feed(partial(last_states, count=targets.shape[-1])).flatten(0, 1)
        parts = zip(states.split(LOGITS_AT_ONCE), targets.flatten().split(LOGITS_AT_ONCE), strict=True)
        nll = torch.cat([token_nll(head(rows), wanted) for rows, wanted in parts])
    nll = nll.view(targets.shape)
    return torch.cat([prefix.nll, nll]) if prefix else nll


def final_states(
    model: nn.Module, input_ids: torch.Tensor, setting: Setting, prefix: Prefix | None = None, count: int | None = None
) -> torch.Tensor:
    """What the model's head would turn into the logits of the last ``count`` scored tokens: (count, hidden).

    A thousandth of the memory of logits; `knorm_core.methods.head.Head` makes logits of them, block by block.

    Args:
        count: default all of the tokens scored in phase 2.
    """
    count = setting.seq_len - max(setting.first_scored, setting.start + 1) if count is None else count
    return _feed(model, input_ids, setting, prefix, None, partial(last_states, count=count))[0]


@torch.inference_mode()
def _feed(
    model: nn.Module,
    input_ids: torch.Tensor,
    setting: Setting,
    prefix: Prefix | None,
    watch: Watch | None,
    read: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """One pass over what ``prefix`` has not fed yet; ``read`` makes the forward call."""

    policy, positions = setting.policy, setting.fed_positions().to(input_ids.device)
    move = rotation = None
    if setting.positions == "rerotated":
        move = _to_the_front(positions, rotary_frequencies(model))
    if policy.unrotates:
        rotation = Rotation(rotary_frequencies(model), positions)
    looks_within = policy.reads == "hidden_states"
    if looks_within:
        prefix = None  # phase 1 keeps no hidden states

    def deaths(layer: int, fed: Fed, logits: Logits, entry: Entered | None) -> torch.Tensor | None:
        if policy.reads == "key" or not setting.schedule(layer):
            dying = layer_deaths(setting, layer, fed[1])
        else:
            dying = replayed_deaths(
                policy,
                *fed,
                setting.schedule(layer),
                layer=layer,
                protection=setting.protection,
                logits=logits,
                move=move,
                rotation=rotation,
                entered=entry,
            )
        if watch is not None:
            watch(layer, dying)
        return dying

    walk = _Walk(
        layers=setting.layers,
        deaths=deaths,
        phase_1=min(setting.start, setting.seq_len - 1),
        sliding=setting.sliding,
        prior=prefix.fed if prefix else None,
        steps=[eviction.step for eviction in setting.schedule(0)],
        move=move,
    )
    start = prefix.length if prefix else 0
    private = prefix.model if prefix else private_copy(model, ATTENTION)
    with _walking(walk), noting(private if looks_within else None):
        fed = torch.atleast_2d(input_ids)[:, start:-1]
        return read(private, fed, positions[start:])


@torch.inference_mode()
def feed_plainly(
    private: nn.Module,
    fed: torch.Tensor,
    positions: torch.Tensor,
    *,
    layers: int,
    windows: Mapping[int, int],
    count: int,
    prior: Sequence[Fed] | None = None,
) -> tuple[torch.Tensor, tuple[Fed, ...]]:
    """One pass that evicts nothing, as all passes of this module are made.

    Args:
        private: a private copy with the attention of this module.
        fed: (batch, length), int64; positions: (length,) or (batch, length).
        layers: how many the model has; windows: length in tokens of the window of every layer that slides.
        count: how many logits are wanted, of the last tokens.
        prior: queries, keys and values of every layer of the tokens before these.

    Returns:
        Logits (batch, count, vocabulary), and queries, keys and values of these tokens, per layer.
    """

    def deaths(layer: int, each: Fed, *_: Any) -> torch.Tensor | None:
        return window_deaths(windows.get(layer), each[1])

    length = fed.shape[1]
    walk = _Walk(layers, deaths, phase_1=length, sliding=windows, prior=prior, keep=True)
    with _walking(walk):
        logits = last_logits(private, fed, positions, count)
    return logits, tuple(walk.kept)


def _to_the_front(fed: torch.Tensor, frequencies: torch.Tensor) -> Move:
    """Rotate survivors from the positions they were fed with to 0 … kept-1."""

    def move(keys: torch.Tensor, born: torch.Tensor) -> torch.Tensor:
        return rotate(keys, torch.arange(born.shape[-1], device=born.device) - fed[born], frequencies)

    return move


def _attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (batch, heads, length, head_dim) in, (batch, length, heads, …) out."""
    walk = _walk.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    walk.seen.append(layer)
    if key.shape[2] != query.shape[2]:
        raise UnsupportedModelError(
            f"attention of layer {layer} receives {key.shape[2]} keys for {query.shape[2]} tokens: something puts keys "
            f"of its own before the text's (prefix tuning does), and to evict them has no meaning yet"
        )
    fed = (query, key, value)
    if walk.keep:
        walk.kept.append(fed)
    if walk.prior is not None:
        fed = after(walk.prior[layer], fed)
        key, value = fed[1:]
    deaths = walk.deaths(layer, fed, Logits(scaling, softcap), entered(module))
    if walk.move is not None and deaths is not None:
        out = moving_attention(query, key, value, deaths, walk.steps, walk.move, scale=scaling, softcap=softcap)
        return out.transpose(1, 2).contiguous(), None
    window = walk.sliding.get(layer)
    out = mortal_attention(
        query,
        key,
        value,
        deaths,
        immortal_until=min(walk.phase_1, window or walk.phase_1),
        scale=scaling,
        softcap=softcap,
    )
    return out.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def _walking(walk: _Walk) -> Iterator[None]:
    """Hand ``walk`` to the attention calls of this thread, and see that every layer made one."""
    register_attention(ATTENTION, _attention_forward)
    token = _walk.set(walk)
    try:
        yield
    finally:
        _walk.reset(token)
    if walk.seen != list(range(walk.layers)):
        raise UnsupportedModelError(
            f"the model has {walk.layers} layers but its attention went through transformers' "
            f"AttentionInterface for layers {walk.seen}: one pass would be silently wrong; use method='stepwise'"
        )
