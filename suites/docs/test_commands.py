"""README and docs, followed by a reader: commands typed, Python run, files written, and what comes out."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import transformers

from knorm_core.inputs.models import model_folder
from knorm_core.inputs.tokenizers import load_tokenizer
from knorm_core.results.file import write_results
from knorm_core.results.records import Results
from suites.docs.pages import PAGES, ROOT, Block, blocks
from suites.docs.printed import missing
from suites.report.made_up import all_tables

STORY = "The ferry left at nine. Nobody had counted the passengers, and nobody would. " * 40
#: What pages call the reader's own: a compressor, an evaluator and a policy that keep every promise.
OWN = """
    from knorm_core import Policy, evaluate, l2_compress

    class LoudValues(Policy):
        reads = "attention"

        def score(self, seen):
            return seen.attention.mean(dim=2) * seen.values.norm(dim=-1)

    def my_compress(past_key_values, keep_ratio, prune_after, skip_layers=()):
        return l2_compress(past_key_values, keep_ratio, prune_after, skip_layers)

    def my_losses(model, input_ids, keep_ratio, prune_after):
        return evaluate(model, input_ids, keep_ratio=keep_ratio, prune_after=prune_after).nll
"""
#: Commands as they are typed, from this checkout and without the current folder on the path.
TYPED = {"knorm": "-m knorm_core", "pytest": "-m pytest -p no:randomly -p no:cacheprovider", "python": ""}


def _runs(block: Block) -> bool:
    if block.language == "sh":
        return any(not needs and "tox" not in command for command, needs in block.commands)
    return block.language == "python" and not block.needs


WITH_CODE = [page for page in PAGES if any(_runs(block) for block in blocks(page))]


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """Tiny and random, with a tokenizer of a usual size: the samples of 150 to 223 tokens are its own, too."""
    folder = tmp_path_factory.mktemp("own") / "my-model"
    tokenizer = load_tokenizer(model_folder("smollm2-135m"))
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def reader(tmp_path, monkeypatch, own_model):
    """A folder with what is the reader's own on the pages; it is the current one."""
    folder = tmp_path / "reader"
    (folder / "mypkg").mkdir(parents=True)
    (folder / "mypkg/__init__.py").touch()
    (folder / "mypkg/mymodule.py").write_text(textwrap.dedent(OWN), encoding="utf-8")
    (folder / "my-model").symlink_to(own_model)
    (folder / "texts").mkdir()
    for file in ("story.txt", "texts/a.txt"):
        (folder / file).write_text(STORY, encoding="utf-8")
    for results in ("results", "results/before", "results/after"):
        write_results(folder / results, Results(tables=all_tables()))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in TYPED.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -P {module} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("KNORM_STORE", "off")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, reader: Path):
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.file:
            path = reader / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.content + "\n", encoding="utf-8")
        elif _runs(block):
            printed = _typed(block) if block.language == "sh" else _executed(block, names)
            if block.prints is not None:
                line = missing(block.prints, printed)
                assert line is None, f"{block} does not print {line!r}, but\n{printed}"


def _typed(block: Block) -> str:
    printed = []
    for command, needs in block.commands:
        if needs:
            continue
        run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300, check=False)
        printed.append(run.stdout + run.stderr)
        fails = " failed, " in (block.prints or "")  # a page that shows findings says so
        assert run.returncode == (1 if fails else 0), f"{block}: {command} exits with {run.returncode}\n{printed[-1]}"
    return "\n".join(printed)


def _executed(block: Block, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.content, str(block), "exec"), names)
    return printed.getvalue()


@pytest.mark.fast
def test_what_is_not_printed_is_missed():
    table = "title\n│ 0.9 │ 48.04 │ +12 % │\n│ 0.5 │ 48.17 │ [+2.1, +31] │"
    assert missing("0.9   48.04   +12 %\n0.5  48.17 …", table) is None
    assert missing("0.9   48.30   +12 %", table) is None, "float32 moves that far"
    for other in ("0.9 49.04 +12 %", "0.9 48.04 +21 %", "0.9 48.04 −12 %", "0.7 48.04", "48.17\n48.04", "0.8 48.04"):
        assert missing(other, table) is not None
    assert missing("7 failed, …", "8 failed, 28 passed") == "7 failed, …"
