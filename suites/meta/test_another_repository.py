"""Another repository pins a table of its own model with our fixtures: made, compared, broken, mended."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import datasets  # noqa: F401  pytester forgets what is imported within, and this cannot be imported twice
import pytest
import torch
import transformers

from knorm_core.plugin import ledger
from knorm_core.plugin.progress import Bar
from knorm_core.plugin.recorder import _judged
from knorm_core.results.file import read_results, write_results
from knorm_core.results.records import Results, Table
from suites.claims.recorded import BASELINES, recorded_tables
from suites.hub.content import tokenizer_files

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("pytester")]
pytest_plugins = ["pytester"]

TABLE = """
    import os

    from knorm_core import evaluate
    from knorm_core.plugin.inputs import made_from

    def test_perplexity(language_model, texts_of, table_settings, golden, show_table):
        [text] = texts_of(language_model, "embedded-narrative", table_settings.max_eval_tokens, 1)
        rows = [
            {"keep_ratio": ratio, "ppl": evaluate(language_model.model, text.input_ids, keep_ratio=ratio,
                                                  policy=os.environ["POLICY"]).ppl}
            for ratio in table_settings.keep_ratios
        ]
        name = f"{language_model.slug}/embedded-narrative/mine{table_settings.suffix}"
        show_table("[mine]", rows, *golden.notes(name))
        source = made_from(language_model, [text], **table_settings.named)
        golden.check(name, rows, key=["keep_ratio"], made_from=source)

    def test_words(text_snapshot):
        assert f"policy {os.environ['POLICY']}" == text_snapshot
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders called "mine", with two models."""
    home = tmp_path_factory.mktemp("models")
    files = tokenizer_files()
    for parent, family in (("a", "LlamaConfig"), ("b", "GPTNeoXConfig")):
        folder = home / parent / "mine"
        config = getattr(transformers, family)(
            vocab_size=len(json.loads(files["tokenizer.json"])["model"]["vocab"]),
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=512,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file, body in files.items():
            (folder / file).write_bytes(body)
    return home


@pytest.fixture
def run(pytester, models, monkeypatch):
    """``run(*arguments, model="a", policy="low_norm")``: pytest in another repository, on one of the models."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:randomly\nmarkers =\n    repro\n    fast\n")
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    pytester.makepyfile(TABLE)

    def run(*arguments, model="a", policy="low_norm"):
        monkeypatch.setenv("POLICY", policy)
        return pytester.runpytest_inprocess(
            "--knorm-model", str(models / model / "mine"), "--knorm-max-eval-tokens", "100", "--knorm-baselines",
            "pins/tables", *arguments,
        )  # fmt: skip

    run.pins = pytester.path / "pins" / "tables"
    return run


def test_a_table_is_made_compared_broken_and_mended_with_one_flag(run):
    missing = run("--knorm-keep-ratios", "0.5")
    missing.assert_outcomes(failed=2)
    text = missing.stdout.str()
    assert "No baseline yet: these numbers were compared with nothing." in text
    assert "[mine]" in text
    assert not run.pins.exists()
    made = run("--knorm-keep-ratios", "0.5", "--force-regen")
    made.assert_outcomes(passed=2)
    assert made.ret == 0
    assert "No baseline yet" not in made.stdout.str()
    [table] = run.pins.glob("mine-*/embedded-narrative/mine-*.csv")
    assert len(list(run.pins.glob("text/*/*.txt"))) == 1
    run("--knorm-keep-ratios", "0.5").assert_outcomes(passed=2)
    before = table.read_text()
    broken = run("--knorm-keep-ratios", "0.5", policy="high_norm")
    broken.assert_outcomes(failed=2)
    assert "the numbers changed against" in broken.stdout.str()
    assert table.read_text() == before
    mended = run("--knorm-keep-ratios", "0.5", "--force-regen", policy="high_norm")
    assert mended.ret == 0
    assert "What changed in the baselines" in mended.stdout.str()
    run("--knorm-keep-ratios", "0.5", policy="high_norm").assert_outcomes(passed=2)


def test_a_policy_of_the_command_line_has_tables_of_its_own_which_need_no_baseline(run):
    made = run("-k", "perplexity", "--knorm-policy", "tova", "-rs")
    made.assert_outcomes(skipped=1)
    assert "no baseline" in made.stdout.str()
    assert "No baseline yet: these numbers were compared with nothing." in made.stdout.str()
    strict = run("-k", "perplexity", "--knorm-policy", "tova", "--knorm-missing-baseline", "fail")
    strict.assert_outcomes(failed=1)


def test_the_tables_are_of_one_policy(run):
    several = run("-k", "perplexity", "--knorm-policy", "tova", "--knorm-policy", "h2o")
    several.assert_outcomes(errors=1)
    assert "--knorm-policy=tova, h2o: the reproduction's tables are of one policy" in several.stdout.str()


def test_tests_of_the_policy_of_the_command_line_are_left_out_without_one_and_others_with_one(run, pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.repro
        def test_own(given_policy): assert repr(given_policy) == "TOVA()"

        @pytest.mark.repro
        def test_table(table_settings): pass

        @pytest.mark.repro
        def test_other(): pass

        @pytest.mark.fast
        def test_fast(): pass
        """
    )
    run("-k", "own or table or other or fast").assert_outcomes(passed=3, deselected=1)
    run("-k", "own or table or other or fast", "--knorm-policy", "tova").assert_outcomes(passed=3, deselected=1)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_new_baselines_have_the_mode_that_the_umask_says(mask, mode, run):
    before = os.umask(mask)
    try:
        assert run("--force-regen").ret == 0
    finally:
        os.umask(before)
    files = [path for path in run.pins.rglob("*") if path.is_file()]
    assert sorted({path.suffix for path in files}) == [".csv", ".txt", ".yml"]
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_two_models_whose_folders_share_a_name_do_not_share_a_baseline(run):
    assert run("--force-regen", model="a").ret == 0
    assert "no baseline" in run("-k", "perplexity", model="b").stdout.str()
    assert run("--force-regen", model="b").ret == 0
    run(model="a").assert_outcomes(passed=2)
    run(model="b").assert_outcomes(passed=2)
    folders = [path.name for path in run.pins.iterdir() if path.name.startswith("mine-")]
    assert len(folders) == 2


def test_a_model_keeps_its_baseline_wherever_its_folder_is(run, models, tmp_path):
    assert run("--force-regen").ret == 0
    shutil.copytree(models / "a" / "mine", models / "c" / "mine", dirs_exist_ok=True)
    run(model="c").assert_outcomes(passed=2)


def test_another_precision_is_recorded_and_compared_with_nothing(run, pytester):
    assert run("--force-regen").ret == 0
    result = run("--knorm-dtype", "float32", "--knorm-report", "out", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    assert "baselines are float64: this table, of float32, is recorded and compared with nothing" in result.stdout.str()
    [table] = read_results(pytester.path / "out").tables
    assert table.name.split("/")[0].endswith("-float32")
    assert table.baseline.status == "none"
    assert table.made_from["dtype"] == "float32"


def test_what_a_model_has_no_positions_for_is_skipped_with_the_reason(run, pytester):
    pytester.makepyfile(
        """
        def test_long(language_model, texts_of):
            texts_of(language_model, "embedded-articles", 600)

        def test_short(language_model, texts_of):
            texts_of(language_model, "embedded-short")

        def test_deep(language_model):
            language_model.require(layers=4)
        """
    )
    result = run("--force-regen", "-rs", "-k", "long or short or deep")
    assert result.ret == 0
    text = result.stdout.str()
    assert "has 512 positions, and this text has 600 tokens" in text
    assert "has no sample of 150 to 223 tokens" in text
    assert "has 3 layers, and this needs 4" in text


def test_a_model_that_the_evaluator_refuses_is_skipped_with_its_reason_and_the_embedded_one_is_not(run, pytester):
    pytester.makepyfile(
        """
        import pytest
        from knorm_core import UnsupportedModelError

        def test_refused(language_model):
            raise RuntimeError("a cell failed") from UnsupportedModelError("layer 0 attends with s_aux")

        def test_of_another(tmp_path):
            raise UnsupportedModelError("not the user's model")
        """
    )
    result = run("-rs", "-k", "refused or another")
    result.assert_outcomes(skipped=1, failed=1)
    assert "layer 0 attends with s_aux" in result.stdout.str()


def test_a_number_that_is_none_is_refused_as_a_baseline(run, pytester):
    pytester.makepyfile(
        """
        def test_it(golden):
            rows = [{"keep_ratio": 0.5, "ppl": float("nan")}, {"keep_ratio": 0.1, "ppl": 2.0}]
            golden.check("m/t/x", rows, key=["keep_ratio"], made_from={})
        """
    )
    result = run("--force-regen", "-k", "test_it")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "m/t/x: row 0.5, column ppl is NaN" in result.stdout.str()
    assert not (run.pins / "m").exists()


def test_names_in_square_brackets_are_shown_and_not_taken_for_markup(run, pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("case", ["[red]x"])
        def test_it(golden, show_table, text_snapshot, case):
            rows = [{"case": case, "[bold]ppl": 2.0}]
            show_table(f"title {case}", [{"[b]": f"cell {case}"}], f"note {case}")
            golden.check("m/[red]/x", rows, key=["case"], made_from={})
            assert case == text_snapshot
        """
    )
    result = run("--force-regen", "-k", "test_it")
    assert result.ret == 0, result.stdout.str()
    text = result.stdout.str()
    for part in ("title", "cell", "note"):
        assert f"{part} [red]x" in text
    assert "[b]" in text
    assert "m/[red]/x.csv" in text


@pytest.mark.parametrize("ratio", [0.0, -1.0, 10**400], ids=["0", "negative", "too large"])
def test_a_bad_row_in_earlier_results_fails_no_passing_run(ratio, run, pytester):
    pytester.makepyfile(
        """
        def test_it(record_table):
            row = {"case": "512 tokens, prune_after 512 as given", "keep_ratio": 0.5}
            record_table("m/embedded-articles/faults", [row | {"evictions_per_layer": 0, "peak_cache": 511}],
                         key=list(row))
        """
    )
    shutil.copytree(BASELINES / "claims", pytester.path / "baselines" / "claims")
    [table] = [table for table in recorded_tables().tables if table.name.endswith("embedded-articles/ppl-absolute")]
    rows = [dict(row) for row in table.rows]
    rows[-1]["ratio"] = ratio
    (pytester.path / "out").mkdir()
    write_results(pytester.path / "out", Results(tables=[dataclasses.replace(table, rows=rows)]))
    result = run("-k", "test_it", "--knorm-report", "out")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_where_earlier_tables_break_a_check_the_verdicts_rest_on_this_run_alone(monkeypatch):
    def judge(claims, results):
        if len(results.tables) > 1:
            raise ZeroDivisionError("a row")
        return []

    monkeypatch.setattr(ledger, "judge", judge)
    own = [Table("m/t/x", [], [])]
    judged = _judged(Results(tables=[*own, Table("m/t/y", [], [])]), own, BASELINES.parent)
    assert judged.error == (
        "tables of earlier runs cannot be judged (ZeroDivisionError: a row); the verdicts rest on this run's alone"
    )
    assert _judged(Results(tables=own), own, BASELINES.parent).error == ""


def test_naming_a_text_leaves_out_what_reads_others(run, pytester):
    pytester.makepyfile(
        """
        import pytest

        def test_each(text_set): pass

        @pytest.mark.parametrize("text_set", ["embedded-articles", "pg19"])
        def test_own(text_set): pass

        @pytest.mark.reads_text("embedded")
        def test_embedded(): pass

        def test_no_text(): pass
        """
    )
    result = run("-k", "each or own or embedded or no_text", "-v", "--knorm-text", "pg19")
    result.assert_outcomes(passed=3, deselected=2)
    result.stdout.fnmatch_lines(["*test_each?pg19? PASSED*", "*test_own?pg19? PASSED*", "*test_no_text PASSED*"])


def test_progress_takes_the_place_of_a_line_per_test_and_failures_are_shown(run, pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("case", range(5))
        def test_passes(case): pass

        def test_fails(): assert not "this"

        def test_skips(): pytest.skip("no reason")
        """
    )
    first = run("-k", "passes or fails or skips", "--knorm-progress", "--knorm-report", "out", "-rs")
    first.assert_outcomes(passed=5, failed=1, skipped=1)
    text = first.stdout.str()
    assert "knorm: 7 of 7 tests, 1 failed" in text
    assert "SKIPPED [1]" in text
    assert "....." not in text
    assert "test_fails" in text


def test_the_time_left_is_that_of_the_earlier_run_at_the_speed_of_this_one():
    bar = Bar(
        SimpleNamespace(isatty=False, _tw=SimpleNamespace(_file=None)), {"t.py::a": 10.0, "t.py::test_b[x]": 90.0}
    )
    bar._tests, bar._done, bar._started = ["t.py::a", "t.py::test_b[x]"], {"t.py::a"}, 100.0
    bar._running = {"t.py::test_b[x]": None}
    assert bar.seconds_left(now=120.0) == pytest.approx(180.0)
    assert bar.sentence(120.0) == "1 of 2 tests; about 3 min left; b[x]"
    bar._tests.append("t.py::new")  # as long as the others on average
    assert bar.seconds_left(now=120.0) == pytest.approx(280.0)
    assert bar.sentence(120.0) == "1 of 3 tests; perhaps 5 min left; b[x]"


def test_the_time_left_of_a_first_run_is_that_of_its_tests_so_far_once_it_runs_for_some_seconds():
    bar = Bar(SimpleNamespace(isatty=False, _tw=SimpleNamespace(_file=None)), {})
    bar._tests, bar._done, bar._started = [f"t.py::test_{n}" for n in range(10)], {"t.py::test_3"}, 100.0
    assert bar.seconds_left(now=104.0) is None
    assert bar.sentence(104.0) == "1 of 10 tests"
    assert bar.seconds_left(now=112.0) == pytest.approx(9 * 12.0)
    assert bar.sentence(112.0) == "1 of 10 tests; perhaps 2 min left"
