"""What README and docs say is held: their length, words, links, tables, figures, commands and lists."""

from __future__ import annotations

import ast
import configparser
import re

import pytest
from markdown_it import MarkdownIt

import knorm_core
import knorm_core.contract
from knorm_core.results.interval import per_cent
from suites.docs.pages import PAGES, ROOT, Block, all_blocks
from suites.docs.tables import PAGES as WITH_TABLES
from suites.docs.tables import made_anew, rows_of

pytestmark = pytest.mark.fast

README = ROOT / "README.md"
FINDINGS = ROOT / "docs/findings.md"
LINKED = (*PAGES, ROOT / "CONTRIBUTING.md", *ROOT.glob("suites/*/README.md"))

#: README's first use of a word is in the sentence that says what it means.
EXPLAINED = {
    "keep_ratio": "`keep_ratio` is the share of keys that an eviction keeps",
    "prune_after": "`prune_after` the cache length from which anything is evicted",
    "the contract": "the contract, a list of promises",
    "PPL": "PPL is perplexity",
    "policy scores": "A policy scores the keys in the cache; the highest stay.",
    "report": "report on Pythia-70M](docs/findings.md) whose numbers did not add up",
}

#: Commands that CI runs as they stand, or through its own copy of tox: the line of .ci/run that does.
BY_CI = {"tox": "$tox", "tox -e fast": "$tox -e fast"}
_OWN_TOX = "python3 -m venv .venv && .venv/bin/python -m pip install --quiet tox && .venv/bin/"


def test_the_readme_has_at_most_1200_words():
    assert len(README.read_text("utf-8").split()) <= 1200


@pytest.mark.parametrize("word", EXPLAINED)
def test_the_readme_explains_a_word_where_it_first_uses_it(word):
    text = README.read_text("utf-8")
    start = text.index(EXPLAINED[word])
    first = re.search(rf"(?<![\w/-]){re.escape(word)}", text)
    assert first is not None
    assert start <= first.start() < start + len(EXPLAINED[word])


def test_the_readme_names_the_model_and_its_weights_before_the_first_table():
    before = README.read_text("utf-8").partition("knorm eval")[0]
    assert "SmolLM2-135M-Instruct" in before
    assert "tuned to follow instructions, de-quantised from Q4_1" in before


def test_the_withdrawal_can_be_found():
    assert "**We withdraw**" in README.read_text("utf-8")
    assert "## Withdrawn: drift as the cause of the report's numbers" in FINDINGS.read_text("utf-8")


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.name)
def test_tables_are_those_of_the_baselines(page):
    assert made_anew(page) == page.read_text("utf-8"), "baselines have moved: python -m suites.docs.tables"


def test_figures_of_the_readmes_sentences_are_those_of_the_baselines():
    readme = README.read_text("utf-8")
    for mode, sign in (("absolute", "{}"), ("cache", "**{}**")):
        assert sign.format(per_cent(rows_of(f"wikitext-articles/ppl-{mode}")["0.9"]["ratio"])) in readme
    ours, human = (rows_of(f"{name}-articles/ppl-absolute")["1.0"]["ppl"] for name in ("embedded", "wikitext"))
    assert f"perplexity {ours:.0f} against {human:.0f} on articles" in readme


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text) for link in link if link]
    within = [link.partition("#")[0] for link in links if not re.match(r"https?:|#", link)]
    assert [link for link in within if not (page.parent / link).exists()] == []


def test_headings_that_other_pages_link_to_are_there():
    for page in LINKED:
        for link in re.findall(r"\]\(([^)\s#]*\.md)#([\w-]+)\)", page.read_text("utf-8")):
            headings = re.findall(r"^#+ (.+)$", (page.parent / link[0]).read_text("utf-8"), flags=re.MULTILINE)
            assert link[1] in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("block", all_blocks(), ids=str)
def test_every_block_says_what_it_is(block: Block):
    assert block.language in {"sh", "python", "text", "yaml"}
    assert block.language != "text", "this text follows no command, so nothing holds it"


@pytest.mark.parametrize("block", [block for block in all_blocks() if block.language == "sh"], ids=str)
def test_every_command_is_run_or_says_what_it_needs(block: Block):
    for command, needs in block.commands:
        if needs or re.match(r"(knorm|pytest|python -m knorm_core)( |$)", command):
            continue  # suites/docs/test_commands.py runs those that need nothing
        typed = command.removeprefix(_OWN_TOX).strip()
        assert typed in BY_CI, f"no test runs {command!r}: say what it needs after it, # needs …"
        assert BY_CI[typed] in (ROOT / ".ci/run").read_text("utf-8").splitlines()


def test_every_environment_that_a_page_names_is_one_of_tox():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    known = {section.partition(":")[2] for section in tox.sections()}
    for page in LINKED:
        for names in re.findall(r"tox -e ([\w,-]+)", page.read_text("utf-8")):
            assert set(names.split(",")) <= known, page


@pytest.mark.parametrize(
    ("page", "names"),
    [("api", knorm_core.__all__), ("contract-api", knorm_core.contract.__all__)],
    ids=["knorm_core", "knorm_core.contract"],
)
def test_the_reference_has_every_public_name(page, names):
    text = (ROOT / f"docs/reference/{page}.md").read_text("utf-8")
    listed = re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)$", text, flags=re.MULTILINE)
    assert (set(names) - set(listed), set(listed) - set(names)) == (set(), set()), "missing there, and not public"


def test_the_options_page_has_every_option():
    defined = set()
    for path in (*(ROOT / "knorm_core").rglob("*.py"), ROOT / "suites/wild/options.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("addoption", "_addoption"):
                defined |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    options = {option for option in defined if str(option).startswith("--knorm-")}
    assert len(options) > 15
    assert (
        options - set(re.findall(r"--knorm-[\w-]+", (ROOT / "docs/reference/options.md").read_text("utf-8"))) == set()
    )


def test_figures_have_words_for_who_does_not_see_them():
    for page in PAGES:
        tokens = [child for token in MarkdownIt().parse(page.read_text("utf-8")) for child in token.children or ()]
        assert all(len(token.content) > 40 for token in tokens if token.type == "image"), page
