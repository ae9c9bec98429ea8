"""Stores, whole and damaged; a tiny model as a folder, as a cluster's workers load it; sweeps of it."""

from __future__ import annotations

import os
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest

from knorm_core.inputs.loaded import loaded
from knorm_core.inputs.models import model_identity
from knorm_core.methods.anatomy import anatomy
from knorm_core.sweeps import store as store_module
from knorm_core.sweeps.cells import Cell
from knorm_core.sweeps.store import Store
from knorm_core.sweeps.store_file import open_file
from suites.families import VOCABULARY, random_ids, tiny_model
from suites.sweep.numbered import damage_page_of, in_the_file, put

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Weights in safetensors and a tokenizer."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny llama"
    tiny_model("llama").save_pretrained(folder)
    letters = dict(zip(string.printable[:VOCABULARY], range(VOCABULARY), strict=True))
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def cells_of(tiny_folder):
    """``cells_of(rows, texts=1, tokens=120)``: every row of arguments on every random text."""
    identity = model_identity(tiny_folder)

    def cells(rows, texts=1, tokens=120):
        return [
            Cell(tiny_folder, *identity, f"text {text}", random_ids(tokens, text), row)
            for text in range(texts)
            for row in rows
        ]

    return cells


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The model that cells of the folder are evaluated with, in this process."""
    model = loaded(tiny_folder).model
    anatomy(model, 128)  # looked at once, whichever test counts passes first
    return model


@pytest.fixture
def reproduction(tiny_folder, tmp_path):
    """``reproduction(*options)``: a pytest run of the tiny model on four texts, in twelve rows each."""

    def start(*options):
        command = [
            sys.executable, "-m", "pytest", "-m", "repro", "-v", "-p", "no:cacheprovider", *options,
            "suites/reproduction", "-k", "test_text_is_compressed", f"--knorm-model={tiny_folder}",
            "--knorm-text=embedded-articles", "--knorm-max-eval-tokens=500", "--knorm-prune-after=64",
            f"--knorm-store={tmp_path / 'results.sqlite'}",
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "150", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A run in the background ignores Ctrl-C, and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,  # so that a signal reaches xdist's workers too, as Ctrl-C does
        )

    return start


@pytest.fixture
def without_waiting(monkeypatch):
    """Stores do not wait until the disk has a result, which takes 20 ms: only a test that cuts the power could tell."""

    def opened(path):
        file = open_file(path)
        file.execute("PRAGMA synchronous=OFF")
        return file

    monkeypatch.setattr(store_module, "open_file", opened)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "some folder" / "résultats.sqlite")


@pytest.fixture
def filled(store):
    """A store of 200 results."""
    put(store, *range(200))
    return Store(store.path)  # which has not looked at the file yet


@pytest.fixture
def damaged(filled):
    """A store of 200 results of which two pages are damaged, and the numbers of those that are whole."""
    damage_page_of(filled, 30, 4096)
    whole = in_the_file(damage_page_of(filled, 100, 4096), range(200))
    assert 180 < len(whole) < 200
    return filled, whole
