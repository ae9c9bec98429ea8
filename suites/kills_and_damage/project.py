"""A small repository that uses our plugins, and whole pytest runs of it in forks, which start at once."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from suites.kills_and_damage import privileges
from suites.kills_and_damage.killed import Process

PROJECT = {
    "pytest.ini": "[pytest]\n",
    "conftest.py": 'pytest_plugins = ["knorm_core.plugin"]',
    "test_it.py": textwrap.dedent(
        """
        import os, pytest

        VALUE = os.environ["VALUE"]

        @pytest.mark.parametrize("table", ["a", "b"])
        def test_numbers(golden, table):
            rows = [{"keep_ratio": 1.0, "ppl": 12.5}, {"keep_ratio": 0.5, "ppl": float(VALUE)}]
            golden.check(f"m/{table}/ppl", rows, key=("keep_ratio",), made_from={"text": VALUE})

        def test_text(text_snapshot):
            assert "value " + VALUE == text_snapshot
        """
    ),
}


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run_pytest(
    project: Path,
    *arguments: str,
    dies_at: int | None = None,
    output: Path | None = None,
    user: int | None = None,
    obeys_permissions: bool = False,
    **environment: str,
) -> Process:
    """A pytest run of the project, in a process of its own, which tells pytest's exit status.

    It may die in front of a change of its baselines, write what it says to a file, run as a user who has neither a
    name nor a home, and be bound by file permissions, which root is not otherwise.
    """

    def run(tell: Callable[[int], Any]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project)
            if output is not None:
                file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)
            if user is not None:
                privileges.become(user)
                for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
                    patch.delenv(name, raising=False)
            if obeys_permissions:
                privileges.obey_permissions()
            for name, value in environment.items():
                patch.setenv(name, value)
            tell(
                int(pytest.main(["-p", "no:cacheprovider", "-p", "no:randomly", "--import-mode=importlib", *arguments]))
            )

    return Process(run, dies_at=dies_at, below=project / "baselines")
