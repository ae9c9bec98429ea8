"""Low norm against what it must beat, on many texts: few rows, each with its interval over texts.

Every text has a `prune_after` and two seeds of `random` of its own, so the place of evictions in a text and the luck
of a seed vary between texts, and are in the interval at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from knorm_core.evaluation import Evaluation
from knorm_core.experiments.controls import averaged, pooled
from knorm_core.experiments.intervals import detectable_change, paired_rows, perplexity_ratio
from knorm_core.norms import key_norms, round_norms
from knorm_core.policy import Policy, Seen

TEXTS = 32
#: `pg19-windows` has half as many, all of one book.
SETS = ("embedded-breadth", "wikitext-breadth", "pg19-windows")
RATIOS = (0.9, 0.5, 0.1)
SINKS = 4
#: The mean of all texts' `prune_after`.
PRUNE_AFTER = 256
#: Tokens between two evictions at keep 0.5 and `PRUNE_AFTER`; five periods at keep 0.9. At keep 0.1 a text of 512
#: tokens has one eviction or two, and the second one's place is spread over 1.9 times as many tokens.
PERIOD = 128


def prune_after_of(index: int) -> int:
    """The `prune_after` of one of 32 texts: evenly spread over one period, among neighbours too.

    >>> [prune_after_of(index) for index in range(8)]
    [192, 244, 296, 220, 272, 196, 248, 300]
    >>> sorted(map(prune_after_of, range(32))) == list(range(192, 320, 4))
    True
    """
    # 13/32 is near the golden section, so any few texts in a row, or every eighth, are spread nearly as evenly.
    return PRUNE_AFTER - PERIOD // 2 + PERIOD * (13 * index % TEXTS) // TEXTS


def seeds_of(index: int) -> tuple[int, int]:
    """The seeds of `random` on one text."""
    return 2 * index, 2 * index + 1


class Row(NamedTuple):
    """What tells one row of the table from another."""

    policy: str
    keep_ratio: float
    sinks: int = 0
    recent: int = 0
    skip_layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The row for people.

        >>> Row("random", 0.5, sinks=4).name, Row("low_norm", 0.98, skip_layers=(0, 1)).name
        ('random, 4 sinks', "low norm, the paper's setting")
        """
        parts = [self.policy.replace("_", " ")]
        parts += [f"{self.sinks} sinks"] if self.sinks else []
        parts += [f"{self.recent} recent"] if self.recent else []
        parts += ["the paper's setting"] if self.skip_layers else []
        return ", ".join(parts)

    def arguments(self, index: int) -> list[dict[str, Any]]:
        """Arguments of `evaluate` on one text; two of them, with a seed each, where the row is random."""
        row = self._asdict() | {"policy": _IMPORTED.get(self.policy, self.policy), "prune_after": prune_after_of(index)}
        return [row | {"seed": seed} for seed in seeds_of(index)] if self.policy == "random" else [row]

    @property
    def low_norm(self) -> Row:
        """The row of the method itself at the same keep ratio and layers."""
        return Row("low_norm", self.keep_ratio, skip_layers=self.skip_layers)


@dataclass(frozen=True)
class SinksFirst(Policy):
    """Low norm, but the first four tokens go before all others: what low norm is worth without the sinks."""

    def score(self, seen: Seen) -> torch.Tensor:
        return torch.where(seen.positions < SINKS, torch.iinfo(torch.int64).min, -round_norms(key_norms(seen.keys)))


_IMPORTED = {"low_norm_sinks_first": f"{__name__}:SinksFirst"}


# The paper's script: threshold at half of the text, few keys at a time, layers 0 and 1 left alone.
_PAPER: Mapping[str, Any] = {"keep_ratio": 0.98, "skip_layers": (0, 1)}

UNCOMPRESSED = Row("low_norm", 1.0)
#: Rows of the main job.
ROWS: tuple[Row, ...] = (
    UNCOMPRESSED,
    *(
        row
        for ratio in RATIOS
        for row in (
            Row("low_norm", ratio),
            Row("random", ratio),
            *(Row(policy, ratio, sinks=SINKS) for policy in ("random", "newest", "high_norm")),
            Row("low_norm", ratio, recent=32 if ratio >= 0.5 else 16),  # at keep 0.1 some 26 keys are kept in all
        )
    ),
    *(Row(policy, **_PAPER) for policy in ("low_norm", "random", "high_norm")),
    Row("random", sinks=SINKS, **_PAPER),
)
#: Further rows, for the long form.
FURTHER: tuple[Row, ...] = (
    *(Row(policy, ratio) for ratio in RATIOS for policy in ("high_norm", "low_norm_sinks_first")),
    *(Row("low_norm", ratio, recent=recent) for ratio in (0.9, 0.5) for recent in (16, 64)),
    Row("newest", 0.5),
    Row("low_norm", 0.5, sinks=SINKS),
)


def table(rows: Iterable[Row], evaluations: Mapping[Row, Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Per row: perplexity, its ratio to the uncompressed one and to low norm's, and what can be detected of both.

    Args:
        rows: those to show.
        evaluations: one per text, of these rows, of `UNCOMPRESSED`, and of low norm beside each (`Row.low_norm`).
    """
    return [_columns(row, evaluations) for row in rows]


def _columns(row: Row, evaluations: Mapping[Row, Sequence[Evaluation]]) -> dict[str, Any]:
    ours, low = evaluations[row], evaluations[row.low_norm]
    return {
        **row._asdict(),
        **pooled(ours, evaluations[UNCOMPRESSED]),
        "detectable": detectable_change(ours, evaluations[UNCOMPRESSED]),
        **perplexity_ratio(ours, low).columns("to_low_norm"),
        "to_low_norm_detectable": detectable_change(ours, low),
    }


def compared(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Rows and what each is held against: low norm at its keep ratio, and random with the same tokens protected."""
    rows = list(rows)
    against = [(row, row.low_norm) for row in rows if row not in (UNCOMPRESSED, row.low_norm)]
    against += [
        (row, row._replace(policy="random"))
        for row in rows
        if row.policy in ("high_norm", "newest") or (row.policy == "low_norm" and row.sinks)
    ]
    return [(row, other) for row, other in against if other in rows]


def paired(rows: Iterable[Row], evaluations: Mapping[Row, Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Paired ratios of the rows that are `compared`, labelled as in the table."""
    labels = {row: " ".join(map(str, row)) for row in evaluations}
    pairs = [(labels[row], labels[other]) for row, other in compared(rows)]
    return paired_rows({labels[row]: each for row, each in evaluations.items()}, pairs)


def inversion(rows: Iterable[Row], evaluations: Mapping[Row, Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Perplexity of low norm at keep 0.9 over that at keep 0.5, by how many recent tokens are protected."""
    gentle = [row for row in rows if row.policy == "low_norm" and row.keep_ratio == 0.9 and not row.sinks]
    return [
        {"recent": row.recent}
        | perplexity_ratio(evaluations[row], evaluations[row._replace(keep_ratio=0.5)]).columns("ratio")
        for row in gentle
    ]


def by_row(texts: Sequence[Mapping[Row, Sequence[Evaluation]]]) -> dict[Row, list[Evaluation]]:
    """{row: one evaluation per text}, from each text's evaluations by seed."""
    return {row: [averaged(text[row]) for text in texts] for row in texts[0]}
