"""Cells: the independent evaluations of which a sweep is made, and what decides their numbers.

A cell carries its text as token ids and its model by name and hash, so it can be evaluated anywhere that has
the model. Two cells with equal inputs, in equal environments, give the same numbers to the last bit.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import numbers
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from knorm_core.arguments import Arguments
from knorm_core.evaluation import Evaluation
from knorm_core.evaluator import Evaluator
from knorm_core.inputs.loaded import is_as_loaded, loaded
from knorm_core.inputs.models import ModelIdentity, ModelNotFoundError, model_folder, model_identity
from knorm_core.inputs.texts import load_texts
from knorm_core.inputs.tokenizers import load_tokenizer
from knorm_core.policy import Policy
from knorm_core.policy_names import find_policy, policy_identity, policy_label
from knorm_core.sweeps.environment import environment

_DEFAULTS = {field.name: field.default for field in fields(Arguments)}


@dataclass(frozen=True, eq=False)
class Cell:
    """One evaluation of a sweep.

    Attributes:
        model: name, as for `load_model`.
        weights, tokenizer, config: SHA-256, as `model_identity` has them.
        text: what to call the text.
        input_ids: its token ids (n,), int64.
        arguments: of `evaluate`, but no ``compressor``: a function has no identity to store a result by.
        dtype: torch's name of it.
        device: of torch.
        onednn: whether linear layers in float32 multiply with oneDNN (see `knorm_core.inputs.onednn`).
    """

    model: str
    weights: str
    tokenizer: str
    config: str
    text: str
    input_ids: torch.Tensor
    arguments: Mapping[str, Any]
    dtype: str = "float64"
    device: str = "cpu"
    onednn: bool = False

    def __post_init__(self) -> None:
        Arguments.of(self.arguments)  # an argument that does not exist must not be looked up without it
        if self.arguments.get("compressor") is not None:
            raise TypeError(
                f"compressor={self.arguments['compressor']!r} cannot go into a cell: results are found again by what "
                f"they were computed from, and a function has no identity; use a policy, or evaluate"
            )
        if "skip_layers" in self.arguments:  # any iterable of them, which may be used up by going through it
            layers = self.arguments["skip_layers"]
            layers = layers if isinstance(layers, str) else list(layers)  # evaluate is to refuse what it was given
            object.__setattr__(self, "arguments", {**self.arguments, "skip_layers": layers})

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments.items())
        return f"{self.model} on {self.text} ({arguments}, {self.dtype} on {self.device})"

    @property
    def policy_identity(self) -> str | None:
        """What the store knows the policy by; None where it has no identity, so that nothing is stored."""
        given = {name: self.arguments.get(name, _DEFAULTS[name]) for name in ("policy", "seed")}
        try:
            policy = find_policy(**given)
        except (TypeError, ValueError):
            return str(given["policy"])  # evaluate is to refuse it
        return policy_identity(policy)

    def inputs(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides this cell's numbers, every argument among it whether given or not; see `inputs_of`."""
        return inputs_of(
            "evaluation",
            weights=self.weights,
            tokenizer=self.tokenizer,
            config=self.config,
            input_ids=self.input_ids,
            settings={
                **{name: _plain(name, self.arguments.get(name, default)) for name, default in _DEFAULTS.items()},
                "policy": self.policy_identity,
            },
            dtype=f"{self.dtype} by oneDNN" if self.onednn else self.dtype,
            environment=environment,
        )


def inputs_of(
    what: str,
    *,
    weights: str,
    tokenizer: str,
    config: str,
    input_ids: torch.Tensor,
    settings: Any,
    dtype: str,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides a result, as JSON holds it: the key of `knorm_core.sweeps.store`.

    Args:
        what: was computed.
        weights, tokenizer, config: SHA-256, as `model_identity` has them.
        input_ids: (n,), integers.
        settings: all others.
        dtype: of weights and activations.
        environment: see `environment`.
    """
    return {
        "what": what,
        "settings": settings,
        "dtype": dtype,
        "weights": weights,
        "tokenizer": tokenizer,
        "config": config,
        "input_ids": hashlib.sha256(input_ids.long().cpu().numpy().tobytes()).hexdigest(),
        "environment": dict(environment),
    }


def _plain(name: str, value: Any) -> Any:
    """An argument of `evaluate` in its one stored form: values that mean the same to `evaluate` are equal in it."""
    if name == "skip_layers" and all(map(_is_integer, value)):
        return sorted({int(layer) for layer in value})
    if name in ("keep_ratio", "budget") and isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(name, each) for each in value]
    if _is_integer(value) and name != "keep_ratio":
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        exact = Fraction(str(value))  # it counts as the decimal that it is written as
        return float(exact) if Fraction(str(float(exact))) == exact else str(exact)
    return value  # as it is, where evaluate refuses it


def _shown(value: Any) -> Any:
    return policy_label(value) if isinstance(value, Policy) else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


class Bench:
    """Evaluates one cell at a time, keeping the last model and what rows of the last text have in common.

    The model is what `knorm_core.inputs.loaded.loaded` has under the cell's name, and nobody else's: a result is
    stored under the hash of the weights that gave it.

    Attributes:
        loaded: how many models were taken up.
    """

    def __init__(self) -> None:
        self.loaded = 0
        self._model: tuple[tuple[str | bool, ...], nn.Module] | None = None
        self._evaluator: Evaluator | None = None
        self._around: dict[str, Any] = {}  # the switches under which the evaluator has computed what it keeps
        self._lock = threading.Lock()

    def __call__(self, cell: Cell) -> Evaluation:
        """`evaluate` of the cell.

        Raises:
            ModelNotFoundError: the model is not here, or is another one of that name.
            Whatever `evaluate` raises.
        """
        with self._lock:
            model = self._model_of(cell)
            evaluator = Evaluator(model, cell.input_ids)
            last, around = self._evaluator, environment(cell.device)
            same = last is not None and last.model is model and torch.equal(last.ids, evaluator.ids)
            if last is not None and same and self._around == around:
                evaluator = last
            self._around = around
            self._evaluator = evaluator  # the last one, and its phase 1, go before the next one takes memory
            return evaluator.run_shared(evaluator.setting(cell.arguments))

    def _model_of(self, cell: Cell) -> nn.Module:
        key: tuple[str | bool, ...] = (cell.model, cell.weights, cell.config, cell.dtype, cell.device, cell.onednn)
        if self._model is None or self._model[0] != key or not is_as_loaded(self._model[1]):
            self._model = self._evaluator = None
            model, _, here = loaded(
                cell.model,
                cell.dtype,
                cell.device,
                ModelIdentity(cell.weights, cell.tokenizer, cell.config),
                onednn=cell.onednn,
            )
            pairs = (("weights", here.weights, cell.weights), ("a configuration", here.config, cell.config))
            for what, digest, expected in pairs:
                if digest != expected:
                    raise ModelNotFoundError(
                        f"model {cell.model!r} has {what} of SHA-256 {digest[:12]}… here, and {expected[:12]}… where "
                        f"the sweep was made"
                    )
            self._model = (key, model)
            self.loaded += 1
        return self._model[1]


def sweep_cells(
    models: Iterable[str],
    texts: Iterable[str],
    *,
    keep_ratios: Iterable[float],
    positions: Iterable[str] = ("absolute",),
    policies: Iterable[str | Policy] = ("low_norm",),
    dtypes: Iterable[str] = ("float64",),
    device: str = "cpu",
    max_eval_tokens: int | None = None,
    text_dir: str | None = None,
    **arguments: Any,
) -> list[Cell]:
    """Every combination, a model at a time and a text at a time.

    Args:
        models: names, as for `load_model`.
        texts: names of text sets, as for `load_texts`; each of their texts is used.
        keep_ratios, positions, policies: of `evaluate`.
        dtypes: torch's names.
        device: where to evaluate.
        max_eval_tokens, text_dir: of `load_texts`.
        **arguments: of `evaluate`, the same for all cells.
    """
    if "skip_layers" in arguments:
        arguments["skip_layers"] = list(arguments["skip_layers"])
    rows = [
        {"keep_ratio": ratio, "positions": mode, "policy": policy, **arguments}
        for policy, mode, ratio in itertools.product(policies, positions, keep_ratios)
    ]
    texts, dtypes, cells = list(texts), list(dtypes), []
    for model in models:
        folder = model_folder(model)
        identity = model_identity(model, folder)
        tokenizer = load_tokenizer(folder)
        ids_of_text = {
            f"{name}: {text.title}": text.input_ids
            for name in texts
            for text in load_texts(name, tokenizer, max_eval_tokens=max_eval_tokens, text_dir=text_dir)
        }
        cells += [
            Cell(model, *identity, title, input_ids, row, dtype, device)
            for dtype, (title, input_ids), row in itertools.product(dtypes, ids_of_text.items(), rows)
        ]
    return cells
