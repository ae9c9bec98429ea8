"""`evaluate`: perplexity of a text under KV-cache compression, and the record of what was evicted.

All functions here are thin around `Evaluator`: one text in one model. It checks every setting, and asks once what
the model allows, before anything runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, TypeVar

import torch
from torch import nn

from knorm_core.arguments import Arguments, check_setting, takes_arguments
from knorm_core.default_device import cpu_by_default
from knorm_core.evaluation import Evaluation
from knorm_core.methods import onepass, stepwise
from knorm_core.methods.anatomy import Anatomy, anatomy
from knorm_core.methods.fed import Prefix
from knorm_core.methods.language_model import as_ids, check_input_ids, check_late_positions, text_config
from knorm_core.methods.prefix import feed_prefix
from knorm_core.methods.probe import Support, support
from knorm_core.setting import Setting, SlowFallbackWarning, UnsupportedModelError

Key = TypeVar("Key", bound=Hashable)

# On a CPU a batch saves only the overhead of many small matrices. SmolLM2-135M, float32, keep 0.5, one thread of an
# AMD EPYC: batches of 2, 4 and 8 take 0.84, 0.87 and 0.83 of the time of their texts one by one at 200 tokens, 0.92,
# 0.99 and 0.90 at 512, and 1.11 (of 2) at 1,024, medians of paired CPU times on a busy machine.
_LONGEST_ON_CPU = 256
# Logits of so many tokens are held at a time, 400 MB of float32 for a vocabulary of 49,152.
_TOKENS_AT_A_TIME = 2048


class Evaluator:
    """One text in one model, ready to be evaluated in any setting.

    Phase 1 (keys and values of every layer) is kept, once fed, for as long as the evaluator lives.

    Args:
        model, input_ids: as for `evaluate`.

    Attributes:
        ids: token ids (n,), int64, on the model's device.

    Raises:
        TypeError, ValueError: they are no token ids of this model.
        UnsupportedModelError: (a ValueError) the model has layers that cannot be evaluated exactly.
    """

    @cpu_by_default()
    def __init__(self, model: nn.Module, input_ids: torch.Tensor | Sequence[int]) -> None:
        self.model = model
        self.ids = check_input_ids(model, input_ids)
        self._supports: dict[Setting, Support] = {}
        self._results: dict[Setting, Evaluation] = {}
        self._fell_back = False
        self._prefixes: dict[tuple[int, int], Prefix] = {}

    def setting(self, arguments: Mapping[str, Any] | Arguments) -> Setting:
        """The arguments of `evaluate`, checked for this text and this model.

        Raises:
            TypeError, ValueError: an argument is wrong.
            NoEvictionError: (a ValueError) evictions were asked for, and there would be none.
            UnsupportedModelError: (a ValueError) the model cannot be evaluated exactly in this setting.
        """
        return self.settings({None: arguments})[None]

    @cpu_by_default()
    def settings(
        self, rows: Mapping[Key, Mapping[str, Any] | Arguments], *, one_pass: bool = False
    ) -> dict[Key, Setting]:
        """The same for every row of arguments; all of them are checked before the model is asked what it allows.

        Args:
            rows: arguments of `evaluate` by any key.
            one_pass: refuse a model that one pass cannot serve, whose losses alone are not enough.
        """
        if not isinstance(rows, Mapping):
            raise TypeError(f"rows is a {type(rows).__name__}: give arguments of evaluate by any key")
        if not rows:
            raise ValueError("no rows: there is nothing to evaluate")
        for key, row in rows.items():
            if not isinstance(row, Mapping | Arguments):
                raise TypeError(f"rows[{key!r}] is a {type(row).__name__}: give arguments of evaluate by name")
        asked = {key: row if isinstance(row, Arguments) else Arguments.of(row) for key, row in rows.items()}
        for row in rows.values():
            self._say_where_a_compressor_overrules(row)
        # What is wrong whatever the model is, before the model is looked at.
        layers = getattr(text_config(self.model), "num_hidden_layers", None) or self._anatomy.layers
        settings = {
            key: check_setting(arguments, seq_len=len(self.ids), layers=layers, sliding={})
            for key, arguments in asked.items()
        }
        for policy in {setting.policy for setting in settings.values() if setting.compressor is None}:
            policy.check(self.model, self.ids)
        seen = self._anatomy
        if seen.windows or seen.first_position or seen.layers != layers:
            settings = {key: self._checked(arguments) for key, arguments in asked.items()}
        for setting in settings.values():
            allowed = self._support(setting)
            if one_pass and allowed.method != "onepass":
                raise UnsupportedModelError(
                    f"this needs one pass, which cannot serve {type(self.model).__name__}: {allowed.reason}; "
                    f"`evaluate` can, stepwise"
                )
        return settings

    @cpu_by_default()
    def run(self, setting: Setting) -> Evaluation:
        """Evaluate one setting by itself."""
        if self._support(setting).method == "onepass":
            return Evaluation.of(setting, onepass.run(self.model, self.ids, setting))
        return self._stepwise(setting)

    @cpu_by_default()
    def run_shared(self, setting: Setting) -> Evaluation:
        """The same numbers as `run`, but phase 1, and settings that are equal by definition, are computed only once.

        Settings at keep ratio 1 are the same by definition, and so are both position modes where layer 0 is skipped.
        """
        if setting.method == "stepwise":  # the oracle shares nothing
            return self.run(setting)
        same = setting.plainest
        if same not in self._results:
            if self._support(setting).method == "onepass":
                nll = onepass.run(self.model, self.ids, same, self.prefix(same))
                self._results[same] = Evaluation.of(same, nll)
            else:
                self._results[same] = self._stepwise(setting)
        return self._results[same]

    @cpu_by_default()
    def run_together(self, setting: Setting, ids: torch.Tensor) -> list[Evaluation]:
        """The evaluations of several texts of this length, int64 (batch, n), where one pass serves the setting."""
        return [Evaluation.of(setting, nll) for nll in onepass.run(self.model, ids, setting)]

    def falls_back(self, setting: Setting) -> bool:
        """Whether one pass was asked for and cannot serve the model; if so, warn once and give the reason."""
        allowed = self._support(setting)
        if setting.method != "onepass" or allowed.method == "onepass":
            return False
        if not self._fell_back:
            self._fell_back = True
            _warn_caller(
                f"{type(self.model).__name__} is evaluated token by token, since one pass cannot serve it: "
                f"{allowed.reason}. The numbers are the definition's, and take about one forward pass per token",
            )
        return True

    @cpu_by_default()
    def prefix(self, setting: Setting) -> Prefix:
        """Phase 1, fed once for all settings that share its length and scoring."""
        shared = (setting.start, setting.first_scored)
        if shared not in self._prefixes:
            self._prefixes[shared] = feed_prefix(self.model, self.ids, setting)
        return self._prefixes[shared]

    def _say_where_a_compressor_overrules(self, row: Mapping[str, Any] | Arguments) -> None:
        """Whether one pass was asked for by name, which cannot run a function: "onepass" is the default, too."""
        if isinstance(row, Arguments) or row.get("method") != "onepass" or self._fell_back:
            return
        if (compressor := row.get("compressor")) is not None:
            self._fell_back = True
            name = getattr(compressor, "__name__", None) or type(compressor).__name__
            _warn_caller(
                f"compressor={name} is evaluated token by token in spite of method='onepass': one pass can run a "
                f"policy, not a function"
            )

    @cached_property
    def _anatomy(self) -> Anatomy:
        """What is seen of the model at this length."""
        seen = anatomy(self.model, len(self.ids))
        if seen.refusal:
            raise UnsupportedModelError(seen.refusal)
        check_late_positions(self.model, self.ids, seen.first_position)
        return seen

    def _checked(self, arguments: Arguments) -> Setting:
        seen = self._anatomy
        return check_setting(
            arguments,
            seq_len=len(self.ids),
            layers=seen.layers,
            sliding=seen.windows,
            first_position=seen.first_position,
        )

    def _support(self, setting: Setting) -> Support:
        """What the model allows of a setting, asked once."""
        if setting not in self._supports:
            self._supports[setting] = support(self.model, setting)
        allowed = self._supports[setting]
        if allowed.method == "refused":
            raise UnsupportedModelError(allowed.reason)
        return allowed

    def _stepwise(self, setting: Setting) -> Evaluation:
        self.falls_back(setting)
        nll, evictions = stepwise.run(self.model, self.ids, setting, self._support(setting).attention)
        setting.check_evictions(evictions)
        return Evaluation.of(setting, nll, evictions)


@takes_arguments
def evaluate(model: nn.Module, input_ids: torch.Tensor | Sequence[int], **arguments: Any) -> Evaluation:
    """Evaluate one text in two phases: fill the cache, then compress before each token and score the next.

    With P the effective prune_after and n the tokens: phase 1 feeds tokens 0 … P-1 and scores nothing;
    phase 2, for i = P … n-2, compresses, feeds token i and scores token i+1: n-1-P scored tokens. The
    model is left as it was found, and several threads may evaluate it at once.

    Args:
        model: a causal language model of transformers, any floating dtype and device.
        input_ids: one text, (n,) or (1, n), at least 34 tokens.
        **arguments: see `Arguments`.

    Raises:
        TypeError, ValueError: an argument is wrong; raised before the model runs.
        NoEvictionError: (a ValueError) ``keep_ratio`` is below 1 and nothing was or would be evicted.
        UnsupportedModelError: (a ValueError) the model cannot be evaluated exactly.
    """
    evaluator = Evaluator(model, input_ids)
    return evaluator.run(evaluator.setting(arguments))


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
    evaluator = Evaluator(model, input_ids)
    return {key: evaluator.run_shared(setting) for key, setting in evaluator.settings(rows).items()}


def evaluate_table(
    model: nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    keep_ratios: Iterable[float],
    positions: Iterable[str] = ("absolute",),
    **arguments: Any,
) -> dict[tuple[str, float], Evaluation]:
    """`evaluate_rows` for every position mode and keep ratio.

    Args:
        model, input_ids: as for `evaluate`.
        keep_ratios, positions: the rows.
        **arguments: as for `evaluate`.

    Returns:
        Evaluation by (positions, keep_ratio), the same numbers as `evaluate` gives.
    """
    positions = (positions,) if isinstance(positions, str) else positions  # which would be gone through by letters
    rows = {
        (mode, ratio): {**arguments, "positions": mode, "keep_ratio": ratio}
        for mode, ratio in product(positions, list(keep_ratios))
    }
    return evaluate_rows(model, input_ids, rows)


@cpu_by_default()
def evaluate_batch(
    model: nn.Module, input_ids: torch.Tensor | Sequence[Sequence[int]], **arguments: Any
) -> list[Evaluation]:
    """`evaluate` for texts of equal length, in as few forward passes as is faster.

    On a GPU all texts go through together, up to 2,048 tokens at a time; on a CPU texts of at most 256
    tokens do, and longer ones go one by one, since a batch of them takes as long.

    Args:
        model: as for `evaluate`.
        input_ids: (batch, n).
        **arguments: as for `evaluate`; the same for all texts.

    Returns:
        An evaluation per text, in order, the same numbers as `evaluate` gives.

    Raises:
        ValueError: the texts are of different lengths, or there are none.
        Whatever `evaluate` raises.
    """
    evaluators = [Evaluator(model, text) for text in _texts(input_ids)]
    settings = [evaluator.setting(arguments) for evaluator in evaluators]
    first, setting = evaluators[0], settings[0]
    if setting.method == "stepwise" or first.falls_back(setting):
        alone = [replace(each, method="stepwise") for each in settings]
        return [evaluator.run(each) for evaluator, each in zip(evaluators, alone, strict=True)]
    ids = torch.stack([evaluator.ids for evaluator in evaluators])
    together = 1 if ids.device.type == "cpu" and ids.shape[1] > _LONGEST_ON_CPU else _TOKENS_AT_A_TIME // ids.shape[1]
    return [each for part in ids.split(max(1, together)) for each in first.run_together(setting, part)]


def _texts(input_ids: torch.Tensor | Sequence[Sequence[int]]) -> torch.Tensor:
    try:
        texts = as_ids(input_ids)
    except ValueError:
        raise ValueError(
            f"input_ids holds texts of {sorted({len(text) for text in input_ids})} tokens: a batch has one length; "
            f"give each text to evaluate"
        ) from None
    if texts.ndim != 2 or not len(texts):
        raise ValueError(f"input_ids has shape {tuple(texts.shape)}: give (batch, n), at least one text")
    return texts


def _warn_caller(sentence: str) -> None:
    """Warn at the line that called into this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in (__package__, "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, SlowFallbackWarning, stacklevel=level)
