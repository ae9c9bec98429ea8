"""Writes what is promised of every family into README.md and the docs: ``python -m suites.every_family``.

The golden file is that of the transformers which constraints.txt pins. ``python -m suites.every_family FILE`` prints
the list of another one.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, LIST = ROOT / "README.md", ROOT / "docs" / "explanation" / "models.md"
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
    return next(GOLDENS.glob(f"*[[]transformers-{_release()}[]].txt"))


def _release() -> str:
    release = re.search(r"^transformers==(\d+\.\d+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert release is not None
    return release[1]


def summary(golden: str) -> str:
    """How many families are served in which way, each by its best variant: a line for the README."""
    ways: dict[str, set[str]] = defaultdict(set)
    for match in filter(None, map(_LINE.match, golden.splitlines())):
        ways[match["family"]].add(match["served"].removesuffix(" and stepwise"))
    in_one_pass = sum("one pass" in served for served in ways.values())
    token_by_token = sum("stepwise" in served and "one pass" not in served for served in ways.values())
    refused = sum(served == {"refused"} for served in ways.values())
    return (
        f"Of the {len(ways)} causal model families of transformers {_release()}, {in_one_pass} are evaluated in one "
        f"pass, {token_by_token} token by token, and {refused} are refused, each with its reason: "
        f"[which](docs/explanation/models.md)."
    )


def pages() -> dict[Path, str]:
    """The text of each page with what the golden file has.

    Raises:
        ValueError: a page has no place for it.
    """
    golden = pinned().read_text("utf-8")
    texts = {}
    for path, made in ((README, summary(golden)), (LIST, promised(golden))):
        before, begin, rest = path.read_text("utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if not (begin and end):
            raise ValueError(f"{path.name} has no place for the families: {_BEGIN.strip()} and {_END.strip()}")
        texts[path] = before + begin + made + end + after
    return texts


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(promised(Path(sys.argv[1]).read_text("utf-8")))
    else:
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
