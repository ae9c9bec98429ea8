"""Public implementations against the contract: what is found, that it was read off their code, and the page of it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from suites.wild.audit import COMMAND, FOLLOWS, Audited, audit, findings_of, page, table
from suites.wild.implementations import IMPLEMENTATIONS, Implementation

ids = [made.label.replace(": ", "-") for made in IMPLEMENTATIONS]
PAGE = Path(__file__).parents[2] / "docs/wild.md"


@pytest.fixture
def clones(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.getoption("--knorm-wild")
    if folder is None:
        pytest.skip("give --knorm-wild DIR: DIR/<repository> is a clone of each at the commit in docs/wild.md")
    return Path(folder).expanduser().resolve()


@functools.cache
def audited(clones: Path) -> list[Audited]:
    return audit(clones)


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=ids)
def test_every_finding_was_read_off_the_code_and_nothing_else_is_found(implementation: Implementation, clones: Path):
    assert sorted(finding.check for finding in findings_of(implementation, clones)) == sorted(implementation.read)


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_the_audit_is_the_one_of_the_baseline(clones: Path, text_snapshot):
    assert table(audited(clones)) == text_snapshot


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_the_page_is_made_from_the_audit(clones: Path):
    assert PAGE.read_text(encoding="utf-8") == page(audited(clones)), f"make it anew: {COMMAND}"


@pytest.mark.fast
def test_there_are_ten_public_implementations_and_each_is_pinned():
    repositories = {made.source.repository for made in IMPLEMENTATIONS}
    assert len(IMPLEMENTATIONS) >= 10
    assert len(repositories) >= 9
    for made in IMPLEMENTATIONS:
        assert made.source.distribution or len(made.source.commit) == 40
        assert made.source.distribution or len(made.source.sha256) == 64


@pytest.mark.fast
def test_it_is_said_of_every_finding_what_follows_from_it():
    assert {check for made in IMPLEMENTATIONS for check in made.read} <= set(FOLLOWS)


@pytest.mark.fast
def test_the_page_lists_every_implementation_with_its_commit_and_every_finding_with_its_lines():
    text = PAGE.read_text(encoding="utf-8")
    for made in IMPLEMENTATIONS:
        assert f"## {made.label}\n" in text
        assert made.source.commit in text
        for check, lines in made.read.items():
            assert f"| `{check}` |" in text
            assert made.source.place(lines) in text


@pytest.mark.fast
def test_a_clone_of_another_version_is_refused_before_it_is_imported(tmp_path: Path):
    source = IMPLEMENTATIONS[0].source
    with pytest.raises(pytest.UsageError, match=r"git clone \S+alessiodevoto/l2compress"):
        IMPLEMENTATIONS[0].subject(tmp_path)
    file = tmp_path / source.folder / source.file
    file.parent.mkdir()
    file.write_text("raise SystemExit('imported')\n")
    with pytest.raises(pytest.UsageError, match=f"checkout {source.commit}"):
        IMPLEMENTATIONS[0].subject(tmp_path)
