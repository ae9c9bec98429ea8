"""What the report on Pythia-70M claims, to be shown below what comes out: a claim to test, never a baseline.

Its settings: `prune_after` 256 and `max_eval_tokens` 1,024. Which rows or articles of Wikitext it took, it
does not say, so its column stands below both.
"""

MODEL = "EleutherAI/pythia-70m"
SETTINGS = {"prune_after": (256,), "max_eval_tokens": (1024, None)}  # None: the default of these texts, the same

_WIKITEXT = {1.0: 75.03, 0.9: 84.55, 0.5: 89.41, 0.1: 161.37}
_PERPLEXITY = {
    "wikitext-short": _WIKITEXT,
    "wikitext-articles": _WIKITEXT,
    "pg19": {1.0: 39.72, 0.9: 57.48, 0.5: 50.59, 0.1: 51.73},
}


def reported(model: str, text_set: str, settings: dict[str, object]) -> list[str]:
    """A sentence with the report's perplexities for this table; none where it makes no claim."""
    claims = _PERPLEXITY.get(text_set)
    if model != MODEL or claims is None or any(settings[name] not in values for name, values in SETTINGS.items()):
        return []
    shown = [f"{ratio}: {ppl} ({ppl / claims[1.0] - 1:+.0%})" for ratio, ppl in claims.items() if ratio < 1]
    return [f"The report claims 1.0: {claims[1.0]}, {', '.join(shown)}; nothing here is compared with that."]
