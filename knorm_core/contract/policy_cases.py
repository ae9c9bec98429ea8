"""Evictions of a policy on a tiny model, in one line: what Hypothesis draws, shrinks and prints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from knorm_core.arguments import Arguments, check_setting
from knorm_core.contract import tiny_models
from knorm_core.methods import onepass
from knorm_core.policy import Policy, Seen
from knorm_core.setting import Setting

LAYERS, KV_HEADS = 2, 2  # of tiny_models.llama

#: {(layer, step): positions in the text of the keys that stay, int64 (rows, kv_heads, kept)}
Survivors = dict[tuple[int, int], torch.Tensor]


@dataclass(frozen=True, repr=False)
class PolicyCase:
    """One evaluation of random tokens on a tiny Llama (2 layers, 4 heads, 2 KV heads). Its repr makes it again.

    >>> from knorm_core.policies import Newest
    >>> PolicyCase(seq_len=6, prune_after=4, keep_ratio=0.5).survivors(Newest())[0, 4]
    tensor([[[2, 3],
             [2, 3]]])

    Attributes:
        seq_len: tokens of each text.
        prune_after, keep_ratio, sinks, recent: as of `knorm_core.evaluate`.
        seeds: of the texts, one per row of a batch.
        later: from this token on the texts are others.
        one_token: every token is the same.
        other_head: this KV head of layer 0 has other queries, keys and values, and the queries of its group.
        other: "queries" or "values": those of layer 0 are others.
        dtype: of the model.
    """

    seq_len: int
    prune_after: int
    keep_ratio: float = 0.5
    sinks: int = 0
    recent: int = 0
    seeds: tuple[int, ...] = (0,)
    later: int | None = None
    one_token: bool = False
    other_head: int | None = None
    other: str = ""
    dtype: str = "float64"

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"PolicyCase({', '.join(given)})"

    def but(self, **changes: Any) -> PolicyCase:
        """The same case with some attributes changed."""
        return dataclasses.replace(self, **changes)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `knorm_core.evaluate`, but the policy."""
        names = ("prune_after", "keep_ratio", "sinks", "recent")
        return {name: getattr(self, name) for name in names} | {"adjust": False, "allow_no_eviction": True}

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids (rows, seq_len), int64."""
        texts = [tiny_models.text(self.seq_len, seed) for seed in self.seeds]
        if self.later is not None:
            texts = [(text + (torch.arange(self.seq_len) >= self.later)) % tiny_models.VOCABULARY for text in texts]
        if self.one_token:
            texts = [torch.full_like(text, 7) for text in texts]
        return torch.stack(texts)

    def model(self) -> Any:
        return _model(self.dtype, self.other_head, self.other)

    def setting(self, policy: Policy) -> Setting:
        """The evaluation, checked.

        Raises:
            ValueError: the policy cannot be evaluated so.
        """
        arguments = Arguments(policy=policy, **self.arguments)
        return check_setting(arguments, seq_len=self.seq_len, layers=LAYERS, sliding={})

    def survivors(self, policy: Policy) -> Survivors:
        """Who stays at each eviction, by the engine."""
        setting = self.setting(policy)
        deaths: dict[int, torch.Tensor | None] = {}
        onepass.run(self.model(), self.input_ids, setting, watch=deaths.__setitem__)
        return {
            (layer, step): _alive(dying, step)
            for layer, dying in deaths.items()
            if dying is not None
            for step, _, _ in setting.schedules[layer]
        }


def _alive(deaths: torch.Tensor, step: int) -> torch.Tensor:
    """Keys born before ``step`` that its eviction leaves; -1 fills up where heads keep unequal numbers."""
    alive = deaths[..., :step] > step
    kept = int(alive.sum(-1).max())
    positions = torch.arange(step).expand_as(alive)
    ranked = torch.where(alive, positions, step).sort(dim=-1).values[..., :kept]
    return torch.where(ranked < step, ranked, -1)


@functools.lru_cache(maxsize=16)
def _model(dtype: str, other_head: int | None, other: str) -> Any:
    model = tiny_models.llama()
    attention = model.model.layers[0].self_attn
    width = attention.head_dim
    if other_head is not None:
        group = attention.num_key_value_groups
        own = slice(other_head * width, (other_head + 1) * width)
        for projection in (attention.k_proj, attention.v_proj):
            projection.weight.data[own] = projection.weight.data[own].flip(0) * 3
        own = slice(other_head * group * width, (other_head + 1) * group * width)
        attention.q_proj.weight.data[own] = attention.q_proj.weight.data[own].flip(0) * 3
    if other:
        projection = {"queries": attention.q_proj, "values": attention.v_proj}[other]
        projection.weight.data = projection.weight.data.flip(0) * 3
    return model.to(getattr(torch, dtype))


def spied(policy: Policy, note: Callable[[Seen, torch.Tensor], None]) -> Policy:
    """The same policy, which notes what it is shown and the scores that it gives."""
    kind = type(policy)

    def score(self: Any, seen: Seen) -> torch.Tensor:
        scores = kind.score(self, seen)
        note(seen, scores)
        return scores

    spy: Any = object.__new__(type(kind.__name__, (kind,), {"score": score, "__module__": kind.__module__}))
    spy.__dict__.update(policy.__dict__)
    return spy
