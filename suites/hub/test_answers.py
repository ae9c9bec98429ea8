"""Whatever the hub answers: the files, whole and as they should be, or one sentence that says what to do.

One process asks for everything here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.version import Version

from knorm_core.inputs.hub import PINNED
from suites.hub import content, processes
from suites.hub.content import PG19, PYTHIA, WIKITEXT
from suites.hub.stand_in import Repository, StandIn, dropped, flipped, sha256, silent, status

pytestmark = [pytest.mark.full, pytest.mark.hub, pytest.mark.xdist_group("hub")]

ASK = """
import json, sys
import huggingface_hub.constants
import suites.hub.stand_in_pins
from knorm_core.inputs import hub
from knorm_core.inputs.models import ModelNotFoundError, model_folder

hub._FIRST_WAIT_SECONDS = 0.01
hub.PINNED["some/moved"] = hub.Pin("model", "0" * 40, {"config.json": None})
hub.PINNED["some/lacking"] = hub.Pin("model", "a" * 40, {"config.json": None, "special.json": None})
hub.PINNED["some/other"] = hub.Pin("model", "b" * 40, {"config.json": "0" * 64})
hub.PINNED["some/data"] = hub.Pin("dataset", "c" * 40, {"data/test.parquet": None})

def ask(call, name):
    hub._TIMEOUT_SECONDS = 0.2 if name == "some/silent" else 60
    try:
        return str(call(name))
    except (ModelNotFoundError, hub.HubError) as error:
        return f"{type(error).__name__}: {error}"

models, data = json.loads(sys.argv[1]), json.loads(sys.argv[2])
answers = {name: ask(model_folder, name) for name in models} | {name: ask(hub.pinned, name) for name in data}
answers["again"] = [ask(model_folder, models[0]), ask(hub.pinned, data[0])]
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"  # where nothing listens
answers["dead"] = {name: ask(model_folder, name) for name in ("some/whole", "some/never")}
answers["dead"]["some/data"] = ask(hub.pinned, "some/data")
print(json.dumps(answers))
"""


def model(commit: str, **changed: bytes | None) -> Repository:
    """The stand-in's model, with files changed or (None) left out; ``__`` in their names is a dot."""
    files = {**content.model_files(), **{name.replace("__", "."): body for name, body in changed.items()}}
    return Repository("model", commit * 40, {name: body for name, body in files.items() if body is not None})


def other_weights(seed: int) -> bytes:
    return content.weights({"x": torch.full((8,), seed)})


LATE = content.weights({"x": torch.zeros(5 << 20)})  # 20 MiB


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The stand-in after everything was asked for, and the answers."""
    with StandIn(content.repositories()) as hub:
        long = content.model_files()["model.safetensors"]
        hub.repositories |= {
            "some/whole": model("1", model__safetensors=other_weights(1)),
            "some/shards": Repository("model", "2" * 40, content.sharded_model_files()),
            "some/reset": model("3", model__safetensors=other_weights(3)),
            "some/reset-late": model("c", model__safetensors=LATE),
            "some/gated": model("4"),
            "some/pickled": model("5", model__safetensors=None),
            "some/coded": model("6", config__json=b'{"auto_map": {"AutoModel": "modeling.My"}}'),
            "some/coded-tokenizer": model("7", tokenizer_config__json=b'{"auto_map": {}}'),
            "some/bare": model("8", config__json=None),
            "some/busy": model("9"),
            "some/silent": model("d"),
            "some/tampered": model("e", model__safetensors=other_weights(5)),
            "some/half": Repository(
                "model",
                "f" * 40,
                {n: b for n, b in content.sharded_model_files().items() if n != "model-00002-of-00002.safetensors"},
            ),
            "some/moved": model("1"),
            "some/lacking": model("a"),
            "some/other": model("b"),
        }
        hub.repositories["some/gated"].gated = True
        # A closed connection is noticed, and resumed, by huggingface_hub, which keeps 10 MiB at a time.
        hub.faults[stored(long)] += [dropped(11 << 20)]
        hub.faults[stored(other_weights(3))] += [dropped(20, reset=True), status(502)]
        hub.faults[stored(LATE)] += [dropped(18 << 20, reset=True)]
        hub.faults["/api/models/some/busy"] += [status(503)] * 4
        hub.faults["/api/models/some/silent"] += [silent] * 4
        hub.faults[stored(other_weights(5))] += [flipped]
        models = [PYTHIA, *(name for name in hub.repositories if name.startswith("some/")), "some/missing"]
        environment = processes.environment(hub, tmp_path_factory.mktemp("hub") / "home")
        process = processes.python("-c", ASK, json.dumps(models), json.dumps([WIKITEXT, PG19]), **environment)
        assert process.returncode == 0, process.stderr
        yield hub, json.loads(process.stdout)


def stored(body: bytes) -> str:
    return f"/stored/{sha256(body)}"


@pytest.mark.parametrize("name", [PYTHIA, WIKITEXT, PG19, "some/whole", "some/shards", "some/reset", "some/reset-late"])
def test_what_is_there_arrives_whole(asked, name):
    hub, answers = asked
    folder = Path(answers[name])
    arrived = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    served = hub.repositories[name].files
    assert arrived == {file: served[file] for file in arrived}
    assert folder.name == hub.repositories[name].commit
    if name in PINNED:
        assert set(arrived) == set(PINNED[name].sha256)
    else:
        assert set(arrived) == set(served) - {"README.md", "pytorch_model.bin"}


def test_a_dropped_connection_is_resumed_where_it_broke_off(asked):
    hub, _ = asked
    long = content.model_files()["model.safetensors"]
    first, second, *_ = hub.asked(stored(long))
    assert first.range is None
    assert second.range == f"bytes={10 << 20}-"


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("1"), reason="huggingface_hub before 1.0 begins again after a reset"
)
def test_a_reset_connection_is_resumed_too(asked):
    hub, _ = asked
    first, second, *_ = hub.asked(stored(LATE))
    assert first.range is None
    assert second.range == f"bytes={10 << 20}-"


def test_what_is_in_the_cache_is_not_asked_for_again(asked):
    hub, answers = asked
    assert answers["again"] == [answers[PYTHIA], answers[WIKITEXT]]
    for name, kind in [(PYTHIA, "models"), (WIKITEXT, "datasets")]:
        assert len(hub.asked(f"/api/{kind}/{name}")) == 1


def test_without_a_hub_the_cache_serves_what_is_not_pinned_too(asked):
    _, answers = asked
    assert answers["dead"]["some/whole"] == answers["some/whole"]


LOCAL = "or name a local folder with its safetensors"
REFUSALS = {
    "some/missing": f"is private, or not there (401 for /api/models/some/missing): check the name, log in with "
    f"'hf auth login', {LOCAL}",
    "some/gated": f"is gated (401 for /some/gated/resolve/main/config.json): accept its terms at HUB/some/gated and "
    f"log in with 'hf auth login', {LOCAL}",
    "some/moved": f"no longer has the revision that was asked for (404 for /api/models/some/moved/revision/{'0' * 40}):"
    f" see HUB/some/moved, {LOCAL}",
    "some/lacking": f"is not there (404 for /some/lacking/resolve/{'a' * 40}/special.json): check the name at HUB, "
    f"{LOCAL}",
    "some/busy": f"cannot be had now, the hub answers (503 for /api/models/some/busy): try again later, {LOCAL}",
    "some/silent": f"cannot be had, the hub at HUB did not answer in time (/api/models/some/silent): check the network "
    f"and HF_ENDPOINT, {LOCAL}",
    "some/pickled": "has no model.safetensors, only pytorch_model.bin: pickled weights can run code and are never "
    "loaded; where you trust them, save them again with save_pretrained",
    "some/coded": "asks for code of its own (auto_map in config.json), which is never run: choose a model that "
    "transformers has the code for, or, if it has this one's, a local copy without auto_map",
    "some/coded-tokenizer": "asks for code of its own (auto_map in tokenizer_config.json), which is never run: choose "
    "a model that transformers has the code for, or, if it has this one's, a local copy without auto_map",
    "some/bare": "has no config.json, so it is no model of transformers",
    "some/half": "lacks 1 of the 2 files that its model.safetensors.index.json names, such as "
    "'model-00002-of-00002.safetensors'",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_sentence_that_says_what_to_do(asked, name):
    hub, answers = asked
    assert answers[name] == f"ModelNotFoundError: model '{name}' " + REFUSALS[name].replace("HUB", hub.url)


@pytest.mark.parametrize(
    ("name", "file", "source"),
    [("some/tampered", "model.safetensors", "announced"), ("some/other", "config.json", "pinned")],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(asked, name, file, source):
    _, answers = asked
    pattern = (
        f"ModelNotFoundError: {file} of model '{name}' has SHA-256 [0-9a-f]{{64}}, not the {source} [0-9a-f]{{64}}: "
        "it is not the file that it should be, so delete (.*) and run again"
    )
    refused = re.fullmatch(pattern, answers[name])
    assert refused
    assert Path(refused[1]).parent.name == "blobs"


def test_no_weights_are_downloaded_of_what_is_refused_for_its_form(asked):
    hub, _ = asked
    for name in ("some/pickled", "some/coded", "some/coded-tokenizer", "some/bare", "some/half"):
        wanted = [request.path for request in hub.requests if f"/{name}/resolve/" in request.path]
        assert not [path for path in wanted if path.endswith((".bin", ".safetensors"))]


def test_a_hub_that_cannot_be_reached_is_one_sentence(asked):
    _, answers = asked
    dead = "http://127.0.0.1:9 cannot be reached, Connection refused"
    assert answers["dead"]["some/never"] == (
        f"ModelNotFoundError: model 'some/never' cannot be had, the hub at {dead} (/api/models/some/never): "
        f"check the network and HF_ENDPOINT, {LOCAL}"
    )
    assert answers["dead"]["some/data"] == (
        f"HubError: data set 'some/data' cannot be had, the hub at {dead} (/api/datasets/some/data/revision/{'c' * 40})"
        f": check the network and HF_ENDPOINT, or name a local mirror with --knorm-text-dir"
    )
