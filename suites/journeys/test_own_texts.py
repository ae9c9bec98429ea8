"""Texts of one's own in pytest: files and a folder, cut into windows, refused in a sentence where there are none."""

from __future__ import annotations

import datasets  # noqa: F401  pytester forgets what is imported within, and this cannot be imported twice
import pytest

from knorm_core.plugin.unread import READERS
from suites.journeys.conftest import STORY

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("pytester")]
pytest_plugins = ["pytester"]

TABLE = """
    from knorm_core.plugin.inputs import made_from
    from knorm_core.plugin.texts import parts_of

    def test_windows(language_model, text_set, texts_of, table_settings, record_table, pytestconfig, request):
        texts = texts_of(language_model, text_set, table_settings.max_eval_tokens)
        print(text_set, "is", [(text.title, len(text.input_ids)) for text in texts], parts_of(pytestconfig, text_set))
        assert made_from(language_model, texts)["text"].startswith("sha256:")
"""


@pytest.fixture
def run(pytester, own_model, monkeypatch):
    """``run(*arguments)``: pytest in a repository with the plugin, beside two stories and a folder of two more."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:randomly -s\n")
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    pytester.makepyfile(TABLE)
    for path, count in (("a story.txt", 25), ("b, c.txt", 4), ("texts/x.txt", 4), ("texts/y.txt", 4)):
        (pytester.path / path).parent.mkdir(exist_ok=True)
        (pytester.path / path).write_text(STORY * count, encoding="utf-8")
    return lambda *arguments: pytester.runpytest_inprocess("--knorm-model", str(own_model), *arguments)


@pytest.mark.parametrize("joined", [True, False])
def test_files_and_a_folder_are_text_sets_with_a_space_as_with_an_equals_sign(joined, run):
    option = ["--knorm-text=a story.txt,texts"] if joined else ["--knorm-text", "a story.txt,texts"]
    result = run(*option, "--knorm-max-eval-tokens", "100")
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if " is [" in line]
    assert "own-a-story is [('a story 1/" in lines[0]
    assert lines[0].count(", 100)") >= 3
    assert "own-texts is [('x" in lines[1]
    assert "('y" in lines[1]


def test_a_path_with_a_comma_is_one_path(run):
    result = run("--knorm-text", "b, c.txt", "--knorm-max-eval-tokens", "100")
    result.assert_outcomes(passed=1)
    assert "own-b-c is [('b, c" in result.stdout.str()


def test_a_set_keeps_its_name_where_a_folder_has_it_too(run, pytester):
    (pytester.path / "pg19").mkdir()
    (pytester.path / "pg19" / "z.txt").write_text(STORY * 4, encoding="utf-8")
    assert "own-pg19 is [('z" in run("--knorm-text", "./pg19").stdout.str()
    assert "own-pg19" not in run("--knorm-text", "pg19", "--knorm-text-dir", "nowhere").stdout.str()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("nothing.txt", "unknown text 'nothing.txt': choose from embedded-articles"),
        ("nothing.txt", "and there is no file or folder of that name in"),
        ("a story.txt,", "unknown text ''"),
        ("empty", "it has no file *.txt"),
        ("latin.txt", "is not UTF-8 (byte 0)"),
        ("texts,other/texts", "two texts are called own-texts in tables"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence_before_anything_runs(option, sentence, run, pytester):
    (pytester.path / "empty").mkdir()
    (pytester.path / "latin.txt").write_bytes(b"\xe9")
    (pytester.path / "other" / "texts").mkdir(parents=True)
    (pytester.path / "other" / "texts" / "x.txt").write_text(STORY)
    result = run("--knorm-text", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    assert sentence in text
    assert "Traceback" not in text


def test_a_text_too_short_for_an_evaluation_fails_in_a_sentence(run, pytester):
    (pytester.path / "short.txt").write_text("Too short.")
    result = run("--knorm-text", "short.txt")
    result.assert_outcomes(failed=1)
    assert "has the 34 tokens that an evaluation needs" in result.stdout.str()


# --- options that no test reads


@pytest.mark.parametrize(
    ("options", "unread"),
    [
        (["--knorm-policy", "tova"], "no test of this run reads --knorm-policy: without effect"),
        (
            ["--knorm-breadth=3", "--knorm-positions=cache", "--knorm-store=off", "--knorm-scheduler=tcp://x"],
            "reads --knorm-positions or --knorm-breadth or --knorm-store or --knorm-scheduler: without effect",
        ),
        (["--knorm-compressor=math:sqrt"], "no test of this run reads --knorm-compressor: without effect"),
        (["--knorm-text", "texts"], "no test of this run reads --knorm-text: without effect"),
    ],
)
def test_options_that_no_test_reads_are_said_to_have_no_effect(options, unread, run, pytester):
    pytester.makepyfile("def test_it(language_model): pass")
    result = run(*options)
    assert result.ret == 0
    assert unread in result.stdout.str()


def test_nothing_is_said_of_options_that_are_read_or_stand_in_the_environment(run, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--knorm-policy=tova --knorm-breadth=3")
    result = run("--knorm-text", "texts", "--knorm-prune-after", "64")
    result.assert_outcomes(passed=1)
    assert "without effect" not in result.stdout.str()


def test_the_contract_reads_the_policy_beside_the_plugin_of_tables(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest('pytest_plugins = ["knorm_core.plugin"]')
    given = ["--knorm-policy=newest", "--knorm-examples=1", "-k", "scores_can_be_ranked"]
    result = pytester.runpytest_inprocess("--pyargs", "knorm_core.contract", *given, "-p", "no:cacheprovider")
    assert result.ret == 0
    assert "without effect" not in result.stdout.str()


def test_every_option_is_read_by_a_fixture_or_by_every_run(pytestconfig):
    options = {option.names()[0] for option in pytestconfig._parser.getgroup("knorm").options}
    by_every_run = {"--knorm-report", "--knorm-progress"}
    of_the_contract = {"--knorm-compressor", "--knorm-evaluator", "--knorm-examples", "--knorm-explore"}
    assert options - {"--knorm-wild"} == {*READERS, *by_every_run, *of_the_contract}
