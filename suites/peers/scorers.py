"""kvpress's scorer presses as policies: which hold, in what circumstances, and why others do not.

`docs/kvpress.md` has this as a table; kvpress is imported when a press is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from suites.peers.presses import press

#: Tiny models of these families, whose attention kvpress's hook knows.
FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3")

YES, IN_ORDER = "yes", "in temporal order"
_RANKS = "of equal ranks in two partitions, topk takes either"
_SHORT = "needs more hidden states than the one that kvpress hands on"
_SINKS = "of one hidden state, none is left beside its n_sink: kvpress scores NaN"
_PREFILL = "refuses to score anything but a prefill"


@dataclass(frozen=True)
class Scorer:
    """One press, and where its policy gives kvpress's own perplexity.

    Attributes:
        label: its class, or what it wraps as well.
        build: from a compression ratio to the press.
        attentions: whether it is given attention, by eager code.
        families: those of `FAMILIES` that the press can score at all.
        every_step, fixed_budget: whether it does through ``DecodingPress``; `IN_ORDER` where its score depends on the
            order of the cache, so that it does once survivors are put in temporal order; else why it does not.
    """

    label: str
    build: Callable[[float], Any]
    attentions: bool = False
    every_step: str = YES
    fixed_budget: str = YES
    families: tuple[str, ...] = FAMILIES
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _scorer(name: str, label: str = "", inner: str = "", **given: Any) -> Scorer:
    declared = {key: given.pop(key) for key in ("attentions", "every_step", "fixed_budget", "families") if key in given}
    build = press(name, *([inner] if inner else []), **given)
    return Scorer(label or name, build, arguments=given, **declared)


_WITH_HEAD_DIM = ("llama", "mistral", "qwen3")  # the others' configurations have none
_WITHIN_A_WINDOW = {"every_step": IN_ORDER, "fixed_budget": _SHORT}
_BESIDE_SINKS = {"fixed_budget": _SINKS}
_AS_TO_ORDER = {"every_step": IN_ORDER, "fixed_budget": IN_ORDER}
SCORERS = (
    _scorer("KnormPress"),
    _scorer("KeyDiffPress"),
    _scorer("StreamingLLMPress", **_AS_TO_ORDER),
    _scorer("CURPress", **_AS_TO_ORDER),
    _scorer("LagKVPress", lag_size=4, every_step=IN_ORDER, fixed_budget=_RANKS),
    _scorer("RandomPress", seed=0, **_AS_TO_ORDER),
    _scorer("TOVAPress"),
    _scorer("TOVAPress", "TOVAPress, eager", attentions=True),
    _scorer("SnapKVPress", window_size=4, **_WITHIN_A_WINDOW),
    _scorer("SnapKVPress", "SnapKVPress, eager", window_size=4, attentions=True, **_WITHIN_A_WINDOW),
    _scorer("ObservedAttentionPress", attentions=True, **_AS_TO_ORDER),
    _scorer("ExpectedAttentionPress", **_BESIDE_SINKS),
    _scorer("CapPress", **_BESIDE_SINKS),
    _scorer("NonCausalAttnPress", chunk_size=8, every_step=_PREFILL, fixed_budget=_PREFILL),
    _scorer("CriticalKVPress", "CriticalKVPress around KnormPress", "KnormPress", families=_WITH_HEAD_DIM),
)

#: Scorer presses that are not in the table, and why.
LEFT_OUT: Mapping[str, str] = {
    "PyramidKVPress": "overrides `compress`: refused by name, its budgets would be missed; `pyramidkv` is our own",
    "QFilterPress": "takes its directions from the hub; with those of `fit_q_filters` it is our `q_filters`",
    "ExpectedAttentionStatsPress": "takes statistics of one model from the hub",
    "KVzapPress": "takes trained weights of one model from the hub",
    "LeverageScorePress": "projects on random directions, drawn without a seed",
    "CompactorPress": "projects on random directions, drawn without a seed",
}


def page() -> str:
    """The tables of the page."""
    lines = ["| press | after a prefill | at every step | fixed budget |", "|---|---|---|---|"]
    for each in SCORERS:
        arguments = ", ".join(f"{key}={value}" for key, value in each.arguments.items())
        name = f"{each.label}{f' ({arguments})' if arguments else ''}"
        lines.append(f"| {name} | {YES} | {each.every_step} | {each.fixed_budget} |")
    lines += ["", "| not in the table | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in LEFT_OUT.items()]
    return "\n".join(lines)
