"""Users as containers have them: without a name, without a home, or with one that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from knorm_core.inputs import cache
from knorm_core.inputs.cache import cache_folder

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("home", ["none", "read-only"])
def test_a_user_without_a_name_or_a_home_that_can_be_written_loads_a_text(home, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "KNORM_CACHE")}
    if home == "read-only":
        (tmp_path / "home").mkdir(mode=0o500)
        environment["HOME"] = str(tmp_path / "home")
    program = (
        "import os, platformdirs.unix\n"
        "from types import SimpleNamespace as Answer\n"
        "from knorm_core import load_texts\n"
        "from knorm_core.inputs.cache import cache_folder\n"
        "from suites.kills_and_damage.privileges import become\n"
        "become(12345)\n"
        "tokens = lambda text, **_: Answer(input_ids=[ord(c) for c in text])\n"
        "[text] = load_texts('embedded-narrative', tokens, bos='off')\n"
        "print(len(text.input_ids), cache_folder())\n"
    )
    if os.getuid() != 0:
        pytest.skip("only root can become a user that the system does not know")
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    length, _, folder = done.stdout.partition(" ")
    assert length == "2048"
    assert folder.strip() == ("/tmp/knorm-12345" if home == "none" else str(tmp_path / "home" / ".cache" / "knorm"))


@pytest.mark.parametrize("taken", ["no", "own", "link", "open to all", "file"])
def test_the_folder_of_a_user_without_a_home_is_one_that_nobody_else_can_have_filled(taken, tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("KNORM_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is no entry either
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = tmp_path / f"knorm-{os.getuid()}"
    if taken == "link":
        (tmp_path / "elsewhere").mkdir()
        expected.symlink_to("elsewhere")
    elif taken == "file":
        expected.touch()
    elif taken != "no":
        expected.mkdir(mode=0o700)
        expected.chmod(0o777 if taken == "open to all" else 0o700)
    cache._own_temporary_folder.cache_clear()
    folder = cache_folder()
    cache._own_temporary_folder.cache_clear()
    assert (folder == expected) == (taken in ("no", "own"))
    assert folder.parent == tmp_path
    assert not folder.is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o700
