"""``python -m suites.wild DIR``: the page of the audit, from the clones in DIR, to standard output."""

from __future__ import annotations

import sys
from pathlib import Path

from suites.wild.audit import COMMAND, audit, page

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {COMMAND}   (DIR holds a clone of each repository, by its name)")
    print(page(audit(Path(sys.argv[1]))), end="")
