"""How the tables of the command line are made: keep ratios, prune_after, length of the texts, position modes."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from knorm_core.arguments import POSITIONS
from knorm_core.contract.command_line import importable_from, options
from knorm_core.policy_names import find_policy, policy_identity


class TableSettings(NamedTuple):
    """The settings of a table.

    Attributes:
        keep_ratios: each in (0, 1], from 1.0 down.
        prune_after: cache length from which a layer is compressed, in tokens.
        max_eval_tokens: where each text is cut; None: the text set's own length.
        positions: position modes, of `knorm_core.evaluate`.
        policy: which keys stay: a name, or PACKAGE.MODULE:NAME.
    """

    keep_ratios: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)
    prune_after: int = 256
    max_eval_tokens: int | None = None
    positions: tuple[str, ...] = ("absolute", "cache")
    policy: str = "low_norm"

    @property
    def named(self) -> dict[str, Any]:
        """What a table's name and provenance say of them; each position mode has a table of its own."""
        settings = self._asdict()
        del settings["positions"]
        if self.policy == TableSettings._field_defaults["policy"]:
            del settings["policy"]  # of the method itself nothing is said
        else:
            settings["policy"] = policy_identity(find_policy(self.policy)) or self.policy
        return settings

    @property
    def suffix(self) -> str:
        """Suffix of a table's name: empty for the defaults, else a short hash, so that each has its own file."""
        return settings_suffix(self.named, TableSettings().named)


def settings_suffix(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Empty where settings are the defaults, else a short hash of those that are not."""
    changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
    return f"-{hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:8]}" if changed else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    group, defaults = options(parser), TableSettings()
    group.addoption(
        "--knorm-keep-ratios",
        type=_ratios,
        default=defaults.keep_ratios,
        metavar="R[,R]",
        help="keep ratios, each in (0, 1]; 1.0 is always among them (default: 1.0,0.9,0.7,0.5,0.3,0.1)",
    )
    group.addoption(
        "--knorm-prune-after",
        type=_positive,
        default=defaults.prune_after,
        metavar="N",
        help="cache length from which a layer is compressed, in tokens (default: %(default)s)",
    )
    group.addoption(
        "--knorm-max-eval-tokens",
        type=_positive,
        default=defaults.max_eval_tokens,
        metavar="N",
        help="cut each text to N tokens (default: 1024; the embedded narrative 2048)",
    )
    group.addoption(
        "--knorm-positions",
        type=_positions,
        default=defaults.positions,
        metavar="MODE[,MODE]",
        help=f"position modes, of {', '.join(POSITIONS)} (default: {','.join(defaults.positions)})",
    )
    group.addoption(
        "--knorm-policy",
        default=defaults.policy,
        metavar="NAME|PACKAGE.MODULE:NAME",
        help="eviction policy of the reproduction's tables: one of knorm_core.POLICIES, or a subclass or instance of "
        "knorm_core.Policy by import (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with the policy's name once, before anything runs."""
    importable_from(str(config.invocation_params.dir))
    try:
        find_policy(config.getoption("knorm_policy"))
    except (TypeError, ValueError) as error:
        sentence = str(error)
    else:
        return
    raise pytest.UsageError(sentence)


@pytest.fixture(scope="session")
def table_settings(request: pytest.FixtureRequest) -> TableSettings:
    """The `TableSettings` of --knorm-keep-ratios, --knorm-prune-after, --knorm-max-eval-tokens, …."""
    return TableSettings(*(request.config.getoption(f"knorm_{name}") for name in TableSettings._fields))


@pytest.fixture
def position_mode(request: pytest.FixtureRequest) -> str:
    """A mode of --knorm-positions; a test that asks for it runs with each."""
    return str(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "position_mode" in metafunc.fixturenames and not parametrised(metafunc, "position_mode"):
        metafunc.parametrize("position_mode", metafunc.config.getoption("knorm_positions"), indirect=True)


def parametrised(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether the test has values of its own for the argument."""
    return any(name in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))


def _ratios(value: str) -> tuple[float, ...]:
    try:
        ratios = [float(part) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a list of numbers such as 1.0,0.5,0.1") from None
    wrong = [ratio for ratio in ratios if not 0 < ratio <= 1]
    if wrong:
        raise argparse.ArgumentTypeError(f"keep ratio {wrong[0]} is outside (0, 1]")
    return tuple(sorted({1.0, *ratios}, reverse=True))


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of tokens (an integer of at least 1)")
    return int(value)


def _positions(value: str) -> tuple[str, ...]:
    modes = tuple(value.split(","))
    wrong = [mode for mode in modes if mode not in POSITIONS]
    if wrong:
        raise argparse.ArgumentTypeError(f"unknown position mode {wrong[0]!r}: choose from {', '.join(POSITIONS)}")
    return modes
