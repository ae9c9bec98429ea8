"""The first run with a network and the next one without, end to end, and what stands between them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from knorm_core import load_model, load_texts
from knorm_core.inputs import text_sources
from knorm_core.inputs.hub import PINNED
from suites.hub import content, processes
from suites.hub.content import PG19, PYTHIA, WIKITEXT
from suites.hub.stand_in import Repository, dropped, flipped, sha256, stalled

pytestmark = [pytest.mark.hub, pytest.mark.xdist_group("hub")]

SETS = ("wikitext-short", "wikitext-articles", "pg19")

LOAD = f"""
import json
import suites.hub.stand_in_pins
from knorm_core import load_model, load_texts

model, tokenizer = load_model({PYTHIA!r})
texts = {{name: load_texts(name, tokenizer) for name in {SETS}}}
print(json.dumps({{
    "ids": {{name: [[text.title, text.input_ids.tolist()] for text in of] for name, of in texts.items()}},
    "logits": model(texts["pg19"][0].input_ids[None, :9]).logits[0, -1].tolist(),
}}))
"""
FOLDER = """
import sys, suites.hub.stand_in_pins
from knorm_core.inputs.models import model_folder
print(model_folder(sys.argv[1]))
"""


def test_the_first_run_downloads_and_the_second_needs_no_network(hub, environment, tmp_path, monkeypatch):
    first = processes.python("-c", LOAD, **environment)
    assert (first.returncode, first.stderr) == (0, "")
    assert {request.method for request in hub.requests} == {"GET", "HEAD"}
    hub.stop()
    second = processes.python("-c", LOAD, **environment)
    assert (second.returncode, second.stderr) == (0, "")
    loaded = json.loads(first.stdout)
    assert json.loads(second.stdout) == loaded

    # And both have what a local folder and a local mirror with the same content give.
    model, tokenizer = load_model(written(content.model_files(), tmp_path / "folder"))
    ids = {
        name: [[text.title, text.input_ids.tolist()] for text in of]
        for name, of in mirrored_texts(tokenizer, tmp_path / "mirror", monkeypatch).items()
    }
    assert [of for _, of in loaded["ids"]["pg19"]] == [of for _, of in ids["pg19"]]  # a mirror has no titles of books
    assert {name: loaded["ids"][name] for name in SETS[:2]} == {name: ids[name] for name in SETS[:2]}
    expected = model(torch.tensor([ids["pg19"][0][1][:9]])).logits[0, -1]
    assert torch.equal(torch.tensor(loaded["logits"], dtype=torch.float64), expected)


def mirrored_texts(tokenizer, mirror, monkeypatch):
    """The same texts from a mirror, which holds the rows joined."""
    joined, [first, second] = "".join(content.wikitext_rows()), content.books()["text"]
    files = {"wikitext-2-raw/test.txt": joined, "pg19/1.txt": first, "pg19/2.txt": second}
    written({name: text.encode() for name, text in files.items()}, mirror)
    monkeypatch.setattr(text_sources, "WIKITEXT_SHA256", processes.wikitext_pin()["KNORM_STAND_IN_WIKITEXT"])
    return {name: load_texts(name, tokenizer, text_dir=mirror) for name in SETS}


def written(files, folder):
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def test_the_tokenizer_gives_the_ids_that_its_file_says(tmp_path):
    # transformers rebuilds GPT-NeoX tokenizers in a class of its own; the file is the oracle.
    from tokenizers import Tokenizer

    files = content.model_files()
    _, tokenizer = load_model(written(files, tmp_path))
    oracle = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in [*content.wikitext_rows(), content.books()["text"][0], "naïve 文字  \n\n\ttabs"]:
        assert tokenizer(text, add_special_tokens=False).input_ids == oracle.encode(text, add_special_tokens=False).ids


def test_half_precision_weights_and_old_words_of_the_configuration_arrive_unchanged(tmp_path):
    from safetensors.torch import load

    files = content.model_files()
    model, _ = load_model(written(files, tmp_path))
    saved = load(files["model.safetensors"])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name].double()), name
    assert model.gpt_neox.rotary_emb.inv_freq.numel() == content.WIDTH // content.HEADS // 4 // 2  # a quarter rotates


def test_what_is_read_of_the_data_sets_is_what_datasets_loads(hub, environment):
    # The oracle: its own loader, which lists the repository and reads its card.
    script = f"""
import json, suites.hub.stand_in_pins, datasets
from knorm_core.inputs.text_sources import from_hub
wikitext = datasets.load_dataset({WIKITEXT!r}, "wikitext-2-raw-v1", split="test")
pg19 = datasets.load_dataset({PG19!r}, split="test")
assert pg19.column_names == {list(content.books())}, pg19.column_names
assert list(wikitext["text"]) == from_hub({WIKITEXT!r}, "text")[0]
assert [list(pg19[name]) for name in ("short_book_title", "text")] == from_hub({PG19!r}, "short_book_title", "text")
"""
    process = processes.python("-c", script, **environment)
    assert process.returncode == 0, process.stderr
    assert hub.asked("/api/datasets", "POST") or hub.asked("/tree/")


def test_with_the_real_pins_the_stand_ins_text_is_refused(hub, environment):
    load = "import suites.hub.stand_in_pins\nfrom knorm_core import load_texts\nload_texts('wikitext-short', None)"
    pins = json.loads(environment["KNORM_STAND_IN_PINS"])
    del pins[WIKITEXT]
    of_file = processes.python("-c", load, **environment | {"KNORM_STAND_IN_PINS": json.dumps(pins)})
    assert re.search("TextNotFoundError: .* has SHA-256 .*, not the pinned 5f1bea06", of_file.stderr)
    del environment["KNORM_STAND_IN_WIKITEXT"]
    of_rows = processes.python("-c", load, **environment)
    assert re.search("TextNotFoundError: .* has SHA-256 .*, not bbf94c53", of_rows.stderr)


def test_a_login_that_is_not_enough_is_one_sentence(hub, environment):
    hub.repositories["some/gated"] = Repository("model", "1" * 40, dict(content.model_files()), gated=True)
    environment["HF_TOKEN"] = "hf_somebody"
    for name, expected in [
        ("some/gated", r"is gated \(403 for /some/gated/resolve/main/config.json\): accept its terms"),
        ("some/missing", r"is not there \(404 for /api/models/some/missing\): check the name"),
    ]:
        process = processes.python("-c", FOLDER, name, **environment)
        assert re.search(f"ModelNotFoundError: model '{name}' {expected}", process.stderr)
        assert "hf_somebody" not in process.stderr


def test_offline_mode_is_said_to_be_the_reason(hub, environment):
    process = processes.python("-c", FOLDER, PYTHIA, **environment, HF_HUB_OFFLINE="1")
    assert re.search(
        f"ModelNotFoundError: model '{PYTHIA}' is not in .*HF_HUB_OFFLINE is set: unset it", process.stderr
    )
    assert not hub.asked(PYTHIA)


def test_what_a_refusal_says_mends_it(hub, environment):
    hub.faults[f"/stored/{sha256(content.model_files()['model.safetensors'])}"] += [flipped]
    refused = processes.python("-c", FOLDER, PYTHIA, **environment)
    Path(re.search("not the pinned .* so delete (.*) and run again", refused.stderr)[1]).unlink()
    mended = processes.python("-c", FOLDER, PYTHIA, **environment)
    assert mended.returncode == 0, mended.stderr
    arrived = Path(mended.stdout.strip()) / "model.safetensors"
    assert arrived.read_bytes() == content.model_files()["model.safetensors"]


def test_a_download_that_is_killed_leaves_nothing_that_looks_done(hub, environment):
    weights = content.model_files()["model.safetensors"]
    hub.faults[f"/stored/{sha256(weights)}"] += [stalled(11 << 20)]
    process = subprocess.Popen([sys.executable, "-c", FOLDER, PYTHIA], env=environment, cwd=processes.ROOT)
    deadline = time.monotonic() + 60
    while not hub.asked(f"/stored/{sha256(weights)}") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # what was sent is on its way to the disk
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = processes.python("-c", FOLDER, PYTHIA, **environment)
    assert again.returncode == 0, again.stderr
    assert (Path(again.stdout.strip()) / "model.safetensors").read_bytes() == weights


def test_two_at_once_share_one_cache(hub, environment):
    hub.faults[f"/stored/{sha256(content.model_files()['model.safetensors'])}"] += [dropped(11 << 20)]
    command = [sys.executable, "-c", FOLDER, PYTHIA]
    both = [
        subprocess.Popen(command, env=environment, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in both)
    assert first == second != ""
    assert (Path(first.strip()) / "model.safetensors").read_bytes() == content.model_files()["model.safetensors"]


def test_a_blob_may_itself_be_a_link_into_a_store(hub, environment, tmp_path):
    # As huggingface_hub makes them where several caches share files, under names that are hashes of another kind.
    hub.repositories["some/shared"] = Repository("model", "1" * 40, dict(content.model_files()))
    folder = Path(processes.python("-c", FOLDER, "some/shared", **environment).stdout.strip())
    blob = folder / (folder / "model.safetensors").readlink()
    blob.rename(tmp_path / ("f" * 64))
    blob.symlink_to(tmp_path / ("f" * 64))
    again = processes.python("-c", FOLDER, "some/shared", **environment)
    assert again.stdout.strip() == str(folder), again.stderr


FETCH = "import suites.hub.stand_in_pins\nfrom knorm_core.inputs import hub\nhub.fetch_pinned()"


def test_all_that_is_pinned_can_be_fetched_before_it_is_needed(hub, environment):
    fetched = processes.python("-c", FETCH, **environment)
    assert fetched.returncode == 0, fetched.stderr
    assert [Path(line).name for line in fetched.stdout.splitlines()] == [pin.revision for pin in PINNED.values()]
    # The command itself has the real pins, so that the stand-in's files are not what they should be.
    refused = processes.python("-m", "knorm_core", "fetch", **environment)
    assert refused.returncode == 2
    assert re.fullmatch(
        f"knorm fetch: config.json of model '{PYTHIA}' has SHA-256 .*, not the pinned 00205023.*\n", refused.stderr
    )


def test_what_cannot_be_fetched_before_it_is_needed_is_one_sentence(hub, environment):
    hub.stop()
    refused = processes.python("-m", "knorm_core", "fetch", **environment)
    assert refused.returncode == 2
    assert re.fullmatch(
        f"knorm fetch: model '{PYTHIA}' cannot be had, the hub at {hub.url} cannot be reached, .*\n", refused.stderr
    )
