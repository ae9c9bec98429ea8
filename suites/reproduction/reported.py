"""What the report on Pythia-70M claims, to be shown below what comes out: a claim to test, never a baseline."""

from __future__ import annotations

import functools
from pathlib import Path

from knorm_core.claims.loading import load_claims

CLAIMS = Path(__file__).parents[2] / "baselines" / "claims"
MODEL = "EleutherAI/pythia-70m-deduped"
SETTINGS = {"prune_after": (256,), "max_eval_tokens": (1024, None)}  # None: the default of these texts, the same

# Which rows or articles of Wikitext it took, the report does not say, so its column stands below both.
_COLUMN = {"wikitext-articles": "wikitext-short"}


def reported(model: str, text_set: str, settings: dict[str, object]) -> list[str]:
    """A sentence with the report's perplexities for this table; none where it makes no claim."""
    claims = _perplexities().get(_COLUMN.get(text_set, text_set))
    if model != MODEL or claims is None or any(settings[name] not in values for name, values in SETTINGS.items()):
        return []
    lower = [f"{ratio}: {ppl} ({ppl / claims[1.0] - 1:+.0%})" for ratio, ppl in claims.items() if ratio < 1]
    return [f"The report claims 1.0: {claims[1.0]}, {', '.join(lower)}; nothing here is compared with that."]


@functools.cache
def _perplexities() -> dict[str, dict[float, float]]:
    """Claimed perplexity by text set and keep ratio."""
    perplexities: dict[str, dict[float, float]] = {}
    for claim in load_claims(CLAIMS):
        if claim.source == "report" and claim.check == "cell_value" and claim.arguments.get("column") == "ppl":
            for text_set in claim.text_sets:
                perplexities.setdefault(text_set, {})[claim.arguments["row"]["keep_ratio"]] = claim.expected
    return perplexities
