"""The report as a person meets it: opened from disk in a browser, on a phone, by keyboard, on paper."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest

from knorm_core.report import write_report
from suites.browser.conftest import SCHEMES, WIDTHS, open_page
from suites.report.test_hostile import ATTACKS
from suites.report.test_hostile import everything as hostile_everywhere

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

OPEN_ALL = "for (const details of document.querySelectorAll('details')) details.open = true;"

PAGE_WIDTH = "return document.documentElement.scrollWidth"
DRAWINGS = """
  return [...document.querySelectorAll("figure svg")].map((svg) => {
    const outer = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const cut = (text) => {
      const box = text.getBoundingClientRect();
      return box.left < outer.left - 2 || box.right > outer.right + 2 ||
        box.top < outer.top - 2 || box.bottom > outer.bottom + 2;
    };
    const scale = outer.width / svg.viewBox.baseVal.width;
    return {
      name: svg.closest("figure").id,
      box: [outer.left, outer.right, outer.width, outer.height],
      cut: texts.filter(cut).map((text) => text.textContent),
      smallest: Math.min(...texts.map((text) => parseFloat(getComputedStyle(text).fontSize) * scale)),
      marks: svg.querySelectorAll("path, use").length,
    };
  });
"""
HANDLERS = """
  const handled = (element) => [...element.attributes].some((attribute) => attribute.name.startsWith("on"));
  return [...document.querySelectorAll("*")].filter(handled).length;
"""
COLUMN = """
  const rows = document.activeElement.closest("table").tBodies[0].rows;
  return [...rows].map((row) => row.cells[arguments[0]].textContent);
"""


def requests(browser):
    """Addresses that were asked for, from the browser's own record."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if address != "about:blank"]


def test_it_opens_without_an_error_or_a_request(opened, page):
    opened.execute_script(OPEN_ALL)
    assert opened.get_log("browser") == []
    assert requests(opened) == [page.as_uri()]
    assert opened.title.startswith("knorm: ")


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_visible_and_nothing_overflows(browser, page, width):
    open_page(browser, page, width)
    browser.execute_script(OPEN_ALL)
    assert browser.execute_script(PAGE_WIDTH) <= width
    figures = browser.execute_script(DRAWINGS)
    assert figures
    for figure in figures:
        left, right, wide, high = figure["box"]
        assert left >= 0, figure
        assert right <= width, figure
        assert min(wide, high) > 100, figure
        assert figure["cut"] == [], figure
        assert figure["smallest"] >= 9, figure
        assert figure["marks"] > 5, figure


def test_tables_are_sorted_by_keyboard(opened):
    from selenium.webdriver import ActionChains, Keys

    def press(key):
        ActionChains(opened).send_keys(key).perform()

    def focused():
        return opened.execute_script("const e = document.activeElement; return [e.tagName, e.textContent.trim()]")

    def column(at):
        return [float(cell.replace(",", "")) for cell in opened.execute_script(COLUMN, at)]

    # From the link below the first figure on with the keyboard alone: to its table's summary, into it, to a heading.
    opened.execute_script("document.querySelector('#perplexity figure .note a').focus()")
    press(Keys.TAB)
    assert focused()[0] == "SUMMARY"
    press(Keys.ENTER)
    press(Keys.TAB)  # the table, which scrolls
    headings = []
    while "PPL" not in headings:
        press(Keys.TAB)
        tag, text = focused()
        assert tag == "BUTTON"
        headings.append(text)
    at = len(headings) - 1
    before = column(at)
    sort = "return document.activeElement.closest('th').getAttribute('aria-sort')"
    assert opened.execute_script(sort) is None
    press(Keys.ENTER)
    assert opened.execute_script(sort) == "ascending"
    up = column(at)
    assert up == sorted(before) != before
    press(Keys.SPACE)
    assert opened.execute_script(sort) == "descending"
    assert column(at) == up[::-1]
    assert opened.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1


def test_the_link_below_a_figure_opens_its_table(opened):
    opened.execute_script("document.querySelector('#perplexity figure .note a').click()")
    visible = "return document.querySelector(location.hash).checkVisibility()"
    assert opened.execute_script(visible)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(browser, page, axe, scheme, width):
    open_page(browser, page, width, scheme)
    browser.execute_script(OPEN_ALL)
    browser.execute_script(axe)
    results = browser.execute_async_script(
        "axe.run({ resultTypes: ['violations'] }).then(arguments[arguments.length - 1]);"
    )
    sentences = [
        f"{violation['id']}: {violation['help']} {[node['html'][:200] for node in violation['nodes'][:3]]}"
        for violation in results["violations"]
    ]
    assert sentences == []
    assert len(results["passes"]) > 20


def test_on_paper_every_section_is_there_with_its_tables(opened):
    from pypdf import PdfReader
    from selenium.webdriver.common.print_page_options import PrintOptions

    titles = opened.execute_script("return [...document.querySelectorAll('h2')].map((title) => title.textContent)")
    caption = opened.execute_script("return document.querySelector('#perplexity caption').textContent")
    printed = PdfReader(io.BytesIO(base64.b64decode(opened.print_page(PrintOptions()))))
    text = re.sub(r"\s+", " ", " ".join(sheet.extract_text() for sheet in printed.pages))
    assert [title for title in titles if title not in text] == []
    assert text.count(caption) >= 2, "the summary, and the table's own caption"
    assert len(printed.pages) < 60


def test_without_script_all_of_it_can_be_read(browser, page):
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, page)
        summary = browser.find_element(By.CSS_SELECTOR, "#perplexity figure summary")
        summary.send_keys("\n")
        table = browser.find_element(By.CSS_SELECTOR, "#perplexity figure table")
        assert table.is_displayed()
        assert not table.find_elements(By.TAG_NAME, "button")
        assert "PPL" in table.text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_hostile_names_run_nothing_and_break_no_page(browser, tmp_path):
    page = write_report(hostile_everywhere("".join(ATTACKS) + "x" * 300, figures=True), tmp_path)
    open_page(browser, page, WIDTHS[0])
    browser.execute_script(OPEN_ALL)
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script(HANDLERS) == 0
    assert browser.execute_script(PAGE_WIDTH) <= WIDTHS[0]
