"""What a person has at hand: a terminal, and a tiny model, a text, a compressor and a policy of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

from suites.hub.content import tokenizer_files

ROOT = Path(__file__).parents[2]
STORY = "The ferry left at nine. Nobody had counted the passengers, and nobody would.\n\n"
MINE = '''
from knorm_core import Policy, l2_compress


class Newest(Policy):
    """A policy of one's own: the latest keys stay."""

    def score(self, seen):
        return seen.positions


def compress(past_key_values, keep_ratio=1.0, prune_after=2048, skip_layers=()):
    """A compressor of one's own."""
    return l2_compress(past_key_values, keep_ratio, prune_after, skip_layers)


def off_by_one(past_key_values, keep_ratio=1.0, prune_after=2048, skip_layers=()):
    """The same, with a threshold that is one token late."""
    return l2_compress(past_key_values, keep_ratio, prune_after + 1, skip_layers)
'''


# What the scripts do that an installation makes, for an environment that has older ones.
_SCRIPTS = {
    "knorm": "import sys; sys.path.pop(0); from knorm_core.command import main; sys.exit(main())",
    "pytest": "import sys; sys.path.pop(0); from pytest import console_main; sys.exit(console_main())",
}


@pytest.fixture(scope="session")
def own_model(tmp_path_factory):
    """The folder of a tiny Llama with random weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("own") / "my model"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=800, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def fresh_folder(tmp_path):
    """A folder with a story of some 700 tokens, and a module of the person's own."""
    (tmp_path / "story.txt").write_text(STORY * 25, encoding="utf-8")
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


class Typed(NamedTuple):
    """What a command left on the screen, and its exit status."""

    status: int
    screen: str

    @property
    def end(self) -> str:
        """The last screen: 24 lines that are not blank."""
        return "\n".join([line for line in self.screen.splitlines() if line.strip()][-24:])


@pytest.fixture
def typed(fresh_folder, monkeypatch):
    """``typed("knorm …", folder=…)``: the command line, run by a shell as a person types it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(line, folder=fresh_folder):
        words = shlex.split(line)
        script = Path(sys.executable).with_name(words[0])  # of this environment
        words[:1] = [str(script)] if script.exists() else [sys.executable, "-c", _SCRIPTS[words[0]]]
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1", "KNORM_STORE": "off"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Typed(done.returncode, done.stdout)

    return run
