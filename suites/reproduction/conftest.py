"""What a run of the report's own experiment ends with: the sentence that says how its table was made."""

from __future__ import annotations

import pytest

ANSWER = "knorm_answer"
_answers: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.fixture
def answer(record_property):
    """``answer(sentence)``: the last line of the run."""
    return lambda sentence: record_property(ANSWER, sentence)


def pytest_terminal_summary(terminalreporter, config):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    config.stash[_answers] = [
        sentence
        for report in reports
        for name, sentence in getattr(report, "user_properties", ())
        if name == ANSWER and report.when == "call"
    ]


def pytest_unconfigure(config):
    for sentence in config.stash.get(_answers, []):
        config.pluginmanager.get_plugin("terminalreporter").write_line(sentence)
