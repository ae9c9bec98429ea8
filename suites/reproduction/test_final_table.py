"""The report's final table on its own model: which evaluation printed it. `tox -e pythia` ends with the answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knorm_core import REPORT_PROTOCOL
from knorm_core.experiments.identification import ReportBench, combinations, described, identify
from knorm_core.inputs.text_sources import pg19_whole
from knorm_core.inputs.texts import TEXT_SETS
from knorm_core.plugin.inputs import made_from

pytestmark = [pytest.mark.repro, pytest.mark.xdist_group("final table")]

SHOWN = 6  # classes, the nearest first


def test_the_final_table_is_traced_to_a_class_of_evaluations(language_model, request, answer, show_table, record_table):
    if language_model.name != REPORT_PROTOCOL.model:
        pytest.skip(f"the report's table is of {REPORT_PROTOCOL.model}: tox -e pythia")
    folder = request.config.getoption("knorm_text_dir") or os.environ.get("KNORM_TEXT_DIR")
    mirror = Path(folder) if folder else None
    rows, books = ([text for _, text in source(mirror)] for source in (TEXT_SETS["wikitext-short"].source, pg19_whole))
    result = identify(ReportBench(language_model.model, language_model.tokenizer, rows, books))
    anchors = [
        {"anchor": name, "printed": printed, "measured": measured, "off": measured / printed - 1}
        for name, (printed, measured) in result.anchors.items()
    ]
    classes = [
        {
            "class": described(judged.members),
            **{f"{column} {ratio}": ppl for (column, ratio), ppl in judged.table.items()},
            "furthest": judged.furthest,
            "within noise": sum(judged.within.values()),
        }
        for judged in result.judged
    ]
    source = made_from(language_model, [], final_table=True)
    record_table(f"{language_model.slug}/report/anchors", anchors, key=("anchor",), made_from=source)
    record_table(f"{language_model.slug}/report/final-table", classes, key=("class",), made_from=source)
    show_table("the report's anchors", [row | {"off": f"{row['off']:+.2%}"} for row in anchors])
    show_table("which evaluation printed the report's final table", classes[:SHOWN], result.sentence())
    answer(result.sentence())
    assert sum(len(judged.members) for judged in result.judged) == len(combinations())
