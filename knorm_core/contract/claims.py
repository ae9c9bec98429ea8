"""What a compressor or an evaluator says of itself: it is held to its claims and to nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from knorm_core.compressor import l2_compress
from knorm_core.contract.cases import DTYPES
from knorm_core.counts import SHORTEST_TEXT, effective_prune_after, kept_count

CountRule = Callable[[int, float], int]


def by_binary_ceil(length: int, keep_ratio: float) -> int:
    """ceil(keep_ratio * length) in binary floating point, as the paper's code has it.

    >>> by_binary_ceil(100, 0.55), by_binary_ceil(100, 0.07)  # kept_count: 55 and 7
    (56, 8)
    """
    return math.ceil(keep_ratio * length)


def by_rounding(length: int, keep_ratio: float) -> int:
    """round(keep_ratio * length), at least 1.

    >>> by_rounding(5, 0.5), by_rounding(7, 0.5)
    (2, 4)
    """
    return max(1, round(keep_ratio * length))


def by_floor(length: int, keep_ratio: float) -> int:
    """int(keep_ratio * length) in binary floating point, at least 1: code that truncates.

    >>> by_floor(5, 0.5), by_floor(100, 0.29), by_floor(3, 0.1)
    (2, 28, 1)
    """
    return max(1, int(keep_ratio * length))


def kvpress_count(length: int, keep_ratio: float) -> int:
    """int(length * (1 - compression_ratio)) in binary floating point, at least 1, as kvpress 0.5 has it.

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
        at_threshold: a layer of exactly ``prune_after`` keys is compressed; False: only longer ones are.
        skip_layers: takes ``skip_layers``. False: it is called without the argument.
        order: survivors stay in temporal order.
        leaves_input: the cache that is passed in is not modified.
        unmerged: survivors are keys and values as they were fed; False for methods that merge what they evict
            into what stays.
        copies: a compressed layer has storage of its own, so that what was evicted is freed.
        value_dim: values may be wider or narrower than keys.
        layers: each layer is compressed as if it were alone.
        rows: each row of a batch is compressed as if it were alone.
        deterministic: the same call gives the same survivors.
        refuses_ratio: keep ratios outside (0, 1] raise.
        key_norm: the keys of smallest L2 norm survive; without it none of the key-norm checks apply.
        sinks, recent: so many first and latest tokens survive whatever their norm, within the kept count.
        ties: of keys of equal norm, the earlier survives.
        rounded: norms that differ by rounding noise only (below 16 significant bits) count as equal.
        float32_norms: norms of bfloat16 and float16 keys are computed in at least float32.
        refuses_nan: NaN or infinite keys raise.
        equal_lengths: it can only be given layers of equal length.
        min_length: the shortest layer that it can be given, in keys.
        min_kept: the fewest keys that it can be asked to keep of a layer, by its count rule.
        min_heads: the fewest KV heads that it can be given.
        max_batch: the most batch rows that it can be given; None: any number.
        max_layers: the most layers that it can be given; None: any number.
        dtypes: of the keys and values that it can be given.
        repeats_heads: each KV head comes back this many times over, as models with grouped queries expand
            them; each copy may keep tokens of its own.
    """

    count: CountRule | None = kept_count
    threshold: bool = True
    at_threshold: bool = True
    skip_layers: bool = True
    order: bool = True
    leaves_input: bool = True
    unmerged: bool = True
    copies: bool = True
    value_dim: bool = True
    layers: bool = True
    rows: bool = True
    deterministic: bool = True
    refuses_ratio: bool = True
    key_norm: bool = True
    sinks: int = 0
    recent: int = 0
    ties: bool = True
    rounded: bool = True
    float32_norms: bool = True
    refuses_nan: bool = True
    equal_lengths: bool = False
    min_length: int = 1
    min_kept: int = 1
    min_heads: int = 1
    max_batch: int | None = None
    max_layers: int | None = None
    dtypes: tuple[str, ...] = DTYPES
    repeats_heads: int = 1

    @property
    def several_rows(self) -> bool:
        """A batch may have two rows or more."""
        return self.max_batch is None or self.max_batch > 1

    @property
    def several_layers(self) -> bool:
        """A cache may have two layers or more."""
        return self.max_layers is None or self.max_layers > 1

    @property
    def low_precision(self) -> bool:
        """Keys may be bfloat16 or float16."""
        return bool({"bfloat16", "float16"} & set(self.dtypes))

    @property
    def high_precision(self) -> bool:
        """Keys may be float32 or float64."""
        return bool({"float32", "float64"} & set(self.dtypes))

    @property
    def short_layers(self) -> bool:
        """Layers may be short enough for norms that differ by 0.05 % to be told apart."""
        return self.min_length <= 32

    @property
    def unprotected(self) -> bool:
        """No token survives for its position."""
        return not self.sinks and not self.recent

    @property
    def comparable(self) -> bool:
        """Two calls can be compared: neither of them chooses at random."""
        return self.deterministic

    @property
    def traceable(self) -> bool:
        """Each survivor can be told to be one of the tokens that were fed."""
        return self.unmerged

    @property
    def single_heads(self) -> bool:
        """As many KV heads come back as go in."""
        return self.repeats_heads == 1

    def kept(self, length: int, keep_ratio: float) -> int:
        """The keys that the claimed rule keeps of a layer.

        Raises:
            ValueError: no rule is claimed.
        """
        if self.count is None:
            raise ValueError("count=None: no count rule is claimed")
        return self.count(length, keep_ratio)

    def allows(self, length: int, keep_ratio: float) -> bool:
        """Whether it can be asked to keep this share of a layer of this length."""
        if not 0 < keep_ratio <= 1 or self.count is None:
            return True
        return self.count(length, keep_ratio) >= self.min_kept


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
        positions: "absolute", or "cache": each token is fed at the length of layer 0's cache.
        first_eviction_after: tokens of phase 2 that are fed before the first eviction. Code that feeds a
            token and compresses then has 1: its first eviction meets P + 1 keys, every later one P.
        min_text: the shortest text that it evaluates at ``prune_after=32``, in tokens.
    """

    compressor: Callable[..., Any] = l2_compress
    adjust: bool = True
    score_from: str = "phase2"
    skip_layers: tuple[int, ...] = ()
    when: str = "every_step"
    positions: str = "absolute"
    first_eviction_after: int = 0
    min_text: int = SHORTEST_TEXT

    def start(self, seq_len: int, prune_after: int) -> int:
        """P, the tokens of phase 1."""
        return effective_prune_after(seq_len, prune_after) if self.adjust else prune_after

    def scored(self, seq_len: int, prune_after: int) -> range:
        """Indices of the tokens whose loss is to be returned."""
        return range(1 if self.score_from == "start" else self.start(seq_len, prune_after) + 1, seq_len)
