"""How the paper's scripts and the report's scripts evaluate, as arguments of `evaluate` and as choices of text.

Facts were read off two public repositories; `CITED` says file by file where. What a repository does not commit
to is marked *inferred* there, and is a switch to be tried, never a known setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from knorm_core.counts import check_choice, check_int

PAPER = "alessiodevoto/l2compress, commit f93d6ca2702d85a2db97d2ef350b44d955609761"
REPORT = "od-liu/CS3602-LLM-Inference-Acceleration, commit ae583008acd42685e7fd4f3ddc5b0f848c56100d"

#: The paper's ``eval_lm_quick.py`` as arguments for `evaluate`. Its threshold depends on the text, so `paper_arguments`
#: adds it; another keep ratio is ``{**PAPER_PROTOCOL, "keep_ratio": 0.5}``. Its texts begin with a BOS token.
PAPER_PROTOCOL: dict[str, Any] = {
    "keep_ratio": 0.98,
    "policy": "low_norm_exact",
    "skip_layers": (0, 1),
    "score_from": "start",
    "adjust": False,
}

#: Layers that each of the paper's scripts leaves alone by default.
PAPER_SKIP_LAYERS: Mapping[str, tuple[int, ...]] = {
    "eval_lm_quick.py": (0, 1),
    "eval_lm.py": (0,),
    "eval_needle.py": (0,),
    "eval_passkey.py": (0,),
}

BASELINES = ("whole", "phase2")


class Citation(NamedTuple):
    """Where a choice can be read: repository and commit, files; ``inferred`` where no file commits to it."""

    repository: str
    files: tuple[str, ...]
    inferred: bool = False


def paper_arguments(seq_len: int, *, evicted: float = 0.5, script: str = "eval_lm_quick.py") -> dict[str, Any]:
    """Arguments of `evaluate` for the paper's language modelling with a share of the text "evicted".

    The scripts evict 2 % whenever the threshold is passed, so that the cache stays at the threshold; a share of
    0.5 is a threshold at half of the text.

    >>> paper_arguments(2000)["prune_after"], paper_arguments(2000, evicted=0.1)["prune_after"]
    (1000, 1800)

    Args:
        seq_len: tokens of the text, its BOS included.
        evicted: share of the text's keys that the cache lacks at its end, in (0, 1).
        script: one of `PAPER_SKIP_LAYERS`, which differ in the layers that they leave alone.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    check_int("seq_len", seq_len, 2)
    check_choice("script", script, tuple(PAPER_SKIP_LAYERS))
    if not 0 < evicted < 1:
        raise ValueError(f"evicted={evicted!r} is outside (0, 1)")
    threshold = max(1, math.ceil(seq_len * (1 - evicted)))
    return {**PAPER_PROTOCOL, "skip_layers": PAPER_SKIP_LAYERS[script], "prune_after": threshold}


@dataclass(frozen=True)
class ReportProtocol:
    """The report's evaluation: each attribute is a choice, and can be another with `dataclasses.replace`.

    Attributes:
        model: name on the Hugging Face hub.
        rows: Wikitext rows that are evaluated, the first that qualify.
        shortest_row: characters that a row has at least, white space at its ends not counted.
        row_characters: a row is cut to this many.
        books: books of PG-19 that are evaluated, the first ones.
        book_characters: a book is cut to this many.
        max_eval_tokens: compressed rows are cut to this many tokens.
        baseline: tokens that the keep-1 row is scored on: the "whole" text from token 1 on, or "phase2", as
            compressed rows are.
        baseline_tokens: a whole text is cut to this many tokens for the keep-1 row.
        prune_after: before it is adjusted to the text.
        skip_layers: layers to leave alone.
        positions: "cache" is what transformers does where no positions are passed; true where layer 0 is left alone.
        first_eviction_after: tokens of phase 2 fed before the first eviction: 0 compresses, then feeds;
            1 feeds, then compresses.
        policy: exact norms.
    """

    model: str = "EleutherAI/pythia-70m-deduped"
    rows: int = 3
    shortest_row: int = 50
    row_characters: int = 1024
    books: int = 2
    book_characters: int = 2048
    max_eval_tokens: int = 1024
    baseline: str = "whole"
    baseline_tokens: int = 512
    prune_after: int = 256
    skip_layers: tuple[int, ...] = (0,)
    positions: str = "cache"
    first_eviction_after: int = 1
    policy: str = "low_norm_exact"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, BASELINES)
        for name in ("rows", "row_characters", "books", "book_characters", "max_eval_tokens", "baseline_tokens"):
            check_int(name, getattr(self, name), 1)

    def wikitext(self, rows: Iterable[str]) -> list[str]:
        """The texts that are taken of the rows of wikitext-2-raw-v1's test split, in order."""
        long_enough = [row for row in rows if len(row.strip()) >= self.shortest_row]
        return [row[: self.row_characters] for row in long_enough[: self.rows]]

    def pg19(self, books: Sequence[str]) -> list[str]:
        """The texts that are taken of the books of PG-19's test split, in order: their front matter."""
        return [book[: self.book_characters] for book in books[: self.books]]

    def arguments(self, keep_ratio: float) -> dict[str, Any]:
        """Arguments of `evaluate` for a text of at most ``max_eval_tokens`` tokens."""
        if keep_ratio == 1:
            return {"keep_ratio": 1.0, "prune_after": self.prune_after, "score_from": _SCORED[self.baseline]}
        return {
            "keep_ratio": keep_ratio,
            "prune_after": self.prune_after,
            "policy": self.policy,
            "skip_layers": self.skip_layers,
            "positions": self.positions,
            "first_eviction_after": self.first_eviction_after,
        }

    def tokens(self, keep_ratio: float) -> int:
        """Tokens that a text is cut to: those of the keep-1 row differ where it is scored as a whole."""
        whole = keep_ratio == 1 and self.baseline == "whole"
        return self.baseline_tokens if whole else self.max_eval_tokens

    @staticmethod
    def average(perplexities: Iterable[float]) -> float:
        """A data set's perplexity: the arithmetic mean of its texts' perplexities."""
        return fmean(perplexities)


_SCORED = {"whole": "start", "phase2": "phase2"}


REPORT_PROTOCOL = ReportProtocol()

#: Where each choice of `REPORT_PROTOCOL` and of `PAPER_PROTOCOL` is committed.
CITED: Mapping[str, Citation] = {
    "report.model": Citation(REPORT, ("optimized_test.py", "compare_methods.py", "simplified_test.py")),
    "report.rows": Citation(REPORT, ("optimized_test.py", "PPL_FIXED_FINAL_CN.md")),
    "report.shortest_row": Citation(REPORT, ("optimized_test.py",)),
    "report.row_characters": Citation(REPORT, ("optimized_test.py",)),
    "report.books": Citation(REPORT, ("optimized_test.py", "PPL_FIXED_FINAL_CN.md")),
    "report.book_characters": Citation(REPORT, ("optimized_test.py",)),
    "report.average": Citation(REPORT, ("optimized_test.py", "compare_methods.py")),
    "report.policy": Citation(REPORT, ("kv_compress.py", "compare_methods.py")),
    "report.prune_after": Citation(REPORT, ("compare_methods.py", "PPL计算问题最终修复.md")),
    "report.max_eval_tokens": Citation(REPORT, ("compare_methods.py", "PPL计算问题最终修复.md")),
    # The committed optimized_test.py is older than the last repair. compare_methods.py has the repaired loop, with
    # the same defaults; that the final table was made the same way is an inference.
    "report.skip_layers": Citation(REPORT, ("optimized_test.py", "compare_methods.py"), inferred=True),
    "report.positions": Citation(REPORT, ("optimized_test.py", "compare_methods.py"), inferred=True),
    "report.first_eviction_after": Citation(REPORT, ("compare_methods.py",), inferred=True),
    "report.baseline": Citation(REPORT, ("optimized_test.py", "PPL_FIXED_FINAL_CN.md"), inferred=True),
    "report.baseline_tokens": Citation(REPORT, ("optimized_test.py",), inferred=True),
    "paper.keep_ratio": Citation(PAPER, ("eval_lm_quick.py", "eval_lm.py")),
    "paper.policy": Citation(PAPER, ("cache.py",)),
    "paper.skip_layers": Citation(PAPER, tuple(PAPER_SKIP_LAYERS)),
    "paper.score_from": Citation(PAPER, ("eval_lm_quick.py", "eval_lm.py")),
    "paper.adjust": Citation(PAPER, ("eval_lm_quick.py", "cache.py")),
    "paper.bos": Citation(PAPER, ("dataset.py",)),
}
