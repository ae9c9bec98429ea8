"""The pytest plugin of this package: the `--knorm-…` options, whatever conftest is there.

It is loaded by every pytest run in an environment that has the package, so it only declares options;
torch is imported by what uses them.
"""

from __future__ import annotations

import argparse

import pytest

KEEP_RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)
POSITIONS = ("absolute", "cache")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("knorm", "KV-cache compression by key norm (knorm)")
    group.addoption(
        "--knorm-model",
        default="smollm2-135m",
        metavar="PATH_OR_ID",
        help="model: smollm2-135m (embedded), a local folder with safetensors, or a hub id (default: %(default)s)",
    )
    group.addoption(
        "--knorm-text",
        default="embedded",
        metavar="NAME[,NAME]",
        help="text sets: embedded, embedded-articles, embedded-short, embedded-narrative, wikitext, "
        "wikitext-articles, wikitext-short, wikitext-all, pg19 (default: %(default)s)",
    )
    group.addoption(
        "--knorm-text-dir",
        default=None,
        metavar="DIR",
        help="local mirror of the texts: DIR/wikitext-2-raw/test.txt, DIR/pg19/<id>.txt "
        "(default: $KNORM_TEXT_DIR, else the hub)",
    )
    group.addoption(
        "--knorm-keep-ratios",
        type=_ratios,
        default=KEEP_RATIOS,
        metavar="R[,R]",
        help="keep ratios, each in (0, 1]; 1.0 is always among them (default: 1.0,0.9,0.7,0.5,0.3,0.1)",
    )
    group.addoption(
        "--knorm-policy",
        default="low_norm",
        metavar="NAME|PACKAGE.MODULE:NAME",
        help="eviction policy of the reproduction's tables: one of knorm_core.POLICIES, or a subclass or instance of "
        "knorm_core.Policy by import (default: %(default)s)",
    )
    group.addoption(
        "--knorm-prune-after",
        type=_positive,
        default=256,
        metavar="N",
        help="cache length from which a layer is compressed, in tokens (default: %(default)s)",
    )
    group.addoption(
        "--knorm-max-eval-tokens",
        type=_positive,
        default=None,
        metavar="N",
        help="cut each text to N tokens (default: 1024; the embedded narrative 2048)",
    )
    group.addoption(
        "--knorm-positions",
        type=_positions,
        default=POSITIONS,
        metavar="MODE[,MODE]",
        help="position modes: absolute, cache (default: both)",
    )
    group.addoption(
        "--knorm-dtype",
        choices=DTYPES,
        default="float64",
        help="precision of weights and activations; baselines are float64 (default: %(default)s)",
    )
    group.addoption(
        "--knorm-report",
        default=None,
        metavar="DIR",
        help="write the results as data and as a page, DIR/index.html (default: no report)",
    )
    group.addoption(
        "--knorm-missing-baseline",
        choices=("fail", "skip"),
        default="fail",
        help="a table without a baseline fails, or is shown and the comparison skipped (default: %(default)s)",
    )
    group.addoption("--knorm-device", default="cpu", metavar="DEVICE", help="torch device (default: %(default)s)")
    group.addoption(
        "--knorm-store",
        type=_store,
        default=None,
        metavar="FILE.sqlite|off",
        help="where results are kept and found again by later runs of the reproduction, or off to compute them "
        "anew (default: $KNORM_STORE, else results.sqlite in the user's cache folder)",
    )
    group.addoption(
        "--knorm-scheduler",
        default=None,
        metavar="ADDRESS",
        help="Dask scheduler (tcp://…) whose workers are to compute the reproduction's tables (default: this machine)",
    )


def _store(value: str) -> str:
    if value != "off" and not value.endswith(".sqlite"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither off nor the name of a file that ends in .sqlite")
    return value


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
