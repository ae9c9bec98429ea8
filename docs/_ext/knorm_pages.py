"""Directives that make pages from the project's own data, when the documentation is built.

``{ledger}`` writes every claim with its verdict, ``{verdict-words}`` and ``{verdict-rules}`` what verdicts mean,
``{environments}`` the table of tox's environments. Each makes markdown, which is read like the page around it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from knorm_core.results.families import FAMILIES, answer_of, why_of
from knorm_core.results.records import TRANSFERS, VERDICTS, Verdict
from suites.claims.readme import definitions, ledger
from suites.meta.map import environments

_SOURCES = {"report": "The report on Pythia-70M", "paper": "The paper"}


def ledger_page() -> str:
    """All claims, a column per family; then by source and verdict, with what the tables say, one reason once."""
    verdicts = ledger()
    counts = Counter(verdict.verdict for verdict in verdicts)
    lines = [", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word]) + f"; {len(verdicts)} claims."]
    for source, claims in groupby(verdicts, key=lambda verdict: verdict.source):
        claims = list(claims)
        lines += ["", f"## {_SOURCES.get(source, source)}", "", *_at_a_glance(claims)]
        by_word: dict[str, dict[tuple[str, ...], list[Verdict]]] = {word: defaultdict(list) for word in VERDICTS}
        for verdict in claims:
            by_word[verdict.verdict][verdict.reason, *(why_of(verdict, model) for model in FAMILIES)].append(verdict)
        for word, by_reason in by_word.items():
            if by_reason:
                lines += ["", f"### {word.capitalize()}"]
                for sharing in by_reason.values():
                    lines += ["", *_claims(sharing)]
    return "\n".join(lines)


def _claims(sharing: list[Verdict]) -> list[str]:
    """Claims of which the same is to be said: a list, which a narrow screen shows as well as a wide one."""
    said = sharing[0]
    lines = [f"{each.claim} ({each.where})\\" for each in sharing]
    if said.tables:
        lines.append(said.why)
    if said.needs:
        lines.append(f"Needs {said.needs}.")
    for model, name in FAMILIES.items():
        if why := why_of(said, model):
            lines.append(f"\\\n{name}: **{answer_of(said, model)}**. {why}")
    return [f"{'-' if not index else ' '} {line}" for index, line in enumerate("\n".join(lines).split("\n"))]


def _at_a_glance(claims: list[Verdict]) -> list[str]:
    """A table of one source's claims: the verdict, which is on the claim's own models, and what each family shows."""
    rows = [[each.claim, each.verdict, *(answer_of(each, model) for model in FAMILIES)] for each in claims]
    head = ["claim", "verdict", *FAMILIES.values()]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def verdict_words() -> str:
    """What a verdict means, on the claim's own models and on others."""
    heads = {"| verdict | meaning |": VERDICTS, "| another model | meaning |": TRANSFERS}
    return "\n\n".join("\n".join([head, "|---|---|", *definitions()[head]]) for head in heads)


def verdict_rules() -> str:
    """The rules of the checks."""
    head = "| rule | what it says |"
    return "\n".join([head, "|---|---|", *definitions()[head]])


class _Page(SphinxDirective):
    """Markdown that a function makes, in the place of the directive."""

    make: Callable[[], str]

    def run(self) -> list[nodes.Node]:
        # MyST reads markdown itself, headings among it; docutils alone would read reStructuredText.
        self.state._renderer.nested_render_text(type(self).make(), self.lineno, heading_offset=0)
        return []


def setup(app: Sphinx) -> dict[str, Any]:
    made = {
        "ledger": ledger_page,
        "verdict-words": verdict_words,
        "verdict-rules": verdict_rules,
        "environments": environments,
    }
    for name, make in made.items():
        app.add_directive(name, type(f"_{name}", (_Page,), {"make": staticmethod(make)}))
    return {"parallel_read_safe": True}
