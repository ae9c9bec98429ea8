"""A policy of one's own: from a file in a fresh folder to the contract, the tables, the controls and the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from knorm_core.report.policies import sentences
from knorm_core.results.file import read_results
from suites.hub.content import tokenizer_files

pytestmark = pytest.mark.full

REPOSITORY = Path(__file__).parents[2]
HOW_TO = REPOSITORY / "docs" / "how-to" / "own-policy.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
POLICY = '''
from knorm_core import Policy


class TOVA(Policy):
    """Attention of the latest query, averaged over all heads (Oren et al. 2024, arXiv 2401.06104)."""

    reads = "attention"

    def score(self, seen):
        return seen.attention.mean(dim=(1, 2), keepdim=True)[:, :, 0]
'''


@pytest.fixture
def fresh(tmp_path):
    """A folder with a policy and a tiny model, and no configuration of pytest."""
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mymodule.py").write_text(POLICY)
    config = transformers.LlamaConfig(
        vocab_size=800, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    for name, content in tokenizer_files().items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path


def run_pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_contract_takes_a_policy_by_import(fresh):
    run = run_pytest(
        fresh, "-rA", "--pyargs", "knorm_core.contract", "--knorm-policy", "mypkg.mymodule:TOVA", "--knorm-examples=5"
    )
    assert run.returncode == 0, run.stdout
    assert "test_policy[TOVA-sees_no_future]" in run.stdout
    assert "l2_compress" not in run.stdout
    wrong = run_pytest(fresh, "--pyargs", "knorm_core.contract", "--knorm-policy", "mypkg.mymodule:Tova")
    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR
    assert "mypkg.mymodule has no Tova" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_the_reproduction_gives_tables_controls_intervals_and_a_page(fresh):
    run = run_pytest(
        fresh,
        *("-m", "repro", "-rA", "--knorm-policy", "mypkg.mymodule:TOVA", "--knorm-model", "model"),
        *("--knorm-breadth", "8", "--knorm-keep-ratios", "0.5", "--knorm-report", "out", "--knorm-store", "off"),
        str(REPOSITORY / "suites"),
    )
    assert run.returncode == 0, run.stdout
    results = read_results(fresh / "out")
    tables = {table.kind: table for table in results.tables}
    assert {"policy-TOVA", "ppl-absolute"} <= tables.keys()
    rows = tables["policy-TOVA"].rows
    assert [row["control"] for row in rows] == ["itself", "newest", "random", "permuted", "inverted"]
    assert all(row["against_low"] <= row["against"] <= row["against_high"] for row in rows)
    assert len({row["mean_cache"] for row in rows}) == 1
    [sentence] = sentences("TOVA", rows)
    assert sentence in run.stdout
    assert "against keeping the first four tokens and the newest" in sentence
    page = (fresh / "out" / "index.html").read_text(encoding="utf-8")
    assert sentence in page.replace("\N{NO-BREAK SPACE}", " ")
    # What is about other policies was left out.
    assert not [test for test in results.tests if "test_breadth" in test.nodeid or "suites/experiments" in test.nodeid]


def test_a_table_is_skipped_where_a_policy_protects_more_than_is_kept_of_short_texts(fresh):
    (fresh / "short.txt").write_text("The ferry left at nine. Nobody had counted the passengers. " * 12)
    run = run_pytest(
        fresh,
        *("-m", "repro", "-rs", "--knorm-policy", "pyramidkv", "--knorm-model", "model", "--knorm-text", "short.txt"),
        *("--knorm-max-eval-tokens", "120", "--knorm-keep-ratios", "0.1", "--knorm-store", "off"),
        str(REPOSITORY / "suites" / "reproduction" / "test_reproduction.py"),
    )
    assert run.returncode == 0, run.stdout
    assert "keys, and keep_ratio=0.1" in run.stdout
    assert "failed" not in run.stdout


def test_the_how_to_runs_as_it_is_printed(capsys):
    variables: dict[str, object] = {}
    idea, *others = EXAMPLES
    assert len([line for line in idea.splitlines() if line.strip()]) <= 14  # imports, an idea, and its table
    exec(idea, variables)
    printed = capsys.readouterr().out
    assert re.fullmatch(r"loud values at keep 0\.5: perplexity .* at equal memory \(\d+ keys on average\)\.\n", printed)
    assert len(variables["rows"]) == 5
    for example in others:
        exec(example, variables)
    assert capsys.readouterr().out == ""  # no finding
