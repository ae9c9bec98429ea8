"""Text of users, wherever it comes from, stays text: it adds no element, no attribute and no script."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knorm_core.report.page import render
from knorm_core.report.svg import draw, plain
from knorm_core.results.records import (
    VERDICTS,
    Baseline,
    ChangedCell,
    Number,
    Results,
    Run,
    Table,
    Test,
    Transfer,
    Verdict,
)
from suites.report.conftest import Parsed
from suites.report.test_page import SOURCES

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("report")]

POLYGLOT = (
    "jaVasCript:/*-/*`/*\\`/*'/*\"/**/(/* */oNcliCk=alert() )//%0D%0A%0d%0a//</stYle/</titLe/</teXtarEa/</scRipt/--!>"
    "\\x3csVg/<sVg/oNloAd=alert()//>\\x3e"
)
ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</svg><svg onload=alert(1)>",
    "</title></style></desc><script>alert(1)</script>",
    "]]><script>alert(1)</script><!--",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}$ _^",
    "\x00\x1b[31m\ud800\ufffe",
    "\u202etxt.exe 中文 🙂",
    POLYGLOT,
]
hostile = st.sampled_from(ATTACKS) | st.text(max_size=40) | st.text("<>&\"'`=/ -!{}%$\\\n;:()aonscript", max_size=40)
BENIGN = "text"


def everything(text: str, figures: bool = False) -> Results:
    """Results with ``text`` in every field that can hold it, and where figures are to be made, in their labels."""
    run = Run(text, text, 1.0, text, 1, {"knorm_model": text, text: [text]}, {text: text}, {text: text})
    baseline = Baseline("changed", 1e-6, 0.0, [ChangedCell(text, text, 1.0, 2.0), ChangedCell(text, text, text, None)])
    made_from = {"model": text, "tokenizer": text, "text": text, "settings": {"tokens": text, text: text}}
    tables = [Table(f"{text}/{text}/x", [text], [{text: text, "ppl": 1.0}], made_from, baseline, text)]
    if figures:
        name = text.replace("/", "|")
        tables += drawn(f"{name}/{name}", name, made_from)
    tests = [Test(text, outcome, 1.0, text, text) for outcome in ("failed", "skipped", "passed")]
    judged: dict[str, Any] = dict.fromkeys(
        ["source", "claim", "where", "setting", "about", "expected", "tolerance", "why", "needs"], text
    )
    numbers = [Number(1.0, 0.5, 2.0, text)]
    transfers = [Transfer(text, "does not carry over", text, numbers, [tables[0].name])]
    verdicts = [
        Verdict(id=text, verdict=verdict, numbers=numbers, transfers=transfers, tables=[tables[0].name, text], **judged)
        for verdict in VERDICTS
    ]
    return Results([run], tables, tests, verdicts)


def drawn(prefix: str, text: str, made_from: dict[str, Any]) -> list[Table]:
    """Tables of which figures are made, with ``text`` in every label."""
    ppl = {"ppl": 1.5, "ratio": 1.5, "ratio_low": 1.1, "ratio_high": 2.0, "mean_cache": 9.0, "peak_cache": 10}
    often = {"scored_tokens": 10, "evictions_per_layer": 2}
    pair = [{"keep_ratio": 1.0}, {"keep_ratio": 0.5}]
    rows = {
        "ppl-absolute": [row | ppl | often for row in pair],
        "controls": [row | ppl | {"policy": text, "positions": "absolute", "seed": text} for row in pair],
        "norm-attention": [{"layer": 0, "head": 0, "spearman": -0.5, text: text}],
        f"passkey-{text}": [row | {"when": text, "skip_layers": text, "matches": 1, "of": 2} for row in pair],
        "precision-dtypes": [
            row | {"dtype": dtype, "policy": text, "shift": 0.1, "differ": 0.2}
            for row in pair
            for dtype in ("float64", text)
        ],
    }
    return [Table(f"{prefix}/{what}", ["keep_ratio"], columns, made_from) for what, columns in rows.items()]


def shape(page: str) -> list[tuple[str, list[str]]]:
    """Every tag with the names of its attributes: what text must not change."""
    return [(element.tag, sorted(element.attributes)) for element in Parsed(page).elements]


@pytest.fixture(scope="module")
def benign_shape():
    return shape(render(everything(BENIGN)))


@settings(max_examples=30)
@given(text=hostile)
@example(text=POLYGLOT)
def test_no_text_changes_the_page_s_structure(text, benign_shape):
    page = render(everything(text or BENIGN))
    assert shape(page) == benign_shape
    [script] = Parsed(page).scripts
    assert "alert" not in script


@settings(max_examples=3)
@given(texts=st.lists(hostile, min_size=10, max_size=10))
@example(texts=[*ATTACKS, "</text><script>alert(1)</script>"])
def test_text_within_a_drawing_stays_text(texts):
    def plot(ax):
        ax.set_xticks(range(len(texts)), [plain(text) for text in texts])
        ax.set_yticks([])

    drawing = draw("x", plot, alt="".join(texts), height=1)
    elements = Parsed(drawing).elements
    assert {element.tag for element in elements} <= {"svg", "g", "defs", "path", "use", "text", "clippath", "rect"}
    assert not [name for element in elements for name in element.attributes if name.startswith("on")]
    assert elements[0].attributes["aria-label"] == plain("".join(texts))
    drawn = [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawing)]
    assert drawn == [plain(text) for text in texts if plain(text)]


def test_figures_of_hostile_names_hold_them_as_text():
    text = f"{POLYGLOT}{''.join(ATTACKS)}"
    page = render(everything(text, figures=True))
    parsed = Parsed(page)
    assert len(parsed.all("figure")) == 6
    assert len(parsed.scripts) == len(parsed.all("style")) == 1
    assert not [name for element in parsed.elements for name in element.attributes if name.startswith("on")]
    targets = {element.attributes["href"] for element in parsed.all("a")}
    assert {target[:1] for target in targets.difference(SOURCES)} == {"#"}
    assert "<script>alert" not in page
    assert plain(text)[:60] in "".join(parsed.text)


def test_a_name_in_a_script_that_the_font_lacks_is_drawn_without_a_warning(recwarn):
    draw("x", lambda ax: ax.set_xticks([0], ["中文"]), alt="", height=1)
    assert not recwarn.list


def test_text_that_cannot_be_encoded_is_replaced(tmp_path):
    from knorm_core.report import write_report

    results = dataclasses.replace(everything("\ud800"), tables=())
    assert "?" in write_report(results, tmp_path).read_text(encoding="utf-8")
