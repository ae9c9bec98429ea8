"""One page for all tests that look at a whole one: drawing it takes a second or two."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import NamedTuple

import pytest

from knorm_core.report.page import render
from knorm_core.results.records import Results
from suites.report.made_up import all_tables
from suites.report.recorded import recorded

VOID = {"meta", "link", "br", "img", "input", "hr", "base"}


class Element(NamedTuple):
    """A start tag: its name, its attributes, and the tags that it stands in."""

    tag: str
    attributes: dict[str, str | None]
    within: tuple[str, ...]


class Parsed(HTMLParser):
    """Start tags in their order, scripts, findings and all other text; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.findings: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {tag} {attrs}"
        self.elements.append(Element(tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data):
        held = {"script": self.scripts, "figcaption": self.findings}
        held.get(self._open[-1] if self._open else "", self.text).append(data)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]


@pytest.fixture(scope="session")
def results() -> Results:
    return recorded(*all_tables(), only="embedded-articles")


@pytest.fixture(scope="session")
def page(results) -> str:
    return render(results)


@pytest.fixture(scope="session")
def parsed(page) -> Parsed:
    return Parsed(page)
