"""The pytest plugin of the contract: its options, and which compressors, evaluators and policies they name.

It is loaded by every pytest run in an environment that has the package, so it imports neither torch nor
the checks; the tests in this package do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from knorm_core.contract.command_line import (
    importable_from,
    options,
    pytest_cmdline_main,
    pytest_load_initial_conftests,
)

__all__ = ["pytest_cmdline_main", "pytest_load_initial_conftests"]  # hooks too


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-compressor",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="compressor for 'pytest --pyargs knorm_core.contract': a function over (key, value) pairs, or what "
        "an adapter of knorm_core.contract made of one; may be given several times",
    )
    group.addoption(
        "--knorm-evaluator",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="evaluator for 'pytest --pyargs knorm_core.contract': a callable (model, input_ids, keep_ratio, "
        "prune_after) to the loss per scored token; may be given several times",
    )
    group.addoption(
        "--knorm-policy",
        action="append",
        default=[],
        metavar="NAME|MODULE:NAME",
        help="eviction policy: one of knorm_core.POLICIES, or a subclass or instance of knorm_core.Policy by import; "
        "for 'pytest --pyargs knorm_core.contract', where it may be given several times, and of the reproduction's "
        "tables, which are otherwise of low_norm",
    )
    group.addoption(
        "--knorm-examples",
        type=int,
        default=25,
        metavar="N",
        help="cases that each check of a compressor or a policy tries (default: %(default)s)",
    )
    group.addoption(
        "--knorm-explore",
        action="store_true",
        help="try other cases at each run; without it they are always the same",
    )


# Read by the tests of the contract, and by no others.
_OPTIONS = ("--knorm-compressor", "--knorm-evaluator", "--knorm-examples", "--knorm-explore")
_UNREAD = "knorm_unread"
_unread: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which options no test of the run reads, for `pytest_terminal_summary`."""
    add_unread(session.config, () if any(map(of_the_contract, session.items)) else _OPTIONS)


def of_the_contract(item: pytest.Item) -> bool:
    """Whether a test is one of the contract's own, which read every option of this plugin."""
    return item.path == Path(__file__).with_name("test_contract.py")


def add_unread(config: pytest.Config, options: Iterable[str]) -> None:
    """Options that no test of the run reads, in an order of the caller's."""
    config.stash.setdefault(_unread, []).extend(options)
    if hasattr(config, "workeroutput"):
        config.workeroutput[_UNREAD] = config.stash[_unread]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if _UNREAD in getattr(node, "workeroutput", {}):
        node.config.stash[_unread] = node.workeroutput[_UNREAD]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the options that were given for nothing: on the command line, not in a file or the environment.

    It fails nothing: the options of a shell's history or of a CI job are given to runs of single tests, too.
    """
    given = [str(argument).partition("=")[0] for argument in config.invocation_params.args]
    options = [option for option in config.stash.get(_unread, []) if option in given]
    if options:
        terminalreporter.line(f"no test of this run reads {' or '.join(options)}: without effect", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with a name before anything is collected."""
    for option in ("--knorm-compressor", "--knorm-evaluator"):
        named(config, option)
    named_policies(config)


def named_policies(config: pytest.Config) -> list[Any]:
    """The policies that ``--knorm-policy`` names, as the checks see them.

    Raises:
        pytest.UsageError: there is no such policy.
    """
    names = config.getoption("--knorm-policy")
    if not names:
        return []
    importable_from(str(config.invocation_params.dir))
    from knorm_core.contract.policies import as_policy

    policies = []
    for name in names:
        try:
            policies.append(as_policy(name))
            continue
        except (TypeError, ValueError) as error:
            sentence = str(error)
        except Exception as error:  # whatever importing it raises
            sentence = f"cannot be imported ({type(error).__name__}: {error})"
        raise pytest.UsageError(f"--knorm-policy={name}: {sentence}")
    return policies


def named(config: pytest.Config, option: str) -> list[Any]:
    """The objects that ``--knorm-compressor`` or ``--knorm-evaluator`` names.

    Raises:
        pytest.UsageError: there is no such thing, or it cannot be called.
    """
    return [_load(config, option, name) for name in config.getoption(option)]


def _load(config: pytest.Config, option: str, name: str) -> Any:
    module_name, _, qualified = name.partition(":")
    if not module_name or not qualified:
        raise pytest.UsageError(f"{option}={name}: give MODULE:NAME, such as mypkg.mymodule:my_compress")
    folder = str(config.invocation_params.dir)
    importable_from(folder)
    try:
        target = importlib.import_module(module_name)
    except Exception as error:  # whatever importing it raises
        raise pytest.UsageError(
            f"{option}={name}: cannot import {module_name} ({type(error).__name__}: {error}), looked in {folder} too"
        ) from None
    for part in qualified.split("."):
        if not hasattr(target, part):
            raise pytest.UsageError(f"{option}={name}: {module_name} has no {qualified}")
        target = getattr(target, part)
    if not callable(target):
        raise pytest.UsageError(f"{option}={name}: {target!r} is not callable")
    return target
