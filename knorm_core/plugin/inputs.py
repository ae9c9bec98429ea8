"""What the user named on the command line, as fixtures: the model, its texts, and where they came from."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from knorm_core.contract.command_line import options
from knorm_core.experiments.breadth import SETS
from knorm_core.inputs.models import (
    DTYPES,
    EMBEDDED,
    ModelIdentity,
    ModelNotFoundError,
    check_device,
    check_model_name,
    load_model,
    model_folder,
    model_identity,
)
from knorm_core.inputs.texts import BOS, TEXT_GROUPS, TEXT_SETS, Text, TextNotFoundError, load_texts, text_names
from knorm_core.inputs.tokenizers import begins_with_bos
from knorm_core.methods.language_model import text_config
from knorm_core.plugin.baseline import VOCABULARY
from knorm_core.plugin.settings import parametrised
from knorm_core.setting import UnsupportedModelError

TEST_DEVICE = os.environ.get("KNORM_TEST_DEVICE", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-model",
        default=EMBEDDED,
        metavar="PATH_OR_ID",
        help="model: smollm2-135m (embedded), a local folder with safetensors, or a hub id (default: %(default)s)",
    )
    group.addoption(
        "--knorm-text",
        default="embedded",
        metavar="NAME[,NAME]",
        help=f"text sets: {', '.join([*TEXT_GROUPS, *TEXT_SETS])} (default: %(default)s)",
    )
    group.addoption(
        "--knorm-text-dir",
        default=None,
        metavar="DIR",
        help="local mirror of the texts: DIR/wikitext-2-raw/test.txt, DIR/pg19/<id>.txt "
        "(default: $KNORM_TEXT_DIR, else the hub)",
    )
    group.addoption(
        "--knorm-dtype",
        choices=DTYPES,
        default="float64",
        help="precision of weights and activations; baselines are float64 (default: %(default)s)",
    )
    group.addoption(
        "--knorm-bos",
        choices=BOS,
        default="auto",
        help="whether a text begins with the tokenizer's BOS token; auto is what the tokenizer does by itself "
        "(default: %(default)s)",
    )
    group.addoption("--knorm-device", default="cpu", metavar="DEVICE", help="torch device (default: %(default)s)")


class LoadedModel(NamedTuple):
    """A model as tests use it.

    Attributes:
        name: as for `knorm_core.load_model`.
        bos: as for `knorm_core.load_texts`.
        dtype: torch's name of it.
    """

    name: str
    model: Any
    tokenizer: Any
    identity: ModelIdentity
    bos: str = "auto"
    dtype: str = "float64"

    @property
    def other_bos(self) -> str | None:
        """ "on" or "off" where texts begin otherwise than with the model's own tokenizer, else None."""
        if self.bos == "auto" or (self.bos == "on") == begins_with_bos(self.tokenizer):
            return None
        return self.bos

    @property
    def slug(self) -> str:
        """The first part of its tables' names: a folder below the baselines'.

        A local folder's name is followed by a short hash of its content, so that two models whose folders share a
        name share no table. Another BOS than the tokenizer's own and another precision than the baselines' follow.
        """
        folder = Path(os.path.expanduser(self.name))
        name = self.name
        if os.path.exists(folder):
            # Not resolved: a link's own name says more than the hash of a snapshot. But no "..", which would lead out.
            name = os.path.basename(os.path.abspath(folder))
            if self.identity is not None:
                name += f"-{hashlib.sha256(' '.join(self.identity).encode()).hexdigest()[:8]}"
        name = re.sub(r"[^\w.-]+", "-", name) + (f"-bos-{self.other_bos}" if self.other_bos else "")
        return name if self.dtype == "float64" else f"{name}-{self.dtype}"

    def require(self, *, tokens: int = 0, layers: int = 0) -> None:
        """Skip the test where the model has fewer positions than ``tokens``, or fewer than ``layers`` layers."""
        config = text_config(self.model)
        positions = getattr(config, "max_position_embeddings", None)
        if positions and tokens > positions:
            pytest.skip(
                f"{self.slug} has {positions} positions, and this text has {tokens} tokens: "
                f"--knorm-max-eval-tokens {positions} cuts the texts of the tables"
            )
        if config.num_hidden_layers < layers:
            pytest.skip(f"{self.slug} has {config.num_hidden_layers} layers, and this needs {layers}")


@functools.lru_cache(maxsize=2)
def _load(name: str, dtype: str, device: str) -> LoadedModel:
    folder = model_folder(name)  # once: a hub's name may come to mean another model
    identity = model_identity(name, folder)
    return LoadedModel(name, *load_model(folder, getattr(torch, dtype), device), identity, dtype=dtype)


@pytest.fixture(scope="session")
def language_model(request: pytest.FixtureRequest) -> LoadedModel:
    """The model of --knorm-model, in --knorm-dtype on --knorm-device, as a `LoadedModel`."""
    option = request.config.getoption
    loaded = _load_or_fail(option("knorm_model"), option("knorm_dtype"), option("knorm_device"))
    return loaded._replace(bos=option("knorm_bos"))


@pytest.fixture(scope="session")
def embedded_model() -> LoadedModel:
    """The embedded model in float64 on the CPU, whatever the options say."""
    return _load_or_fail(EMBEDDED, "float64", "cpu")


@pytest.fixture(scope="session")
def embedded_model_on_gpu() -> LoadedModel:
    """The embedded model in float64 on a GPU, or what KNORM_TEST_DEVICE names."""
    return _load_or_fail(EMBEDDED, "float64", TEST_DEVICE)


def _load_or_fail(name: str, dtype: str, device: str) -> LoadedModel:
    try:
        return _load(name, dtype, device)
    except ModelNotFoundError as error:
        sentence = str(error)
    pytest.fail(sentence, pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with a name once, before anything runs."""
    config.addinivalue_line("markers", "reads_text(name): a text set or group that the test reads; see --knorm-text")
    try:
        for part in config.getoption("knorm_text").split(","):
            text_names(part)
        check_model_name(config.getoption("knorm_model"))
        check_device(config.getoption("knorm_device"))
    except ValueError as error:
        sentence = str(error)
    else:
        return
    raise pytest.UsageError(sentence)


@pytest.fixture(scope="session")
def texts_of(request: pytest.FixtureRequest) -> Callable[..., list[Text]]:
    """``texts_of(loaded, name, max_eval_tokens=None, limit=None)``: the texts of a set, as `knorm_core.load_texts`.

    Skips, saying why, where a text cannot be had or is longer than the model has positions.
    """

    @functools.cache
    def loaded_texts(
        loaded: LoadedModel, name: str, max_eval_tokens: int | None, limit: int | None
    ) -> list[Text] | str:
        folder = request.config.getoption("knorm_text_dir") or os.environ.get("KNORM_TEXT_DIR")
        asked_for = request.config.getoption("knorm_text") != "embedded"  # then try the hub, and fail loudly
        if not (name.startswith("embedded") or folder or asked_for):
            pytest.skip(
                f"{name} needs a local mirror: --knorm-text-dir or KNORM_TEXT_DIR (or --knorm-text and a network)"
            )
        try:
            return load_texts(
                name, loaded.tokenizer, max_eval_tokens=max_eval_tokens, text_dir=folder, limit=limit, bos=loaded.bos
            )
        except ValueError as error:  # TextNotFoundError, or a BOS token that the tokenizer does not have
            own = isinstance(error, TextNotFoundError) and loaded.name != EMBEDDED
            if own and name.startswith("embedded"):  # by its tokenizer, no text has such a length
                pytest.skip(f"{loaded.slug}: {error}")
            return str(error)  # kept too: the next test must not wait for a dead network again

    def texts(
        loaded: LoadedModel, name: str, max_eval_tokens: int | None = None, limit: int | None = None
    ) -> list[Text]:
        result = loaded_texts(loaded, name, max_eval_tokens, limit)
        if isinstance(result, str):
            pytest.fail(result, pytrace=False)
        loaded.require(tokens=max(len(text.input_ids) for text in result))
        return result

    return texts


def made_from(loaded: LoadedModel, texts: list[Text], **settings: Any) -> dict[str, Any]:
    """The provenance of a baseline: model, tokenizer and texts by SHA-256, and the settings."""
    config = {"config": f"sha256:{loaded.identity.config}"} if loaded.identity.config else {}
    bos = {"bos": loaded.other_bos} if loaded.other_bos else {}
    return {
        "model": f"{loaded.slug} sha256:{loaded.identity.weights}",
        VOCABULARY: int(loaded.model.get_input_embeddings().num_embeddings),
        **config,
        "tokenizer": f"sha256:{loaded.identity.tokenizer}",
        **bos,
        "text": "sha256:" + hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest(),
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


@pytest.fixture
def text_set(request: pytest.FixtureRequest) -> str:
    """A text set of --knorm-text; a test that asks for it runs with each."""
    return str(request.param)


def text_sets(config: pytest.Config) -> list[str]:
    """The text sets of --knorm-text, in its order."""
    return [name for part in config.getoption("knorm_text").split(",") for name in text_names(part)]


def table_sets(config: pytest.Config) -> list[str]:
    """The text sets of --knorm-text, but those of many texts: their rows are others (`knorm_core.plugin.breadth`)."""
    return [name for name in text_sets(config) if name not in SETS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "text_set" in metafunc.fixturenames and not parametrised(metafunc, "text_set"):
        # One worker per text set: what its tests share is computed once.
        names = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in table_sets(metafunc.config)]
        metafunc.parametrize("text_set", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where --knorm-text names texts, tests of other texts (marker ``reads_text``) are left out."""
    if config.getoption("knorm_text") == "embedded":
        return
    named = set(text_sets(config))
    others = [item for item in items if (read := _texts_read(item)) and not named & read]
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def _texts_read(item: pytest.Item) -> set[str]:
    """The text sets that a test of the reproduction reads; empty where it does not say."""
    if any(True for _ in item.iter_markers("fast")):
        return set()
    parameter = getattr(item, "callspec", None) and item.callspec.params.get("text_set")  # type: ignore[attr-defined]
    marked = {name for mark in item.iter_markers("reads_text") for part in mark.args for name in text_names(part)}
    return {parameter} if parameter else marked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test of the model that the user named, which the evaluator refuses, is skipped with the reason."""
    report: Any = yield
    if report.outcome != "failed" or call.excinfo is None or item.config.getoption("knorm_model") == EMBEDDED:
        return report
    error: BaseException | None = call.excinfo.value
    while error is not None and not isinstance(error, UnsupportedModelError):
        error = error.__cause__
    if error is not None and "language_model" in getattr(item, "fixturenames", ()):
        path, line, _ = item.location
        report.outcome, report.longrepr = "skipped", (path, line, f"Skipped: {error}")
    return report
