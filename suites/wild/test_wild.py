"""Public implementations against the contract: what is found, that it was read off their code, and the page of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from knorm_core import kept_count
from knorm_core.contract import check_compressor
from suites.wild.adapters import prompt_compressor_of_a_layer
from suites.wild.audit import COMMAND, FOLLOWS, audit, findings_of, page, table
from suites.wild.clones import load
from suites.wild.implementations import IMPLEMENTATIONS, Implementation

ids = [made.label.replace(": ", "-") for made in IMPLEMENTATIONS]
PAGE = Path(__file__).parents[2] / "docs/wild.md"


@pytest.fixture
def clones(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.getoption("--knorm-wild")
    if folder is None:
        pytest.skip("give --knorm-wild DIR: DIR/<repository> is a clone of each at the commit in docs/wild.md")
    return Path(folder).expanduser().resolve()


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=ids)
def test_every_finding_was_read_off_the_code_and_nothing_else_is_found(implementation: Implementation, clones: Path):
    assert sorted(finding.check for finding in findings_of(implementation, clones)) == sorted(implementation.read)


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_the_audit_is_the_one_of_the_baseline(clones: Path, text_snapshot):
    assert table(audit(clones)) == text_snapshot


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_the_page_is_made_from_the_audit(clones: Path):
    assert PAGE.read_text(encoding="utf-8") == page(audit(clones)), f"make it anew: {COMMAND}"


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_cold_compress_with_nothing_said_is_one_finding_about_rows_and_six_more(clones: Path):
    [made] = [made for made in IMPLEMENTATIONS if made.name == "PromptCompressorL2"]
    layer = prompt_compressor_of_a_layer(load(made.source, clones))

    def compress(past_key_values: Any, keep_ratio: float) -> Any:
        return [layer(keys, values, kept_count(keys.shape[2], keep_ratio)) for keys, values in past_key_values]

    assert [finding.check for finding in check_compressor(compress)] == [
        "takes_prune_after_and_skip_layers",
        "takes_several_rows",
        "values_may_be_wider_or_narrower",
        "equal_norms_keep_the_earlier",
        "rounding_noise_decides_nothing",
        "low_precision_keys_are_scored_in_float32",
        "nan_is_refused",
    ]


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_the_papers_function_has_at_most_twelve_findings_in_less_than_twenty_seconds(clones: Path):
    subject = IMPLEMENTATIONS[0].subject(clones)
    started = time.process_time()
    findings = check_compressor(subject)
    assert time.process_time() - started < 20
    assert len({finding.check for finding in findings}) == len(findings) <= 12


@pytest.mark.wild
@pytest.mark.xdist_group("wild")
def test_of_the_reports_losses_one_finding_is_about_the_order_of_steps_and_none_about_drift(clones: Path):
    [made] = [made for made in IMPLEMENTATIONS if made.name == "calculate_ppl_with_method"]
    checks = [finding.check for finding in findings_of(made, clones)]
    assert checks.count("compresses_before_feeding") == 1
    # The others are of texts that it does not evaluate and of the model's mode, and not of any loss.
    assert set(checks) == {"compresses_before_feeding", "takes_short_texts", "model_is_left_as_it_was"}


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
