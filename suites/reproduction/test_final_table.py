"""The report's final table on its own model: which evaluation printed it. `tox -e pythia` ends with the answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knorm_core import REPORT_PROTOCOL
from knorm_core.experiments.identification import combinations, described, identify
from knorm_core.experiments.report_bench import ReportBench
from knorm_core.experiments.truncation import TruncationRow, truncation, truncation_pairs, truncation_rows
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
    bench = ReportBench(language_model.model, language_model.tokenizer, rows, books)
    result = identify(bench)
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
    if long_books := bench.long_books():
        evaluations = truncation(language_model.model, long_books)
        name, key = f"{language_model.slug}/report/truncation", TruncationRow._fields
        record_table(name, truncation_rows(evaluations), key=key, made_from=source)
        record_table(f"{name}-pairs", truncation_pairs(evaluations), key=("pair",), made_from=source)
        means = [
            {"row": f"{row.policy} {row.keep_ratio}", "ppl": REPORT_PROTOCOL.average(each.ppl for each in texts)}
            for row, texts in evaluations.items()
            if not row.sinks
        ]
        record_table(f"{language_model.slug}/report/long-books", means, key=("row",), made_from=source)
        show_table(
            "the report's long books, means", means, "It printed 47.35 uncompressed, about 71 for low norm at 0.9."
        )
    show_table("the report's anchors", [row | {"off": f"{row['off']:+.2%}"} for row in anchors])
    show_table("which evaluation printed the report's final table", classes[:SHOWN], result.sentence())
    answer(result.sentence())
    assert sum(len(judged.members) for judged in result.judged) == len(combinations())
