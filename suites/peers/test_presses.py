"""kvpress's presses against the contract: every check that applies, and the table of who passes which.

What a press knowingly does otherwise is an expected failure with its reason, and strict: the day it
passes, the test fails, and the table is to be made anew.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from knorm_core.contract import COMPRESSOR_CHECKS, Finding
from knorm_core.contract.checks import Check, registered
from suites.peers.presses import DECLARED, LEFT_OUT, PRESSES, Press, needs_kvpress

pytestmark = [pytest.mark.peers, needs_kvpress, pytest.mark.xdist_group("presses")]

EVERY = registered("what comes back", "when it fires and what it depends on")
KEY_NORM = registered("key norm")


@functools.cache
def finding(press: str, check: Check) -> Finding | None:
    """Each pair is run once and looked at twice, by its own test and by the table."""
    [subject] = [subject for subject in PRESSES if subject.name == press]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some presses draw random numbers without a seed of their own
        return check.find(subject.compressor)


def held_to() -> Iterator[object]:
    for press in PRESSES:
        for check in COMPRESSOR_CHECKS:
            if check.applies(press.compressor.claims):
                reason = press.differs.get(check.name)
                marks = [pytest.mark.xfail(reason=reason, raises=Finding, strict=True)] if reason else []
                yield pytest.param(press, check, id=f"{press.name}-{check.name}", marks=marks)


@pytest.mark.parametrize(("press", "check"), held_to())
def test_press_keeps_the_promise(press, check):
    broken = finding(press.name, check)
    if broken is not None:
        raise broken


def test_table_of_presses_and_checks(show_table, text_snapshot):
    columns = [check for check in EVERY if any(check.applies(press.compressor.claims) for press in PRESSES)]
    rows = [
        {"press": press.label, "route": press.route}
        | {str(number): mark(press, check) for number, check in enumerate(columns, 1)}
        for press in PRESSES
    ]
    legend = [
        "+ passes, x expected failure, . not claimed; hook: in the prefill of a tiny model, keys: on synthetic keys",
        *(f"{number:>2} {check.name}" for number, check in enumerate(columns, 1)),
    ]
    by_norm = [press for press in PRESSES if press.compressor.claims.key_norm]
    norm_rows = [{"check": check.name} | {press.name: mark(press, check) for press in by_norm} for check in KEY_NORM]
    show_table("kvpress 0.5.5 against the contract: checks of every compressor", rows, *legend)
    show_table("kvpress 0.5.5 against the contract: checks of compressors by key norm", norm_rows)
    assert "\n\n".join([text(rows), "\n".join(legend), text(norm_rows), reasons()]) + "\n" == text_snapshot


def mark(press: Press, check: Check) -> str:
    if not check.applies(press.compressor.claims):
        return "."
    return "+" if finding(press.name, check) is None else "x"


def text(rows: list[dict[str, str]]) -> str:
    """Rows as a plain table."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def reasons() -> str:
    """Every expected failure and every claim left out, with the reason; presses that share both on one line."""
    presses: dict[tuple[str, str], list[str]] = {}
    for press in PRESSES:
        for check, reason in press.differs.items():
            presses.setdefault((check, reason), []).append(press.label)
    differs = [
        f"x {check}: {reason}\n    {', '.join(dict.fromkeys(names))}" for (check, reason), names in presses.items()
    ]
    return "\n".join([*differs, "", *(f". {check}: {reason}" for check, reason in DECLARED.items())])


def test_every_expected_failure_is_of_a_check_that_applies():
    applies = {
        (press.name, c.name) for press in PRESSES for c in COMPRESSOR_CHECKS if c.applies(press.compressor.claims)
    }
    assert {(press.name, check) for press in PRESSES for check in press.differs} <= applies


def test_every_public_press_is_held_to_the_contract_or_left_out_for_a_reason():
    import kvpress

    held = {press.label for press in PRESSES}
    assert held | set(LEFT_OUT) == set(kvpress.__all__)
    assert not held & set(LEFT_OUT)
