"""kvpress's scorer presses as policies: any ``ScorerPress``, exactly, at every eviction, in one pass.

kvpress (Devoto et al. 2025, arXiv 2510.00636) is not needed by anything else here, and imported when a press is given.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import torch

from knorm_core.counts import check_int
from knorm_core.policy import Policy, PolicyError, Seen


def press_policy(press: Any, *, window: int | None = None, attentions: bool = False) -> PressPolicy:
    """A press of kvpress that scores keys, as a policy.

    The counts are those of `evaluate`, not the press's ``compression_ratio``, which is set at each eviction such that
    the press would keep the same number.

    Args:
        press: an instance of a subclass of ``kvpress.ScorerPress``. One that needs the model first
            (``post_init_from_model``) has to have seen it.
        window: what the press is given, besides keys and values. None: as in a prefill, hidden states, position
            embeddings and attention of all tokens fed. w: as `kvpress.DecodingPress` does while it decodes, hidden
            states of the latest w tokens, position embeddings and attention of the latest token alone; its w is the
            number of tokens between two evictions.
        attentions: give attention weights, as an eager model does. A press that wants them says so.

    Raises:
        TypeError: it is no such press.
        PolicyError: (a ValueError) its class overrides more than ``score``; the message names what.
    """
    return PressPolicy(press, window, attentions)


class PressPolicy(Policy):
    """See `press_policy`."""

    reads = "hidden_states"

    def __init__(self, press: Any, window: int | None = None, attentions: bool = False) -> None:
        _check_press(press)
        self.press = _Press(press)
        self.window = None if window is None else check_int("window", window, 1)
        self.attentions = attentions

    @property
    def query_window(self) -> int | None:  # type: ignore[override]
        return self.window

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PressPolicy) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.press, self.window, self.attentions))

    def score(self, seen: Seen) -> torch.Tensor:
        # Each text by itself, as nothing of a press promises that it keeps texts of a batch apart.
        return torch.cat([self._score(seen, row) for row in range(seen.keys.shape[0])])

    def _score(self, seen: Seen, row: int) -> torch.Tensor:
        alone = slice(row, row + 1)
        press = copy.deepcopy(self.press.press)  # a press may keep a state; this one is every text's first
        length = seen.keys.shape[2]
        press.compression_ratio = 1 - (seen.kept + 0.5) / length  # of which int(length * (1 - …)) is what stays
        module, embeddings = seen.module, seen.position_embeddings
        if embeddings is not None:
            embeddings = tuple(each[alone] if each.shape[0] > 1 else each for each in embeddings)
            if self.window is not None:
                embeddings = tuple(each[:, -1:] for each in embeddings)
        if not hasattr(module, "rotary_emb"):
            decoder = getattr(seen.model, "base_model", seen.model)
            module.add_module("rotary_emb", getattr(getattr(decoder, "language_model", decoder), "rotary_emb", None))
        attentions = None
        if self.attentions:
            weights = seen.query_attention if self.window is None else seen.attention.unsqueeze(3)
            attentions = weights[alone].flatten(1, 2)
        given = {"hidden_states": seen.hidden_states[alone], "position_embeddings": embeddings}
        # A press may write into what it is given.
        keys, values = seen.keys[alone].clone(), seen.values[alone].clone()
        try:
            scores: torch.Tensor = press.score(module, given["hidden_states"], keys, values, attentions, given)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a press makes of a model or a length that it is not made for
            raise PolicyError(
                f"press {self.press!r} cannot score {length} keys in layer {seen.layer} of "
                f"{type(seen.model).__name__}: {type(error).__name__}: {error}"
            ) from error
        return scores


class _Press:
    """A press that compares and hashes by what it is."""

    def __init__(self, press: Any) -> None:
        self.press = press

    @cached_property
    def identity(self) -> str:
        """Import name, hash of the source of its classes, parameters."""
        import kvpress

        kind = type(self.press)
        kinds = [each for each in kind.__mro__ if issubclass(each, kvpress.ScorerPress)]
        try:
            sources = [inspect.getsource(sys.modules[each.__module__]) for each in kinds]
            parameters = json.dumps(self._parameters(), sort_keys=True, allow_nan=False)
        except (OSError, TypeError, ValueError, KeyError):
            raise AttributeError(f"{kind.__name__} has no identity") from None
        digest = hashlib.sha256("\0".join(sources).encode()).hexdigest()
        return f"{kind.__module__}:{kind.__qualname__} sha256:{digest} {parameters}"

    def _parameters(self) -> dict[str, Any]:
        press = self.press
        declared = [field.name for field in fields(press)] if is_dataclass(press) else list(vars(press))
        return {name: getattr(press, name) for name in sorted({*declared, *vars(press)} - {"compression_ratio"})}

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._parameters().items())
        return f"{type(self.press).__name__}({given})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Press) and (
            self.press is other.press or (type(self.press) is type(other.press) and repr(self) == repr(other))
        )

    def __hash__(self) -> int:
        return hash(type(self.press))


def _check_press(press: Any) -> None:
    try:
        from kvpress import ScorerPress
    except ImportError as error:
        raise TypeError(f"press={press!r}: kvpress is not installed here ({error}); pip install kvpress") from None
    name = type(press).__name__
    if not isinstance(press, ScorerPress):
        raise TypeError(
            f"press={press!r} is not an instance of kvpress.ScorerPress: only what scores keys can be a policy"
        )
    for method in ("compress", "forward_hook", "__call__"):
        if getattr(type(press), method) is not getattr(ScorerPress, method):
            raise PolicyError(
                f"{name} has a {method} of its own, beside its score: who stays does not follow from the scores alone, "
                f"so it cannot be a policy"
            )
