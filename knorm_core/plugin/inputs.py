"""The model that the user named on the command line, as a fixture, and what a table was made from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from knorm_core.contract.command_line import options
from knorm_core.inputs.loaded import loaded
from knorm_core.inputs.models import (
    DTYPES,
    EMBEDDED,
    ModelIdentity,
    ModelNotFoundError,
    check_device,
    check_model_name,
)
from knorm_core.inputs.texts import Text
from knorm_core.inputs.tokenizers import begins_with_bos
from knorm_core.methods.language_model import text_config
from knorm_core.results.records import VOCABULARY
from knorm_core.setting import UnsupportedModelError

TEST_DEVICE = os.environ.get("KNORM_TEST_DEVICE", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-model",
        default=EMBEDDED,
        metavar="PATH_OR_ID",
        help="model: smollm2-135m (embedded), folder with safetensors, GGUF file, or hub id (default: %(default)s)",
    )
    group.addoption(
        "--knorm-dtype",
        choices=DTYPES,
        default="float64",
        help="precision of weights and activations; baselines are float64 (default: %(default)s)",
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


@pytest.fixture(scope="session")
def language_model(request: pytest.FixtureRequest) -> LoadedModel:
    """The model of --knorm-model, in --knorm-dtype on --knorm-device, as a `LoadedModel`."""
    option = request.config.getoption
    model = _load_or_fail(option("knorm_model"), option("knorm_dtype"), option("knorm_device"))
    return model._replace(bos=option("knorm_bos"))


@pytest.fixture(scope="session")
def embedded_model() -> LoadedModel:
    """The embedded model in float64 on the CPU, whatever the options say."""
    return _load_or_fail(EMBEDDED, "float64", "cpu")


@pytest.fixture(scope="session")
def embedded_model_on_gpu() -> LoadedModel:
    """The embedded model in float64 on a GPU, or what KNORM_TEST_DEVICE names."""
    return _load_or_fail(EMBEDDED, "float64", TEST_DEVICE)


def _load_or_fail(name: str, dtype: str, device: str) -> LoadedModel:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights, which pytest would show below a failure
    try:
        return LoadedModel(name, *loaded(name, dtype, device), dtype=dtype)
    except ModelNotFoundError as error:
        sentence = str(error)
    pytest.fail(sentence, pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with a name once, before anything runs."""
    try:
        check_model_name(config.getoption("knorm_model"))
        check_device(config.getoption("knorm_device"))
    except ValueError as error:
        sentence = str(error)
    else:
        return
    raise pytest.UsageError(sentence)


def made_from(loaded: LoadedModel, texts: list[Text], **settings: Any) -> dict[str, Any]:
    """What a table was made from: model, tokenizer and texts by SHA-256, the vocabulary's size, and the settings."""
    config = {"config": f"sha256:{loaded.identity.config}"} if loaded.identity.config else {}
    bos = {"bos": loaded.other_bos} if loaded.other_bos else {}
    return {
        "model": f"{loaded.slug} sha256:{loaded.identity.weights}",
        **config,
        "tokenizer": f"sha256:{loaded.identity.tokenizer}",
        **bos,
        VOCABULARY: loaded.model.get_input_embeddings().num_embeddings,
        "text": "sha256:" + hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest(),
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


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
