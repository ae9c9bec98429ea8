"""Use the installed wheel from an empty folder: ``python suites/wheel/run.py`` (``tox -e wheel``).

Nothing of the checkout is on the path, nor above the folder, where pytest would read its configuration. The command and
the contract are run as a user would run them, and what only this repository's suites need must not have come along.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_A_USERS = ("pytest_regressions", "syrupy", "xdist", "distributed", "sphinx")
MINE = """
    from knorm_core import kept_count, l2_compress

    def right(past_key_values, keep_ratio, prune_after, skip_layers=()):
        return l2_compress(past_key_values, keep_ratio, prune_after, skip_layers)

    def wrong(past_key_values, keep_ratio, prune_after, skip_layers=()):
        kept = [kept_count(keys.shape[-2], keep_ratio) for keys, _ in past_key_values]
        return [(k[..., -n:, :], v[..., -n:, :]) for (k, v), n in zip(past_key_values, kept, strict=True)]
"""
#: Command, exit status, and what its output has to hold.
COMMANDS: Sequence[tuple[Sequence[str], int, str]] = (
    (("knorm", "--help"), 0, "knorm COMMAND --help"),
    (("knorm", "check", "mine:right"), 0, "passed"),
    (("knorm", "check", "mine:wrong"), 1, "does not keep the promise 'position_decides_nothing'"),
    (("pytest", "-q", "--pyargs", "knorm_core.contract", "--knorm-compressor", "mine:right"), 0, "passed"),
    (("pytest", "-q", "--pyargs", "knorm_core.contract"), 0, "passed"),
    (("knorm", "eval", "--text", "embedded-short", "--keep-ratios", "0.5", "--max-tokens", "160"), 0, "keep ratio"),
)


def main(folder: Path) -> None:
    """Run every command in an empty folder; exit with the first that does not do what it should."""
    (folder / "mine.py").write_text(textwrap.dedent(MINE), encoding="utf-8")
    came = [name for name in NOT_A_USERS if importlib.util.find_spec(name)]
    if came:
        sys.exit(f"{', '.join(came)} came with the package: no user of it needs them")
    where = _run(folder, ("python", "-P", "-c", "import knorm_core; print(knorm_core.__file__)"), 0, "site-packages")
    if Path(where.strip()).is_relative_to(CHECKOUT / "knorm_core"):
        sys.exit(f"knorm_core is imported from {where.strip()}, not from the wheel")
    for command, status, holds in COMMANDS:
        _run(folder, command, status, holds)
        print(f"exit status {status}, as it should be: {' '.join(command)}", flush=True)


def _run(folder: Path, command: Sequence[str], status: int, holds: str) -> str:
    program = Path(sys.executable).with_name(command[0])
    # tox's environments lie below the checkout, whose conftest pytest would take for that of the package.
    around = {**os.environ, "PYTEST_ADDOPTS": "--noconftest"}
    run = subprocess.run([program, *command[1:]], cwd=folder, env=around, capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    if run.returncode != status or holds not in output:
        sys.exit(f"{' '.join(command)} exits with {run.returncode}; expected {status} and {holds!r} in\n{output}")
    return run.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        main(Path(empty).resolve())
