"""What is promised of every family, from a golden file: ``python -m suites.every_family [file]``, in Markdown."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

_GOLDENS = Path(__file__).parents[2] / "baselines" / "text" / "test_every_family"
_LINE = re.compile(r"(?P<family>[^,]+), (?P<variant>.+?): (?P<served>one pass( and stepwise)?|stepwise|refused)\b")
_SAID = {
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
    for how, said in _SAID.items():
        if how in served:
            names = [
                family if len(some) == variants[family] else f"{family} ({', '.join(some)})"
                for family, some in sorted(served[how].items())
            ]
            paragraphs.append(f"**{said}** ({len(names)} families): {', '.join(names)}.")
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    files = sorted(_GOLDENS.glob("*.txt"))
    print(promised(Path(sys.argv[1] if len(sys.argv) > 1 else files[-1]).read_text()))
