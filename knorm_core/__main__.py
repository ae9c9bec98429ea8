"""``python -m knorm_core prepare | fetch | compare A B``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m knorm_core")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="convert the embedded model, once; print its folder")
    commands.add_parser("fetch", help="download what is pinned on the hub, with progress shown")
    commands.add_parser("compare", help="what moved between two results folders", add_help=False)
    command = parser.parse_args(arguments[:1]).command
    if command == "compare":
        from knorm_core.compare.__main__ import main as compare

        return compare(arguments[1:])
    parser.parse_args(arguments)  # refuse what comes after the command
    if command == "prepare":
        from knorm_core.inputs.embedded_model import convert_embedded

        print(convert_embedded())
    else:
        from knorm_core.inputs.hub import fetch_pinned

        fetch_pinned()
    return 0


if __name__ == "__main__":
    sys.exit(main())
