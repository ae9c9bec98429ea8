"""The pytest plugin of this package: the `--knorm-…` options, whatever conftest is there."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("knorm", "KV-cache compression by key norm (knorm)")
