"""The second family as fixtures: the model that tox assembled, its texts, and its rows on them."""

from __future__ import annotations

import functools

import pytest

from knorm_core.experiments.breadth import RATIOS, SINKS, TEXTS, UNCOMPRESSED, Row
from knorm_core.experiments.breadth import ROWS as BREADTH_ROWS
from knorm_core.plugin.inputs import made_from
from knorm_core.sweeps.cells import Cell
from suites.gemma.package import SHA256
from suites.human_texts import human_or_embedded

#: Rows at each keep ratio: without protection, then with four sinks; and the paper's setting, whose layers 0 and 1
#: are none of those that are compressed.
ROWS = (
    UNCOMPRESSED,
    *(
        row
        for ratio in RATIOS
        for row in (
            *(Row(policy, ratio) for policy in ("low_norm", "random", "high_norm")),
            *(Row(policy, ratio, sinks=SINKS) for policy in ("low_norm", "random", "newest")),
        )
    ),
    *(row for row in BREADTH_ROWS if row.keep_ratio == 0.98),
)
# Between sets of instructions perplexities of 512 tokens move by some 1e-5, and a near tie may evict another key.
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def gemma(language_model):
    """`language_model`, which has to be the pinned file: statements are made of that one."""
    if language_model.identity.weights != SHA256:
        pytest.fail(
            f"--knorm-model={language_model.name} is not Gemma 3 270M, which these tests are about: run tox -e gemma",
            pytrace=False,
        )
    return language_model


@pytest.fixture(scope="session")
def texts_and_notes(gemma, many_texts):
    """The name of a set of many texts, these texts, and notes: human ones where a mirror or the hub has them."""
    name, notes = human_or_embedded(many_texts, "wikitext-breadth", "embedded-breadth")
    return name, many_texts(name), notes


@pytest.fixture(scope="session")
def evaluation_of(gemma, single_precision, texts_and_notes, run_all):
    """``evaluation_of(index)``: {row: evaluation} of one text in float32, computed once per process."""
    name, texts, _ = texts_and_notes

    @functools.cache
    def evaluations(index):
        text = texts[index]
        cells = {
            # One seed a text: with a vocabulary of 262,144 an evaluation takes a processor a second.
            row: Cell(
                gemma.name, *gemma.identity, f"{name}: {text.title}", text.input_ids, row.arguments(index)[0],
                "float32", "cpu", single_precision is not gemma.model,
            )
            for row in ROWS
        }  # fmt: skip
        outcomes = run_all(cells.values())
        return {row: outcomes[cell].result() for row, cell in cells.items()}

    return evaluations


@pytest.fixture
def check_rows(gemma, texts_and_notes, golden, request):
    """``check_rows(name, rows, key, texts, **settings)``: against the model's own baseline.

    With ``of_one_text`` also where fewer texts were asked for than the other tables are of.
    """

    def check(name, rows, key, texts, *, of_one_text=False, **settings):
        if request.config.getoption("knorm_dtype") != "float64":
            pytest.skip("the tables choose their precision themselves: leave --knorm-dtype out")
        if not of_one_text and request.config.getoption("knorm_breadth") < TEXTS:
            pytest.skip(f"the baselines are of {TEXTS} texts: the table is shown at the end and not compared")
        source = made_from(gemma, texts, **settings)
        golden.check(f"{gemma.slug}/{name}", rows, key=key, made_from=source, rtol=TOLERANCE, atol=1e-4)

    return check
