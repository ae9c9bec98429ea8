"""What the report itself claims, to be drawn beside what is measured: the expected values of its claims."""

from __future__ import annotations

import re
from collections.abc import Iterable

from knorm_core.results.records import Verdict

MODEL = "Pythia-70M"
COLUMNS = {"Wikitext": "wikitext-ppl", "PG-19": "pg19-ppl"}  # perplexities, as the ledger's ids name them


def by_keep_ratio(verdicts: Iterable[Verdict], what: str) -> dict[float, float]:
    """Keep ratio, falling -> the number claimed, from the claims whose id is ``report-<what>-<keep ratio>``.

    ``what`` is a perplexity of `COLUMNS`, or "ttft" or "throughput", which are changes in per cent.
    """
    numbers = {}
    for verdict in verdicts:
        ratio = re.fullmatch(rf"report-{what}-([01][.][0-9]+)", verdict.id)
        value = re.fullmatch(r"([+-]?[0-9]+(?:[.][0-9]+)?)( %)?", verdict.expected)
        if ratio and value:
            numbers[float(ratio[1])] = float(value[1])
    return dict(sorted(numbers.items(), reverse=True))


def column_for(text_set: str) -> str:
    """The report's column of texts of the same kind: long narratives against encyclopaedic prose."""
    return "PG-19" if text_set.startswith("pg19") or text_set.endswith("narrative") else "Wikitext"
