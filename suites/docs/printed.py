"""What a page says that a command prints, held against what it prints."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: float32 tables move by up to 1.5 % between instruction sets; a change in per cent also by a unit of its last digit.
_RELATIVE = 0.015


def missing(expected: str, printed: str) -> str | None:
    """The first line of ``expected`` that ``printed`` does not hold after the ones before it, or None.

    Runs of blanks and rules of tables count as one blank; ``…`` stands for anything, also for lines. Numbers are
    compared within what float32 allows.
    """
    lines = [_plain(line) for line in printed.split("\n")]
    at = 0
    for line in expected.split("\n"):
        wanted = _plain(line)
        if wanted in ("", "…"):
            continue
        pattern = re.compile(_pattern(wanted))
        for offset, candidate in enumerate(lines[at:]):
            if (match := pattern.search(candidate)) and _close(wanted, match):
                at += offset + 1
                break
        else:
            return line
    return None


def _plain(line: str) -> str:
    return " ".join(re.sub(r"[│┃|]", " ", line).split())


def _pattern(wanted: str) -> str:
    """Numbers as groups, anything for ``…``."""
    parts = re.split(r"(\d+(?:\.\d+)?|\s*…\s*)", wanted)
    return "".join(
        "(" + _NUMBER.pattern + ")" if _NUMBER.fullmatch(part) else ".*?" if part.strip() == "…" else re.escape(part)
        for part in parts
    )


def _close(wanted: str, match: re.Match[str]) -> bool:
    pairs = list(zip(_NUMBER.finditer(wanted), match.groups(), strict=True))
    return all(_same(said[0], got, exact=said.start() == 0, change="%" in wanted) for said, got in pairs)


def _same(said: str, got: str, *, exact: bool, change: bool) -> bool:
    """Whether a printed number is the one that is said: what begins a line is a setting, a whole number a count."""
    if said == got:
        return True
    decimals = len(said.partition(".")[2])
    if exact or not (decimals or change):
        return False
    unit = 1.01 * 10.0**-decimals if change else 0.0
    return abs(float(said) - float(got)) <= max(_RELATIVE * float(said), unit)
