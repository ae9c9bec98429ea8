"""What a broken promise looks like: a finding, not a stack trace."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence


class Finding(AssertionError):
    """A check failed. The message names the promise, the smallest counter-example, and how to see it again.

    Attributes:
        check: name of the check.
        subject: name of the compressor or evaluator.
        snippet: Python that shows the counter-example.
    """

    def __init__(
        self,
        *,
        check: str,
        promise: str,
        guards: str,
        subject: str,
        example: Sequence[str],
        broken: Broken,
        snippet: str,
    ) -> None:
        self.check, self.subject, self.snippet = check, subject, snippet
        rows = [
            ("promise", promise),
            ("example", "\n".join(example)),
            *(("where" if not index else "", f"{name} {value}") for index, (name, value) in enumerate(broken.where)),
            ("expected", broken.expected),
            ("got", broken.got),
            ("against", guards),
            ("see it", snippet),
        ]
        lines = [f"{subject} does not keep the promise {check!r}", ""]
        for label, text in rows:
            if text:
                first, *rest = _wrap(text, verbatim=label in ("example", "see it"))
                lines += [f"  {label:<9} {first}".rstrip(), *(f"{'':12}{line}".rstrip() for line in rest)]
        super().__init__("\n".join(lines))


Finding.__module__ = "knorm_core.contract"  # its public name, which pytest prints


class Broken(Exception):
    """Raised inside a check: what was expected and what came, for one counter-example."""

    def __init__(self, *, expected: object, got: object, **where: object) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = brief(expected), brief(got)
        self.where: list[tuple[str, str]] = [(name.replace("_", " "), brief(value)) for name, value in where.items()]


def brief(value: object) -> str:
    """Numbers to eight significant digits, which still shows the last bits of a float32."""
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, list):
        return f"[{', '.join(map(brief, value))}]"
    return str(value)


def describe(arguments: Mapping[str, object]) -> str:
    """``name=value`` for every argument, as in a call (NaN has a repr that Python cannot read)."""
    return ", ".join(
        f"{name}=float({str(value)!r})" if value != value else f"{name}={value!r}" for name, value in arguments.items()
    )


def _wrap(text: str, *, verbatim: bool) -> list[str]:
    lines = text.split("\n")
    return lines if verbatim else [part for line in lines for part in textwrap.wrap(line, 100) or [""]]
