"""The command line of pytest with knorm's options: their group, and ``--knorm-… VALUE`` with a space.

pytest chooses its rootdir, and with it the configuration and the conftest files, from every argument that is a path,
before it loads any plugin. So the value of ``--knorm-model /some/where/model`` would move the rootdir out of the
repository, and the conftest that declares the option would not be loaded. Where a value stands apart, the run is
made anew with ``--knorm-model=/some/where/model``, which pytest cannot mistake.

Loaded in every pytest run of an environment that has the package, so it imports nothing but pytest.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import pytest

# Options without a value; what follows them is an argument of its own.
FLAGS = ("--knorm-explore", "--knorm-claims", "--knorm-progress")
_ADDOPTS = "PYTEST_ADDOPTS"


def options(parser: pytest.Parser) -> Any:
    """The group of knorm's options in ``pytest --help``."""
    return parser.getgroup("knorm", "KV-cache compression by key norm (knorm)")


def importable_from(folder: str) -> None:
    """Let modules of a folder be imported: a script such as ``pytest``, unlike ``python -m``, does not see its own."""
    if folder not in sys.path:
        sys.path.append(folder)


def joined(arguments: Sequence[str]) -> list[str]:
    """The arguments, each knorm option joined by ``=`` to the value that follows it.

    Every value, whether or not it is a path by now: what the run makes, such as the folder of a report, is there
    when xdist's workers read the arguments.

    >>> joined(["-v", "--knorm-report", "out", "--knorm-claims", "suites"])
    ['-v', '--knorm-report=out', '--knorm-claims', 'suites']
    """
    result: list[str] = []
    for argument in arguments:
        last = result[-1] if result else ""
        takes_value = last.startswith("--knorm-") and "=" not in last and last not in FLAGS
        if takes_value and not argument.startswith("-"):
            result[-1] = f"{last}={argument}"
        else:
            result.append(argument)
    return result


_anew: pytest.StashKey[tuple[list[str], str]] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> bool | None:
    """Put a run aside whose rootdir may be wrong; `pytest_cmdline_main` makes it anew."""
    given = early_config.invocation_params
    arguments, environment = list(map(str, given.args)), os.environ.get(_ADDOPTS, "")
    meant = joined(arguments)
    meant_environment = shlex.split(environment)
    meant_environment = joined(meant_environment)
    if meant == arguments and meant_environment == shlex.split(environment):
        return None
    early_config.stash[_anew] = (meant, shlex.join(meant_environment))
    args.clear()
    early_config.known_args_namespace.noconftest = True
    early_config.known_args_namespace.file_or_dir = []
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | pytest.ExitCode | None:
    """Run pytest with the arguments as they were meant, where they could be mistaken."""
    if _anew not in config.stash:
        return None
    arguments, environment = config.stash[_anew]
    with pytest.MonkeyPatch.context() as patch:
        if environment:
            patch.setenv(_ADDOPTS, environment)
        return pytest.main(arguments, config.invocation_params.plugins)
