"""The option that names the user's clones."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("knorm").addoption(
        "--knorm-wild",
        default=None,
        metavar="DIR",
        help="folder of clones of public implementations, DIR/<repository>, for tox -e wild",
    )
