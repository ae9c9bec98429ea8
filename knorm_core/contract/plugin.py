"""The pytest plugin of the contract: its options, and which compressors, evaluators and policies they name.

It is loaded by every pytest run in an environment that has the package, so it imports neither torch nor
the checks; the tests in this package do.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from knorm_core.contract.command_line import options, pytest_cmdline_main, pytest_load_initial_conftests

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
    _see_the_current_folder(config)
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


def _see_the_current_folder(config: pytest.Config) -> str:
    """'pytest' alone, unlike 'python -m pytest', does not see it."""
    folder = str(config.invocation_params.dir)
    if folder not in sys.path:
        sys.path.append(folder)
    return folder


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
    folder = _see_the_current_folder(config)
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
