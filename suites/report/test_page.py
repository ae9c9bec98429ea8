"""The page as a whole: in order, self-contained, readable without sight, script or network."""

from __future__ import annotations

import math
import re
from collections import Counter
from html import escape, unescape

import pytest

from knorm_core.report import FILE, write_report
from knorm_core.report.page import SECTIONS, render, with_options
from knorm_core.report.palette import LIGHT
from knorm_core.report.svg import draw
from knorm_core.results.families import answer_of
from knorm_core.results.records import Results, Run, Table
from suites.report.conftest import Parsed

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("report")]

ORDER = [
    "perplexity",
    "cache-length",
    "verdicts",
    "trail",
    "controls",
    "policies",
    "norm-attention",
    "passkey",
    "latency",
    "precision",
    "run",
    "baselines",
]
SOURCES = ("https://arxiv.org/abs/2406.11430", "https://github.com/od-liu/CS3602-LLM-Inference-Acceleration")
COUNTS = {"scored_tokens": 10, "evictions_per_layer": 0}
COMMAND = re.compile(r"(tox|pytest)( |$)")


def test_sections_stand_in_order_and_are_linked_to(parsed):
    assert [element.attributes["id"] for element in parsed.all("section")] == ORDER
    links = [element.attributes["href"] for element in parsed.all("a") if "nav" in element.within]
    assert links == [f"#{name}" for name in ORDER]


def test_ids_are_unique_and_every_link_and_reference_leads_to_one(parsed):
    ids = Counter(element.attributes["id"] for element in parsed.elements if "id" in element.attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    targets = [element.attributes["href"] for element in parsed.all("a") if element.attributes["href"] not in SOURCES]
    for element in parsed.elements:
        for attribute, value in element.attributes.items():
            if attribute == "xlink:href":
                targets.append(value)
            elif attribute == "aria-labelledby":
                targets += [f"#{name}" for name in value.split()]
            targets += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", value or "")]
    assert {target for target in targets if target.removeprefix("#") not in ids} == set()


def test_nothing_is_loaded_from_anywhere(page, parsed):
    assert {element.tag for element in parsed.elements} & {"img", "link", "iframe", "object", "embed", "base"} == set()
    assert [element for element in parsed.elements if "src" in element.attributes] == []
    assert "@import" not in page
    # Addresses that are names of vocabularies, which nothing fetches.
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", *SOURCES}
    linked = [element.attributes["href"] for element in parsed.all("a")]
    assert all(page.count(source) == linked.count(source) == 1 for source in SOURCES)


def test_a_page_of_everything_is_below_six_megabytes(page):
    assert len(page.encode()) < 6_000_000


def test_every_figure_has_a_finding_an_alternative_and_a_table(parsed):
    figures = [element.attributes["id"] for element in parsed.all("figure")]
    assert len(figures) >= 9
    ids = {element.attributes.get("id") for element in parsed.elements}
    drawings = parsed.all("svg")
    assert all("figure" in drawing.within for drawing in drawings)
    for figure in figures:
        assert f"{figure}-finding" in ids
        assert f"{figure}-table" in ids
        assert f"#{figure}-table" in [link.attributes["href"] for link in parsed.all("a")]
    for drawing in drawings:
        assert drawing.attributes["role"] == "img"
        assert re.search(r"[0-9]", drawing.attributes["aria-label"]), "an alternative tells numbers"


def test_every_finding_is_one_sentence(parsed):
    assert len(parsed.findings) == len(parsed.all("figure"))
    assert all(re.fullmatch(r"[A-Z].*\.", finding) for finding in parsed.findings)
    assert [finding for finding in parsed.findings if re.search(r"[.!?] [A-Z]", finding)] == []


def test_the_tables_hold_the_recorded_numbers_in_full(parsed, results):
    cells = {element.attributes.get("data-value") for element in parsed.all("td")}
    for table in results.tables:
        for row in table.rows:
            numbers = [value for value in row.values() if isinstance(value, int | float) and value == value]
            assert {repr(float(value)) for value in numbers} <= cells, table.name


def test_a_table_that_no_section_knows_is_shown_all_the_same():
    table = Table("m/t/of-another-knorm", ["keep_ratio"], [{"keep_ratio": 0.5, "what": 1234.5}])
    page = Parsed(render(Results(tables=[table])))
    assert "1234.5" in [cell.attributes.get("data-value") for cell in page.all("td")]
    assert "Recorded as well: m/t/of-another-knorm" in "".join(page.text)


def test_headings_scope_their_columns_and_every_table_has_a_caption(parsed):
    assert {element.attributes.get("scope") for element in parsed.all("th")} == {"col"}
    assert len(parsed.all("caption")) == len(parsed.all("table"))


def test_a_section_without_data_names_the_command_that_makes_it():
    for section in (section(Results()) for section in SECTIONS):
        assert section.absent, section.id
        assert not section.figures
        for absent in section.absent:
            assert COMMAND.match(absent.command)
            assert not absent.narrower or COMMAND.match(absent.narrower)
    page = render(Results())
    assert page.count("Not in these results: ") >= len(ORDER)
    Parsed(page)


@pytest.mark.parametrize(
    ("typed", "command", "expected"),
    [
        ("pytest -m repro --knorm-model my/model -n 2", "tox", "tox -- --knorm-model my/model"),
        ("pytest --knorm-dtype=float32", "tox -e slow", "tox -e slow -- --knorm-dtype=float32"),
        ("pytest --knorm-model x", "pytest -m repro suites/x.py", "pytest -m repro suites/x.py --knorm-model x"),
        ("pytest --knorm-positions cache", "pytest --knorm-positions absolute", "pytest --knorm-positions absolute"),
        ("pytest 'never closed --knorm-model x", "tox", "tox -- --knorm-model x"),
        ("pytest", "tox", "tox"),
    ],
)
def test_commands_that_make_what_is_missing_have_the_options_of_the_run(typed, command, expected):
    run = Run("r", "", 1.0, typed, 0, {}, {}, {})
    assert with_options(command, Results([run])) == expected
    assert typed == "pytest" or f"<code>{escape(with_options('tox', Results([run])))}</code>" in render(Results([run]))


def test_a_command_that_names_a_model_itself_is_not_given_another():
    run = Run("r", "", 1.0, "pytest --knorm-model x --knorm-text=y --knorm-report=out", 0, {}, {}, {})
    assert "<code>tox -e pythia -- --knorm-report=out</code>" in render(Results([run]))


def test_the_curve_comes_first_and_claims_of_which_nothing_is_known_are_a_line(parsed, page, results):
    assert page.index("</svg>") < page.index('id="verdicts"')
    nothing = [v for v in results.verdicts if v.verdict == "not testable here" and not v.transfers]
    assert nothing
    folded = unescape(page[page.index('<details class="untested">') :]).replace("\u00a0", " ")
    assert all(verdict.claim in folded for verdict in nothing)
    counts = re.findall(r"(\d+) claims? not testable here, for want of their tables", page)
    assert sum(map(int, counts)) == len(nothing)


def test_every_claim_has_a_column_per_family_and_those_that_did_not_run_say_so(page, results):
    assert not any(transfer.model.startswith("gemma") for v in results.verdicts for transfer in v.transfers)
    cells = [
        unescape(re.sub(r"<[^>]+>", "", cell))
        for cell in re.findall(r'<span class="family[^"]*">.*?</span> [^<]+', page)
    ]
    assert len(cells) == 2 * len(results.verdicts)
    alone = sum(verdict.own_only for verdict in results.verdicts)
    assert cells.count("Gemma 3 270M: own model only") == alone > 0
    assert cells.count("Gemma 3 270M: not run") == len(results.verdicts) - alone
    answers = [answer_of(verdict, "smollm2-135m") for verdict in results.verdicts]
    of_smollm2 = [cell.removeprefix("SmolLM2-135M: ") for cell in cells if cell.startswith("SmolLM2-135M: ")]
    assert sorted(of_smollm2) == sorted(answers)
    assert {"carries over", "reproduced", "not run"} <= {*of_smollm2}


def test_a_model_that_has_learned_nothing_is_said_to_be_evidence_of_nothing_at_the_top():
    row = {"keep_ratio": 1.0, "ppl": 780.0}
    for vocabulary, says in ((800, True), (50_000, False)):
        table = Table("m/t/ppl-absolute", ["keep_ratio"], [row], {"vocabulary": vocabulary})
        page = render(Results(tables=[table]))
        sentence = "m: the model has learned nothing, so it is evidence of nothing: uncompressed it has a perplexity"
        assert (sentence in page) == says
        assert not says or page.index(sentence) < page.index("<main")


def test_the_paper_and_the_report_are_explained_before_they_are_named(page):
    body = page[page.index("<body>") :]
    for source in ("paper", "report"):
        assert body.index(f"<dfn>{source}</dfn>") <= re.search(rf"\b{source}\b", body).start()


def test_times_are_asked_of_tox_latency_and_pass_keys_by_depth_of_tox_slow():
    absent = {each.what: each.command for section in SECTIONS for each in section(Results()).absent}
    assert absent["times of this machine"] == absent["the cold-start experiment"] == "tox -e latency"
    assert absent["50 pass keys in each of 20 cells of context and depth"] == "tox -e slow"


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = write_report(Results(), tmp_path)
    assert path == tmp_path / FILE
    before = path.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_report(Results(), tmp_path / "file" / "folder")
    assert path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"file", FILE}


def test_a_theme_reaches_every_colour_of_a_drawing_that_is_its_own():
    def plot(ax):
        ax.bar(0, 1, facecolor=LIGHT["paper"], edgecolor=LIGHT["muted"], hatch="////")
        ax.plot([0, 1], color=LIGHT["blue"], marker="o", markerfacecolor=LIGHT["paper"])

    drawing = draw("x", plot, alt="", height=1)
    assert [colour for colour in LIGHT.values() if colour in drawing] == []
    assert drawing.count("var(--paper)") >= 2


def test_the_same_drawing_is_the_same_text():
    first, second = (draw("x", lambda ax: ax.plot([1, 2], marker="o"), alt="", height=1) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("ratios", "ppl", "says"),
    [
        ((1.0,), 20.0, "Nothing was compressed here."),
        ((1.0, 0.5), math.nan, "by no finite change"),
        ((1.0, 0.5), math.inf, "by no finite change"),
    ],
    ids=["nothing compressed", "not a number", "infinite"],
)
def test_odd_numbers_make_a_page_all_the_same(ratios, ppl, says):
    interval = {"ratio_low": 0.0, "ratio_high": math.inf}  # of a single block
    rows = [
        {"keep_ratio": keep, "ppl": 20.0 if keep == 1 else ppl, "mean_cache": 9, "peak_cache": 9} for keep in ratios
    ]
    table = Table("m/t/ppl-absolute", ["keep_ratio"], [row | interval | COUNTS for row in rows])
    page = Parsed(render(Results(tables=[table])))
    assert any(says in finding for finding in page.findings)
