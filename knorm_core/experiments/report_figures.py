"""What the report printed: its final table, and the figures whose protocol is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Cell = tuple[str, float]  # column, keep ratio
COLUMNS = ("Wikitext", "PG-19")
RATIOS = (1.0, 0.9, 0.5, 0.1)
EARLY_RATIOS = (0.9, 0.8, 0.7, 0.5)
Mixture = tuple[int, int]  # the first so many rows, and the first so many books

#: The stage of the report that compressed at 32 of 256 tokens and scored from token 1.
EARLY = {"prune_after": 32, "adjust": False, "score_from": "start"}
EARLY_TOKENS = 256


@dataclass(frozen=True)
class Figures:
    """What was printed: the table to identify, and figures of known protocol.

    Attributes:
        final: perplexity by column and keep ratio.
        rows: perplexities of the first Wikitext rows, uncompressed, whole.
        columns: uncompressed perplexity by column, whole texts.
        mean: the mean over all texts of both columns.
        early: perplexity by column and keep ratio of the stage `EARLY`.
        mixtures: of the same stage, the mean over texts of both columns, by keep ratio.
        long_books: uncompressed perplexity of long books on phase 2; None where there are none.
    """

    final: Mapping[Cell, float]
    rows: tuple[float, ...]
    columns: Mapping[str, float]
    mean: float
    early: Mapping[Cell, float]
    mixtures: Mapping[Mixture, Mapping[float, float]]
    long_books: float | None

    def anchors(self) -> dict[str, float]:
        """The figures of known protocol by name, in order of trust; the first ones are `whole_texts`."""
        return {
            **self.whole_texts(),
            **{f"{column}, {_at(ratio)}": ppl for (column, ratio), ppl in self.early.items()},
            **{
                f"{rows} rows and {books} books, {_at(ratio)}": ppl
                for (rows, books), ppls in self.mixtures.items()
                for ratio, ppl in ppls.items()
            },
            **({} if self.long_books is None else {"long books, phase 2": self.long_books}),
        }

    def whole_texts(self) -> dict[str, float]:
        """The anchors that a plain forward gives: the table is judged only where these come out."""
        return {
            **{f"Wikitext row {number}": ppl for number, ppl in enumerate(self.rows, start=1)},
            **{f"{column}, uncompressed": ppl for column, ppl in self.columns.items()},
            "mean of both": self.mean,
        }


def _at(ratio: float) -> str:
    return "uncompressed" if ratio == 1 else f"keep {ratio} at 32 of 256 tokens"


#: `knorm_core.protocols.REPORT`: the file of the final report, USAGE_GUIDE_CN.md, PPL_FIXED_FINAL_CN.md,
#: U_CURVE_EXPLANATION_CN.md (three rows and two books), KV_ORDER_BUG_FIXED_CN.md (two and two),
#: results/compression_comparison.png.
REPORT_FIGURES = Figures(
    final={
        ("Wikitext", 1.0): 75.03, ("Wikitext", 0.9): 84.55, ("Wikitext", 0.5): 89.41, ("Wikitext", 0.1): 161.37,
        ("PG-19", 1.0): 39.72, ("PG-19", 0.9): 57.48, ("PG-19", 0.5): 50.59, ("PG-19", 0.1): 51.73,
    },
    rows=(76.04, 52.61),
    columns={"Wikitext": 75.03, "PG-19": 39.49},
    mean=60.81,
    early={
        ("Wikitext", 0.9): 196.39, ("Wikitext", 0.8): 158.97, ("Wikitext", 0.7): 156.99, ("Wikitext", 0.5): 157.54,
        ("PG-19", 0.9): 146.12, ("PG-19", 0.8): 121.29, ("PG-19", 0.7): 116.20, ("PG-19", 0.5): 105.55,
    },
    mixtures={
        (3, 2): {0.95: 240.87, 0.85: 154.59, 0.75: 136.79, 0.6: 135.12, 0.4: 139.64, 0.3: 140.14},
        (2, 2): {1.0: 51.91, 0.9: 165.81, 0.8: 135.16, 0.7: 124.54, 0.5: 122.10, 0.3: 123.22},
    },
    long_books=47.35,
)  # fmt: skip
