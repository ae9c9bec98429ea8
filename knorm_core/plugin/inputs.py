"""What the user named on the command line, as fixtures: the model, its texts, and where they came from."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from knorm_core.inputs.models import (
    ModelIdentity,
    ModelNotFoundError,
    check_device,
    check_model_name,
    load_model,
    model_folder,
    model_identity,
)
from knorm_core.inputs.texts import BOS, TEXT_SETS, Text, load_texts, text_names
from knorm_core.inputs.tokenizers import begins_with_bos
from knorm_core.plugin.options import KEEP_RATIOS
from knorm_core.policy_names import find_policy, policy_identity

TEST_DEVICE = os.environ.get("KNORM_TEST_DEVICE", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("knorm").addoption(
        "--knorm-bos",
        choices=BOS,
        default="auto",
        help="whether a text begins with the tokenizer's BOS token; auto is what the tokenizer does by itself "
        "(default: %(default)s)",
    )


class LoadedModel(NamedTuple):
    name: str
    model: Any
    tokenizer: Any
    identity: ModelIdentity
    bos: str = "auto"

    @property
    def other_bos(self) -> str | None:
        """ "on" or "off" where texts begin otherwise than with the model's own tokenizer, else None."""
        if self.bos == "auto" or (self.bos == "on") == begins_with_bos(self.tokenizer):
            return None
        return self.bos

    @property
    def slug(self) -> str:
        """Folder name below baselines/."""
        folder = Path(os.path.expanduser(self.name))
        # Not resolved: a link's own name says more than the hash of a snapshot. But no "..", which would lead out.
        name = os.path.basename(os.path.abspath(folder)) if os.path.exists(folder) else self.name
        return re.sub(r"[^\w.-]+", "-", name) + (f"-bos-{self.other_bos}" if self.other_bos else "")


@functools.lru_cache(maxsize=2)
def _load(name: str, dtype: str, device: str) -> LoadedModel:
    folder = model_folder(name)  # once: a hub's name may come to mean another model
    identity = model_identity(name, folder)
    return LoadedModel(name, *load_model(folder, getattr(torch, dtype), device), identity)


@pytest.fixture(scope="session")
def language_model(request: pytest.FixtureRequest) -> LoadedModel:
    """The model of --knorm-model, in --knorm-dtype on --knorm-device."""
    option = request.config.getoption
    loaded = _load_or_fail(option("knorm_model"), option("knorm_dtype"), option("knorm_device"))
    return loaded._replace(bos=option("knorm_bos"))


@pytest.fixture(scope="session")
def embedded_model() -> LoadedModel:
    """The embedded model in float64 on the CPU, whatever the options say."""
    return _load_or_fail("smollm2-135m", "float64", "cpu")


@pytest.fixture(scope="session")
def embedded_model_on_gpu() -> LoadedModel:
    """The embedded model in float64 on a GPU, or what KNORM_TEST_DEVICE names."""
    return _load_or_fail("smollm2-135m", "float64", TEST_DEVICE)


def _load_or_fail(name: str, dtype: str, device: str) -> LoadedModel:
    try:
        return _load(name, dtype, device)
    except ModelNotFoundError as error:
        sentence = str(error)
    pytest.fail(sentence, pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with a name once, before anything runs."""
    try:
        for part in config.getoption("knorm_text").split(","):
            text_names(part)
        check_model_name(config.getoption("knorm_model"))
        check_device(config.getoption("knorm_device"))
        find_policy(config.getoption("knorm_policy"))
    except (TypeError, ValueError) as error:
        sentence = str(error)
    else:
        return
    raise pytest.UsageError(sentence)


@pytest.fixture(scope="session")
def texts_of(request: pytest.FixtureRequest) -> Callable[..., list[Text]]:
    """``texts_of(loaded, name, max_eval_tokens=None, limit=None)``; skips, saying why, where a text cannot be had."""

    @functools.cache
    def found(loaded: LoadedModel, name: str, max_eval_tokens: int | None, limit: int | None) -> list[Text] | str:
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
            return str(error)  # kept too: the next test must not wait for a dead network again

    def texts(
        loaded: LoadedModel, name: str, max_eval_tokens: int | None = None, limit: int | None = None
    ) -> list[Text]:
        result = found(loaded, name, max_eval_tokens, limit)
        if isinstance(result, str):
            pytest.fail(result, pytrace=False)
        return result

    return texts


def made_from(loaded: LoadedModel, texts: list[Text], **settings: Any) -> dict[str, Any]:
    """The provenance of a baseline: model, tokenizer and texts by SHA-256, and the settings."""
    config = {"config": f"sha256:{loaded.identity.config}"} if loaded.identity.config else {}
    bos = {"bos": loaded.other_bos} if loaded.other_bos else {}
    return {
        "model": f"{loaded.slug} sha256:{loaded.identity.weights}",
        **config,
        "tokenizer": f"sha256:{loaded.identity.tokenizer}",
        **bos,
        "text": "sha256:" + hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest(),
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def policy_settings(option: Callable[[str], Any]) -> dict[str, Any]:
    """What a baseline's settings say of --knorm-policy: nothing where it is the method itself."""
    name = option("knorm_policy")
    return {} if name == "low_norm" else {"policy": policy_identity(find_policy(name)) or name}


def settings_suffix(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Suffix of a baseline's name: empty for the defaults, else a short hash, so that each has its own file."""
    changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
    return f"-{hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:8]}" if changed else ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "text_set" in metafunc.fixturenames and not _parametrised(metafunc, "text_set"):
        names = [name for part in option("knorm_text").split(",") for name in text_names(part)]
        # One worker per text set: what its tests share is computed once.
        metafunc.parametrize("text_set", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names])
    if "position_mode" in metafunc.fixturenames and not _parametrised(metafunc, "position_mode"):
        metafunc.parametrize("position_mode", option("knorm_positions"))


def _parametrised(metafunc: pytest.Metafunc, name: str) -> bool:
    return any(name in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))


DEFAULT_SETTINGS = {"keep_ratios": KEEP_RATIOS, "prune_after": 256, "max_eval_tokens": None}
__all__ = ["DEFAULT_SETTINGS", "TEXT_SETS", "LoadedModel", "made_from", "policy_settings", "settings_suffix"]
