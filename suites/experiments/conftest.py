"""What the experiments share: texts short enough for a processor, baselines, and where claims are made."""

from __future__ import annotations

import functools

import pytest

from knorm_core.experiments.codecs import DIVERGENCE
from knorm_core.experiments.controls import Control, control_rows
from knorm_core.experiments.divergence import divergence
from knorm_core.plugin.inputs import made_from
from knorm_core.sweeps.codec import each

# Tokens and number of texts: 255 scored tokens each at prune_after 256.
TEXTS = {"embedded-articles": (512, 2), "embedded-narrative": (512, 1)}
RATIOS = (0.9, 0.5, 0.1)
DRIFTED = [Control("low_norm", ratio, positions="cache") for ratio in RATIOS]


def on_both_texts(group: str, where: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Run a test on each of TEXTS, beside the group's other tests on the same text.

    Args:
        group: of tests that share what they compute.
        where: the marker of the environment that runs it. Perplexities under compression are `pytest.mark.slow`:
            two or three texts speak of themselves alone, and the main job has many (`test_breadth.py`).
    """
    return pytest.mark.parametrize(
        "text_set",
        [pytest.param(name, marks=[where, pytest.mark.xdist_group(f"{group} {name}")]) for name in TEXTS],
    )


def pytest_itemcollected(item):
    # All experiments are on embedded texts: `--knorm-text pg19` is about others.
    if not item.get_closest_marker("fast"):
        item.add_marker(pytest.mark.reads_text("embedded"))


@pytest.fixture(scope="session")
def short_texts(language_model, texts_of):
    """``short_texts(text_set)``: the first texts of a set, cut to what an experiment can afford."""
    return lambda text_set: texts_of(language_model, text_set, *TEXTS[text_set])


@pytest.fixture
def check_rows(language_model, golden):
    """``check_rows(name, rows, key, texts, **settings)``: against the baseline."""

    def check(name, rows, key, texts, *, rtol=1e-6, atol=0.0, **settings):
        source = made_from(language_model, texts, **settings)
        golden.check(f"{language_model.slug}/{name}", rows, key=key, made_from=source, rtol=rtol, atol=atol)

    return check


@pytest.fixture
def claims(language_model, request):
    """Statements about numbers are made for the embedded model in float64; elsewhere tables are only shown."""
    if language_model.name != "smollm2-135m" or request.config.getoption("knorm_dtype") != "float64":
        pytest.skip("what holds is stated for the embedded model in float64")


@pytest.fixture(scope="session")
def control_tables(language_model, short_texts, remembered):
    """``control_tables(text_set)``: {row: Divergence} per text, computed once per process."""

    @functools.cache
    def tables(text_set):
        rows = {row: row.arguments() for row in [*control_rows(RATIOS), *DRIFTED]}

        def table(text):
            divergences = remembered(
                "divergence",
                f"{text_set}: {text.title}",
                text.input_ids,
                list(rows.values()),
                lambda: list(divergence(language_model.model, text.input_ids, rows).values()),
                each(DIVERGENCE),
            )
            return dict(zip(rows, divergences, strict=True))

        return [table(text) for text in short_texts(text_set)]

    return tables


@pytest.fixture(scope="session")
def evaluations(control_tables):
    """``evaluations(text_set, row)``: one per text."""
    return lambda text_set, row: [table[row].evaluation for table in control_tables(text_set)]
