"""Which models say nothing of a method: those that have learned nothing."""

from __future__ import annotations

from knorm_core.results.records import VOCABULARY, Results, is_number


def no_evidence(results: Results, model: str) -> str:
    """Why a model is evidence of nothing, as a clause, or empty.

    A model whose uncompressed perplexity is at least half its vocabulary (`VOCABULARY` in what the table was
    made from) predicts less than a bit better than a uniform guess, as random weights do.

    Args:
        results: with the model's tables.
        model: the slug that begins the tables' names.
    """
    for table in results.tables:
        vocabulary = table.made_from.get(VOCABULARY)
        if table.model == model and is_number(vocabulary):
            for row in table.rows:
                ppl = row.get("ppl")
                if row.get("keep_ratio") == 1 and is_number(ppl) and not ppl < vocabulary / 2:
                    return (
                        f"the model has learned nothing, so it is evidence of nothing: uncompressed it has a "
                        f"perplexity of {ppl:,.0f} with a vocabulary of {vocabulary:,}"
                    )
    return ""


def without_evidence(results: Results) -> dict[str, str]:
    """{model: why} of every model that is evidence of nothing."""
    models = dict.fromkeys(table.model for table in results.tables)
    return {model: why for model in models if (why := no_evidence(results, model))}
