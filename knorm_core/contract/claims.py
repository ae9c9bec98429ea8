"""What a compressor or an evaluator says of itself: it is held to its claims and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from knorm_core.compressor import l2_compress
from knorm_core.counts import effective_prune_after, kept_count

CountRule = Callable[[int, float], int]


def kvpress_count(length: int, keep_ratio: float) -> int:
    """The count rule of kvpress 0.5: ``int(length * (1 - compression_ratio))`` in binary, at least 1.

    >>> kvpress_count(100, 0.55), kvpress_count(100, 0.07), kvpress_count(3, 0.5)
    (55, 7, 1)
    """
    return max(1, int(length * (1 - (1 - keep_ratio))))


@dataclass(frozen=True)
class Claims:
    """What a compressor promises. The defaults are those of `knorm_core.l2_compress`.

    Attributes:
        count: rule (length, keep_ratio) to the number of keys kept, or None: no rule is promised.
        threshold: takes ``prune_after``, and compresses a layer exactly if it holds at least that many
            keys. False: it is called without the argument and compresses every time.
        skip_layers: takes ``skip_layers``. False: it is called without the argument.
        order: survivors stay in temporal order.
        leaves_input: the cache that is passed in is not modified.
        copies: a compressed layer has storage of its own, so that what was evicted is freed.
        value_dim: values may be wider or narrower than keys.
        layers: each layer is compressed as if it were alone.
        refuses_ratio: keep ratios outside (0, 1] raise.
        key_norm: the keys of smallest L2 norm survive; without it none of the key-norm checks apply.
        ties: of keys of equal norm, the earlier survives.
        rounded: norms that differ by rounding noise only (below 16 significant bits) count as equal.
        refuses_nan: NaN or infinite keys raise.
        equal_lengths: it can only be given layers of equal length.
        min_length: the shortest layer that it can be given.
    """

    count: CountRule | None = kept_count
    threshold: bool = True
    skip_layers: bool = True
    order: bool = True
    leaves_input: bool = True
    copies: bool = True
    value_dim: bool = True
    layers: bool = True
    refuses_ratio: bool = True
    key_norm: bool = True
    ties: bool = True
    rounded: bool = True
    refuses_nan: bool = True
    equal_lengths: bool = False
    min_length: int = 1


#: A kvpress press: compresses whatever it is given, in place, and returns survivors in score order. What
#: scores with queries depends on the weights of its layer, so ``layers`` is left out as well.
KVPRESS = Claims(
    count=kvpress_count,
    threshold=False,
    skip_layers=False,
    order=False,
    leaves_input=False,
    value_dim=False,
    layers=False,
    key_norm=False,
    ties=False,
    rounded=False,
    refuses_nan=False,
    equal_lengths=True,
)


@dataclass(frozen=True)
class EvaluatorClaims:
    """The protocol that an evaluator says it follows, in the words of `knorm_core.evaluate`.

    Attributes:
        compressor: a callable with the signature of `l2_compress`, called with a `DynamicCache`: what
            the evaluator compresses with.
        adjust: ``prune_after`` is lowered to fit the text. False: it is taken as given.
        score_from: "phase2", or "start" to score from token 1 on.
        skip_layers: layers that it leaves uncompressed.
        when: "every_step", or "after_prefill": once, before the first token of phase 2.
    """

    compressor: Callable[..., Any] = l2_compress
    adjust: bool = True
    score_from: str = "phase2"
    skip_layers: tuple[int, ...] = ()
    when: str = "every_step"

    def start(self, seq_len: int, prune_after: int) -> int:
        """P, the tokens of phase 1."""
        return effective_prune_after(seq_len, prune_after) if self.adjust else prune_after

    def scored(self, seq_len: int, prune_after: int) -> range:
        """Indices of the tokens whose loss is to be returned."""
        return range(1 if self.score_from == "start" else self.start(seq_len, prune_after) + 1, seq_len)
