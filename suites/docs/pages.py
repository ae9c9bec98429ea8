"""The pages that users read, as blocks of code: commands, Python, files, and what comes out.

A block of ``sh`` holds commands, of ``python`` statements. A first line ``# mine.py`` makes any block a file.
``text`` right after commands or Python is what they print: ``…`` stands for anything. What cannot be run
everywhere says so: ``# needs …`` after a command, or as the first line of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md")))
_FILE = re.compile(r"# ([\w./-]+\.\w+)")
_NEEDS = re.compile(r"#\s*needs (.+)$")
_CODE = {"sh", "python"}


@dataclass
class Block:
    """A block of code of a page, and what the page says that it prints."""

    page: Path
    line: int
    language: str
    content: str
    prints: str | None = field(default=None)

    @property
    def file(self) -> str | None:
        """The name of the file that the block is."""
        match = _FILE.fullmatch(self.content.split("\n")[0])
        return match[1] if match else None

    @property
    def needs(self) -> str | None:
        """What all of the block needs."""
        match = _NEEDS.match(self.content.split("\n")[0])
        return match[1] if match else None

    @property
    def commands(self) -> list[tuple[str, str | None]]:
        """Each command of a block of ``sh``, and what it needs beyond this machine and the package."""
        joined = self.content.replace("\\\n", " ")
        parted = [(line, _NEEDS.search(line)) for line in joined.split("\n") if line.strip()]
        return [(line[: match.start()] if match else line, match and match[1]) for line, match in parted]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    made: list[Block] = []
    previous = None
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type == "fence" and not token.info.startswith("{"):
            block = Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content.rstrip("\n"))
            follows = previous is not None and previous.language in _CODE and previous.file is None
            if block.language == "text" and follows and previous is not None:
                previous.prints = block.content
            else:
                made.append(block)
            previous = block
    return made


def all_blocks() -> Iterator[Block]:
    """Of all pages."""
    for page in PAGES:
        yield from blocks(page)
