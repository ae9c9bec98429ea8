"""``python -m knorm_core``: the command ``knorm`` by another name."""

import sys

from knorm_core.command import main

if __name__ == "__main__":
    sys.exit(main())
