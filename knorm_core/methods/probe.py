"""Which method serves an evaluation of a model: one pass, a real cache, or neither, and why.

What the model allows is seen by `knorm_core.methods.anatomy`; this is the one place that is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from knorm_core.methods.anatomy import Anatomy, anatomy
from knorm_core.methods.cached_attention import WATCHED
from knorm_core.methods.rotation import check_rotation, rotary_frequencies
from knorm_core.methods.stepwise import check_equal_lengths
from knorm_core.setting import Setting, UnsupportedModelError


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


def support(model: nn.Module, setting: Setting) -> Support:
    """What a model allows of this evaluation: the one place that is asked, before anything is evaluated."""
    reach = int(setting.fed_positions().max()) - setting.first_position + 1
    seen = anatomy(model, setting.seq_len, reach)
    if seen.refusal:
        return Support("refused", seen.refusal)
    try:
        if setting.positions == "rerotated":
            check_rotation(model, rotary_frequencies(model))
        elif setting.compressor is None and setting.policy.unrotates:
            whose = f"policy {setting.policy!r}"
            check_rotation(model, rotary_frequencies(model, whose), whose)
        if setting.method == "onepass" and not seen.obstacle:
            return Support("onepass")
        if seen.attention is None:
            alike = [(layer in setting.sliding, setting.schedule(layer)) for layer in range(setting.layers)]
            check_equal_lengths(model, alike)
        attention = _stepwise_attention(model, setting, seen)
    except UnsupportedModelError as refusal:
        return Support("refused", str(refusal))
    return Support("stepwise", seen.obstacle, attention)


def _stepwise_attention(model: nn.Module, setting: Setting, seen: Anatomy) -> str | None:
    if setting.compressor is not None or setting.policy.reads in ("key", "cache"):
        return seen.attention
    if seen.attention is None:
        raise UnsupportedModelError(
            f"policy {setting.policy!r} reads {setting.policy.reads!r}, which {type(model).__name__} does not show: "
            f"{seen.obstacle}; a policy that reads 'key' or 'cache' can be evaluated on it"
        )
    return WATCHED
