"""The sentence above the trail's figure follows from its data."""

from __future__ import annotations

import pytest

from knorm_core.report import trail
from knorm_core.results.records import Results, Table

pytestmark = pytest.mark.fast


def rows(stage, ratios):
    return [
        {"stage": stage, "texts": "narrative", "keep_ratio": keep, "ppl": 20 * ratio, "ratio": ratio}
        for keep, ratio in zip((1.0, 0.9, 0.5), ratios, strict=True)
    ]


def test_stages_that_evict_nothing_are_told_from_those_that_bend():
    stages = [*rows("0: never", (1, 1, 1)), *rows("2: at 32", (1, 2.5, 1.5)), *rows("4: at 512", (1, 1, 1))]
    assert trail.finding(stages) == (
        "Stages 0 and 4 print one perplexity at every keep ratio: nothing is evicted. Of the others 2 is worst at keep "
        "0.9 (+150 %)."
    )
    assert trail.finding(rows("2: at 32", (1, 1.1, 1.3))) == "Of the others 2 is worst at keep 0.5 (+30 %)."


def test_the_section_has_a_figure_and_the_table_of_what_made_each_curve():
    table = Table("tiny/report/trail", ["stage", "texts", "keep_ratio"], rows("2: at 32", (1, 2.5, 1.5)))
    words = [{"stage": "2: at 32", "fault": "a threshold of 32", "caught by": "a check"}]
    stages = Table("tiny/report/trail-stages", ["stage"], words)
    section = trail.section(Results(tables=[table, stages]))
    [figure] = section.figures
    assert "2: at 32, keep 0.9: +150 %" in figure.panels[0].svg
    assert section.tables[0].rows == [["2: at 32", "a threshold of 32", "a check"]]
    assert trail.section(Results()).absent
