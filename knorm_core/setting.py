"""One evaluation, checked and spelled out: what `evaluate` hands to both of its methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import nn

from knorm_core.cache import check_skip_layers
from knorm_core.counts import (
    SHORTEST_TEXT,
    WHEN,
    Eviction,
    budget_schedule,
    check_choice,
    check_int,
    check_keep_ratio,
    effective_prune_after,
    eviction_schedule,
)
from knorm_core.policies import POLICIES, key_scores

POSITIONS = ("absolute", "cache", "rerotated")
METHODS = ("onepass", "stepwise")
SCORE_FROM = ("phase2", "start")


class NoEvictionError(ValueError):
    """An evaluation that was asked to compress never evicted a key: its result would say nothing."""


class UnsupportedModelError(ValueError):
    """The model's attention cannot be evaluated exactly; the message says why."""


class SlowFallbackWarning(UserWarning):
    """One pass cannot serve the model, so it is evaluated token by token; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What to evaluate, all of it checked. Lengths are in tokens.

    Attributes:
        seq_len: n, tokens of the text.
        start: P, tokens of phase 1 (at most ``seq_len`` - 1 of them are fed).
        keep_ratio: in (0, 1], or None with ``when="fixed_budget"``.
        sliding: window length of every sliding-window layer; these are never compressed.
        skip_layers: full-attention layers to leave alone.
        first_scored: index of the first token that is scored.
    """

    seq_len: int
    layers: int
    start: int
    keep_ratio: float | None
    positions: str = "absolute"
    policy: str = "low_norm"
    skip_layers: frozenset[int] = frozenset()
    sliding: Mapping[int, int] = field(default_factory=dict)
    when: str = "every_step"
    window: int = 0
    seed: int = 0
    first_scored: int = 1

    def schedule(self, layer: int) -> tuple[Eviction, ...]:
        """Evictions of one layer; empty where it is skipped, sliding, or nothing is to go."""
        if layer in self.skip_layers or layer in self.sliding:
            return ()
        return self.full_schedule

    @cached_property
    def full_schedule(self) -> tuple[Eviction, ...]:
        """Evictions of a layer that is compressed; every layer asks for them."""
        if self.when == "fixed_budget":
            return budget_schedule(self.seq_len, self.start)
        return eviction_schedule(self.seq_len, self.start, self.keep_ratio or 1.0, when=self.when)

    def scores(self, layer: int, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return key_scores(self.policy, keys, positions, layer=layer, seed=self.seed)

    def fed_positions(self) -> torch.Tensor:
        """Position of every fed token, int64 (seq_len - 1,).

        "cache" is what transformers derives when nobody passes positions: the length of layer 0's cache.
        "rerotated" feeds the same ones, and moves the survivors so that they are right.
        """
        positions = torch.arange(self.seq_len - 1)
        if self.positions != "absolute":
            for step, before, after in self.schedule(0):
                positions[step:] -= before - after
        return positions


def check_setting(
    model: nn.Module,
    input_ids: Any,
    *,
    keep_ratio: float | None,
    prune_after: int,
    budget: int | None,
    window: int,
    positions: str,
    policy: str,
    compressor: Callable[..., Any] | None,
    skip_layers: Iterable[int],
    when: str,
    adjust: bool,
    score_from: str,
    seed: int,
    method: str,
) -> tuple[torch.Tensor, Setting]:
    """Every argument of `evaluate`, checked before any model runs; see there for what is allowed."""
    check_choice("positions", positions, POSITIONS)
    check_choice("policy", policy, POLICIES)
    check_choice("when", when, WHEN)
    check_choice("score_from", score_from, SCORE_FROM)
    check_choice("method", method, METHODS)
    check_int("prune_after", prune_after, 1)
    check_int("seed", seed, 0)
    if compressor is not None and not callable(compressor):
        raise TypeError(f"compressor={compressor!r} is not callable")
    ids = check_input_ids(model, input_ids)
    n = len(ids)
    if when == "fixed_budget":
        start = _check_budget(keep_ratio, budget, window, compressor)
    else:
        if budget is not None or window:
            raise ValueError(f"budget={budget!r} and window={window!r} go with when='fixed_budget', not when={when!r}")
        if keep_ratio is None:
            raise TypeError("keep_ratio=None is not a number: give one in (0, 1]")
        check_keep_ratio(keep_ratio)
        start = effective_prune_after(n, prune_after) if adjust else prune_after
    config = text_config(model)
    layers = config.num_hidden_layers
    first_scored = 1 if score_from == "start" else start + 1
    if first_scored >= n:
        raise NoEvictionError(
            f"prune_after={prune_after} with adjust={adjust} leaves phase 2 of a text of {n} tokens empty: nothing "
            f"would be evicted and nothing scored; use adjust=True, or a prune_after of at most {n - 2}"
        )
    setting = Setting(
        seq_len=n,
        layers=layers,
        start=start,
        keep_ratio=keep_ratio,
        positions=positions,
        policy=policy,
        skip_layers=check_skip_layers(skip_layers, layers),
        sliding=sliding_windows(config),
        when=when,
        window=window,
        seed=seed,
        first_scored=first_scored,
    )
    if positions == "rerotated":
        _check_rerotated(setting, compressor)
    if len(setting.skip_layers | setting.sliding.keys()) == layers:
        raise ValueError(
            f"no layer is left to compress: skip_layers={sorted(setting.skip_layers)}, "
            f"sliding-window layers={sorted(setting.sliding)}, of {layers} layers; a window bounds a cache already"
        )
    return ids, setting


def check_input_ids(model: nn.Module, input_ids: Any) -> torch.Tensor:
    """One text's token ids as (n,) int64 on the model's device, or an error that says what is wrong."""
    ids = torch.as_tensor(input_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        if ids.numel() == 0:
            raise ValueError(f"input_ids is empty: a text needs at least {SHORTEST_TEXT} tokens")
        raise TypeError(f"input_ids has dtype {ids.dtype}; give integer token ids")
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}; one text at a time, shaped (n,) or (1, n)")
    if len(ids) < SHORTEST_TEXT:
        raise ValueError(f"input_ids has {len(ids)} tokens; a text needs at least {SHORTEST_TEXT}")
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise ValueError(f"input_ids holds {wrong}, but the model's vocabulary is 0 … {vocabulary - 1}")
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit and len(ids) > limit:
        raise ValueError(
            f"input_ids has {len(ids)} tokens, but the model has {limit} positions; cut the text (max_eval_tokens)"
        )
    return ids.long().to(model.device)  # type: ignore[arg-type]


def text_config(model: nn.Module) -> Any:
    """The configuration of the language part of a model."""
    return model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]


def sliding_windows(config: Any) -> dict[int, int]:
    """Window length by layer index, for the layers that transformers gives a sliding window.

    Raises:
        UnsupportedModelError: a layer neither attends to the whole text nor slides, or has no keys of its own.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # families in which all layers are alike, such as Mistral
        chunked = getattr(config, "attention_chunk_size", None)
        kind = "sliding_attention" if window else "chunked_attention" if chunked else "full_attention"
        kinds = [kind] * config.num_hidden_layers
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of kind {', '.join(others)}: only layers that attend to the whole text "
            f"or to a sliding window can be evaluated exactly"
        )
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise UnsupportedModelError(
            f"{config.model_type} has layers that read the keys of other layers: an eviction there has no meaning yet"
        )
    return {layer: int(window) for layer, kind in enumerate(kinds) if kind == "sliding_attention" and window}


def _check_budget(keep_ratio: Any, budget: Any, window: Any, compressor: Any) -> int:
    if keep_ratio is not None:
        raise ValueError(f"keep_ratio={keep_ratio!r} has no meaning with when='fixed_budget': give budget alone")
    if compressor is not None:
        raise ValueError("compressor does not go with when='fixed_budget': give a policy")
    check_int("budget", budget, 1)
    check_int("window", window, 0)
    if window >= budget:
        raise ValueError(f"window={window} has to be below budget={budget}: something must be free to go")
    return int(budget)


def _check_rerotated(setting: Setting, compressor: Any) -> None:
    # Survivors move to 0 … k-1 and the next token follows them: only with one k for all layers is there one next.
    if compressor is not None:
        raise ValueError("compressor does not go with positions='rerotated': it does not say who survived")
    if setting.skip_layers:
        raise ValueError(
            f"skip_layers={sorted(setting.skip_layers)} does not go with positions='rerotated': layers of unequal "
            f"length have no position in common for the next token"
        )
    if setting.sliding:
        raise UnsupportedModelError(
            f"positions='rerotated' needs layers of equal length, and layers {sorted(setting.sliding)} have a "
            f"sliding window: use 'absolute'"
        )


def asked_to_compress(keep_ratio: float | None) -> bool:
    return keep_ratio is None or Fraction(str(keep_ratio)) < 1
