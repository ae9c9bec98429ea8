"""pytest's part of knorm: options beside the fixtures that read them, golden files, tables, the terminal.

A repository that wants it names it in the conftest beside its configuration, and then has the options and these
fixtures (``pip install 'knorm[suite]'`` brings what they need)::

    pytest_plugins = ["knorm_core.plugin"]

========================= ==========================================================================================
``language_model``        the model of ``--knorm-model``: ``.model``, ``.tokenizer``, ``.identity`` and ``.slug``, the
                          first part of its tables' names; ``.require(tokens=…, layers=…)`` skips what it cannot run
``embedded_model``        the embedded model in float64, whatever the options say
``texts_of``              ``texts_of(language_model, "embedded-short")``: the texts of a set, as token ids
``text_set``              a text set of ``--knorm-text``; a test that asks for it runs with each
``position_mode``         a mode of ``--knorm-positions``; likewise
``table_settings``        ``.keep_ratios``, ``.prune_after``, ``.max_eval_tokens``, ``.positions`` of the command line
``golden``                ``golden.check(name, rows, key=…, made_from=…)``: numbers against a golden file
``text_snapshot``         ``assert text == text_snapshot``: text against a golden file (syrupy)
``show_table``            ``show_table(title, rows, *notes)``: a table at the end of the run
``record_table``          ``record_table(name, rows, key=…)``: a table for ``--knorm-report``, without golden file
``rows_of``, ``run_all``  evaluations of ``language_model`` from ``--knorm-store`` or ``--knorm-scheduler``
``remembered``            any other result, computed once for its inputs
========================= ==========================================================================================

`made_from` (in `knorm_core.plugin.inputs`) says what a golden file was made from. Golden files lie in ``baselines/``
under pytest's rootdir, or where ``--knorm-baselines DIR`` says; ``pytest --force-regen`` writes them, all or none. So
a repository pins the perplexity of its own policy like this::

    from knorm_core import evaluate
    from knorm_core.plugin.inputs import made_from

    def test_perplexity(language_model, texts_of, table_settings, golden):
        [text] = texts_of(language_model, "embedded-narrative", table_settings.max_eval_tokens)
        rows = [
            {"keep_ratio": ratio, "ppl": evaluate(language_model.model, text.input_ids, keep_ratio=ratio).ppl}
            for ratio in table_settings.keep_ratios
        ]
        golden.check(
            f"{language_model.slug}/embedded-narrative/ppl{table_settings.suffix}",
            rows,
            key=["keep_ratio"],
            made_from=made_from(language_model, [text], **table_settings.named),
        )
"""

pytest_plugins = [
    f"knorm_core.plugin.{name}"
    for name in (
        "extras",
        "settings", "inputs", "tables", "recorder", "regeneration", "golden", "stored", "progress", "breadth",
        "policies",
    )
]  # fmt: skip
