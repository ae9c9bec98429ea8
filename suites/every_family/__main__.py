"""Writes README.md's list of families from a golden file: ``python -m suites.every_family``.

The golden file is that of the transformers which constraints.txt pins. ``python -m suites.every_family FILE`` prints
the list of another one.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
GOLDENS = ROOT / "baselines" / "text" / "test_every_family"

_BEGIN, _END = "<!-- families -->\n", "\n<!-- end of families -->"
_LINE = re.compile(r"(?P<family>[^,]+), (?P<variant>.+?): (?P<served>one pass( and stepwise)?|stepwise|refused)\b")
_HEADINGS = {
    "one pass": "In one pass",
    "one pass and stepwise": "In one pass, and token by token where that is said",
    "stepwise": "Token by token",
    "refused": "Refused, with the reason",
}


def promised(golden: str) -> str:
    """Families by how they are served; a family whose variants differ stands with each, the variants in brackets."""
    served: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    variants: dict[str, int] = defaultdict(int)
    for match in filter(None, map(_LINE.match, golden.splitlines())):
        served[match["served"]][match["family"]].append(match["variant"])
        variants[match["family"]] += 1
    paragraphs = []
    for how, heading in _HEADINGS.items():
        if how in served:
            names = [
                family if len(some) == variants[family] else f"{family} ({'; '.join(some)})"
                for family, some in sorted(served[how].items())
            ]
            paragraphs.append(f"**{heading}** ({len(names)}): {', '.join(names)}.")
    return "\n\n".join(paragraphs)


def pinned() -> Path:
    """The golden file of the transformers that the reproduction is pinned to."""
    release = re.search(r"^transformers==(\d+\.\d+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert release is not None
    return next(GOLDENS.glob(f"*[[]transformers-{release[1]}[]].txt"))


def page(text: str) -> str:
    """README.md's text with the list as the golden file has it."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no place for the families: lines {_BEGIN.strip()} and {_END.strip()}")
    return before + begin + promised(pinned().read_text("utf-8")) + end + after


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(promised(Path(sys.argv[1]).read_text("utf-8")))
    else:
        PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
