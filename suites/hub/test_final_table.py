"""The way from download to sentence: a table planted with the stand-in's model is traced back by ``tox -e pythia``."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from knorm_core import REPORT_PROTOCOL
from suites.experiments.replay import Planted
from suites.hub import content, processes
from suites.hub.test_pythia import command

pytestmark = [pytest.mark.hub, pytest.mark.xdist_group("pythia")]

THIS_TEST = "suites/reproduction/test_final_table.py"


@pytest.fixture
def planted(tmp_path):
    """The stand-in's model in float32, in the loop that shares nothing with ours."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    for name, body in content.model_files().items():
        if name != "pytorch_model.bin":
            (folder / name).write_bytes(body)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Planted(model, AutoTokenizer.from_pretrained(folder), content.wikitext_rows(), content.books()["text"])


@pytest.fixture
def last_line(environment, tmp_path):
    """Run the command as tox does, the final table alone, and return the last line that it prints."""

    def run(**more):
        plugins = ["-p", "suites.hub.stand_in_pins", "-p", "suites.hub.planted", "-p", "no:cacheprovider"]
        root = ["--rootdir", str(tmp_path), "-c", str(processes.ROOT / "pyproject.toml")]
        arguments = [THIS_TEST if part == "suites/reproduction" else part for part in command("", str(tmp_path))]
        process = processes.python("-m", "pytest", *plugins, *root, *arguments, **environment, **more)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout.splitlines()[-1]

    return run


def test_the_run_ends_with_the_class_that_printed_a_planted_table(planted, last_line):
    protocol = dataclasses.replace(REPORT_PROTOCOL, skip_layers=(0, 1), baseline="phase2", book_characters=4096)
    figures = planted.figures(REPORT_PROTOCOL, []) | {"final": planted.table(protocol)}
    for name in ("final", "early"):
        figures[name] = [(*cell, ppl) for cell, ppl in figures[name].items()]
    figures["mixtures"] = [(mixture, list(ppls.items())) for mixture, ppls in figures["mixtures"].items()]
    sentence = last_line(KNORM_PLANTED=json.dumps(figures))
    assert "25 of 25 anchors come out" in sentence
    assert "all 8 perplexities within rounding and noise, by: layers 0 and 1 left alone" in sentence
    by = sentence.partition("by: ")[2].partition(". Next")[0]
    assert "; or by" not in by
    assert "baseline on phase 2" in by
    assert "4096 characters of a book" in by


def test_the_run_ends_by_saying_that_another_model_is_not_the_reports(last_line):
    sentence = last_line()
    assert "5 of 5 anchors of whole texts do not come out (Wikitext row 1: " in sentence
    assert "so its final table is not judged" in sentence
