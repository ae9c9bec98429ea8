"""`evaluate`: perplexity of a text under KV-cache compression, and the record of what was evicted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from knorm_core.counts import Eviction
from knorm_core.evaluation import Evaluation, one_pass_result, stepwise_result
from knorm_core.methods import onepass, stepwise
from knorm_core.methods.probe import check_positions_are_used, one_pass_obstacle
from knorm_core.methods.rotation import check_rotation, rotary_frequencies
from knorm_core.setting import (
    NoEvictionError,
    Setting,
    SlowFallbackWarning,
    UnsupportedModelError,
    asked_to_compress,
    check_setting,
)

Key = TypeVar("Key", bound=Hashable)

#: The protocol of the paper's own scripts: score from the start, leave layers 0 and 1 alone, and take
#: prune_after as given. ``evaluate(model, ids, keep_ratio=0.5, **PAPER_PROTOCOL)``.
PAPER_PROTOCOL: dict[str, Any] = {"score_from": "start", "skip_layers": (0, 1), "adjust": False}


def evaluate(
    model: nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    keep_ratio: float | None = None,
    prune_after: int = 256,
    positions: str = "absolute",
    policy: str = "low_norm",
    compressor: Callable[..., Any] | None = None,
    skip_layers: Iterable[int] = (),
    when: str = "every_step",
    budget: int | None = None,
    window: int = 0,
    adjust: bool = True,
    score_from: str = "phase2",
    allow_no_eviction: bool = False,
    seed: int = 0,
    method: str = "onepass",
) -> Evaluation:
    """Evaluate one text in two phases: fill the cache, then compress before each token and score the next.

    With P the effective prune_after and n the tokens: phase 1 feeds tokens 0 … P-1 and scores nothing;
    phase 2, for i = P … n-2, compresses, feeds token i and scores token i+1: n-1-P scored tokens. The
    model is left as it was found, and several threads may evaluate it at once.

    Args:
        model: a causal language model of transformers, any floating dtype and device.
        input_ids: one text, (n,) or (1, n), at least 34 tokens.
        keep_ratio: share of keys that an eviction keeps, in (0, 1]; 1 never evicts.
        prune_after: cache length in tokens from which a layer is compressed.
        positions: "absolute" feeds token i with position i; "cache" with the length of layer 0's cache,
            as transformers does when nobody passes positions; "rerotated" the same, with the survivors of
            every eviction rotated to positions 0 … k-1 (see `knorm_core.methods.rotation`).
        policy: which keys stay; see `knorm_core.policies.POLICIES`.
        compressor: a callable with the signature of `l2_compress`, in place of a policy; it implies
            ``method="stepwise"``.
        skip_layers: layers to leave uncompressed.
        when: "every_step"; "after_prefill", once before the first token of phase 2, as kvpress does;
            "fixed_budget", one key before each token, so that the cache never exceeds ``budget``.
        budget: cache length in tokens, with ``when="fixed_budget"`` (then without ``keep_ratio``).
        window: with ``when="fixed_budget"``, the most recent tokens that are never evicted.
        adjust: lower ``prune_after`` to fit the text (see `effective_prune_after`). False takes it as given.
        score_from: "phase2", or "start" to score from token 1 on as the paper does.
        allow_no_eviction: accept an evaluation in which nothing was evicted.
        seed: of the policy "random".
        method: "onepass", or "stepwise", its oracle. A model that one pass cannot serve but a real cache
            can is evaluated stepwise, with a `SlowFallbackWarning`; ``Evaluation.method`` says what ran.

    Raises:
        TypeError, ValueError: an argument is wrong; raised before the model runs.
        NoEvictionError: (a ValueError) ``keep_ratio`` is below 1 and nothing was or would be evicted.
        UnsupportedModelError: (a ValueError) the model cannot be evaluated exactly.
    """
    ids, setting = check_setting(
        model,
        input_ids,
        keep_ratio=keep_ratio,
        prune_after=prune_after,
        budget=budget,
        window=window,
        positions=positions,
        policy=policy,
        compressor=compressor,
        skip_layers=skip_layers,
        when=when,
        adjust=adjust,
        score_from=score_from,
        seed=seed,
        method=method,
    )
    if compressor is None:
        # Our own evictions are known in advance, so an evaluation without any is refused before it runs.
        _check_evictions(setting, [setting.schedule(layer) for layer in range(setting.layers)], allow_no_eviction)
    _check_positions(model, [setting])
    if compressor is None and method == "onepass" and not falls_back(model, [setting], stacklevel=3):
        return one_pass_result(onepass.run(model, ids, setting), setting)
    nll, evictions = stepwise.run(model, ids, setting, compressor)
    _check_evictions(setting, evictions, allow_no_eviction)
    return stepwise_result(nll, setting, evictions)


def evaluate_table(
    model: nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    keep_ratios: Iterable[float],
    positions: Iterable[str] = ("absolute",),
    **setting: Any,
) -> dict[tuple[str, float], Evaluation]:
    """`evaluate` for every position mode and keep ratio, sharing what the rows have in common.

    Phase 1 is the same in every row and is fed once; keep ratio 1 is the same in every position mode.

    Args:
        model, input_ids, **setting: as for `evaluate`.
        keep_ratios, positions: the rows.

    Returns:
        Evaluation by (positions, keep_ratio), the same numbers as `evaluate` gives.
    """
    rows = {
        (mode, ratio): setting | {"positions": mode, "keep_ratio": ratio} for mode in positions for ratio in keep_ratios
    }
    return _evaluate_rows(model, input_ids, rows)


def evaluate_rows(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, Evaluation]:
    """`evaluate` for every row of arguments, feeding phase 1 once for all rows that share it.

    All rows are checked before the model runs. Rows that are the same by definition share one evaluation:
    those at keep ratio 1, and both position modes where layer 0 is skipped.

    Args:
        model, input_ids: as for `evaluate`.
        rows: keyword arguments of `evaluate` by any key.

    Returns:
        Evaluation by key, the same numbers as `evaluate` gives.
    """
    return _evaluate_rows(model, input_ids, rows)


def _evaluate_rows(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, Evaluation]:
    if any(row.get("compressor") is not None or row.get("method", "onepass") != "onepass" for row in rows.values()):
        return {key: evaluate(model, input_ids, **row) for key, row in rows.items()}
    ids, settings = checked_rows(model, input_ids, rows)
    falls_back(model, settings.values(), stacklevel=4)
    evaluation_of = shared_rows(model, ids)
    return {key: evaluation_of(row) for key, row in settings.items()}


def shared_rows(model: nn.Module, ids: torch.Tensor) -> Callable[[Setting], Evaluation]:
    """The evaluation of any checked setting of one text; what settings have in common is computed once.

    Keeps phase 1 (keys and values of every layer) for as long as the returned function lives.
    """
    prefix_of = onepass.shared_prefixes(model, ids)
    done: dict[str, Evaluation] = {}

    def evaluation_of(setting: Setting) -> Evaluation:
        same = repr(_plainest(setting))
        if same not in done:
            if _obstacle(model, [setting]):
                nll, evictions = stepwise.run(model, ids, setting)
                done[same] = stepwise_result(nll, setting, evictions)
            else:
                done[same] = one_pass_result(onepass.run(model, ids, setting, prefix_of(setting)), setting)
        return done[same]

    return evaluation_of


def _plainest(setting: Setting) -> Setting:
    """One setting for all that are the same evaluation by definition."""
    if not asked_to_compress(setting.keep_ratio):
        plain = {"positions": "absolute", "policy": "low_norm", "skip_layers": frozenset(), "when": "every_step"}
        return replace(setting, **plain, seed=0, keep_ratio=1.0)  # type: ignore[arg-type]
    if setting.positions == "cache" and not setting.schedule(0):  # layer 0 never shrinks
        return replace(setting, positions="absolute")
    return setting


def check_rows(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> tuple[torch.Tensor, dict[Key, Setting]]:
    """Token ids, and the checked setting of every row of arguments, all of them for one pass.

    Raises:
        UnsupportedModelError: one pass cannot serve the model.
    """
    ids, settings = checked_rows(model, input_ids, rows)
    obstacle = _obstacle(model, settings.values())
    if obstacle:
        raise UnsupportedModelError(
            f"this needs one pass, which cannot serve {type(model).__name__}: {obstacle}; `evaluate` can, stepwise"
        )
    return ids, settings


def checked_rows(
    model: nn.Module, input_ids: torch.Tensor | Sequence[int], rows: Mapping[Key, Mapping[str, Any]]
) -> tuple[torch.Tensor, dict[Key, Setting]]:
    """Token ids, and the checked setting of every row of arguments, for whichever method serves the model."""
    # evaluate's defaults, so that they are written once
    defaults = {
        name: p.default for name, p in inspect.signature(evaluate).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    settings = {}
    for key, row in rows.items():
        arguments = {**defaults, **row}
        allowed = arguments.pop("allow_no_eviction")
        ids, settings[key] = check_setting(model, input_ids, **arguments)
        _check_evictions(
            settings[key], [settings[key].schedule(layer) for layer in range(settings[key].layers)], allowed
        )
    if not settings:
        raise ValueError("no rows: there is nothing to evaluate")
    _check_positions(model, settings.values())
    return ids, settings


def _obstacle(model: nn.Module, settings: Iterable[Setting]) -> str | None:
    return next(filter(None, (one_pass_obstacle(model, setting) for setting in settings)), None)


def falls_back(model: nn.Module, settings: Iterable[Setting], stacklevel: int) -> bool:
    """Whether one pass cannot serve the model; then it is said, with the reason."""
    obstacle = _obstacle(model, settings)
    if obstacle:
        warnings.warn(
            f"{type(model).__name__} is evaluated token by token, since one pass cannot serve it: {obstacle}. The "
            f"numbers are the definition's, and take about one forward pass per token",
            SlowFallbackWarning,
            stacklevel=stacklevel,
        )
    return obstacle is not None


def _check_positions(model: nn.Module, settings: Iterable[Setting]) -> None:
    """Refuse a model that cannot be fed, or moved to, the positions that are asked for."""
    if any(setting.positions == "rerotated" for setting in settings):
        check_rotation(model, rotary_frequencies(model))
    check_positions_are_used(model)


def _check_evictions(setting: Setting, evictions: Sequence[Sequence[Eviction]], allowed: bool) -> None:
    if allowed or not asked_to_compress(setting.keep_ratio) or any(evictions):
        return
    raise NoEvictionError(
        f"nothing is ever evicted: {setting.seq_len} tokens with an effective prune_after of {setting.start} and "
        f"keep_ratio={setting.keep_ratio}, so the result would be the uncompressed one. Lower prune_after, use "
        f"adjust=True, or pass allow_no_eviction=True if that is what you want to measure"
    )
