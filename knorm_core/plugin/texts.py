"""The texts that the user named on the command line, as fixtures: sets by name, and files and folders of their own."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from knorm_core.contract.command_line import options
from knorm_core.experiments.breadth import SETS
from knorm_core.inputs.models import EMBEDDED
from knorm_core.inputs.text_sources import own
from knorm_core.inputs.texts import (
    BOS,
    OWN_LIMIT,
    OWN_TOKENS,
    TEXT_GROUPS,
    TEXT_SETS,
    Text,
    TextNotFoundError,
    load_texts,
    text_names,
)
from knorm_core.plugin.inputs import LoadedModel
from knorm_core.plugin.settings import parametrised

_OWN = "own-"  # begins the names of the user's own texts, so that no set has such a name
_MOST_OF_A_NAME = 80  # characters; it is a folder's name too
_BYTES_OF_A_TOKEN = 8  # with most tokenizers a text has more tokens than its bytes by this, so no test is for nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    group = options(parser)
    group.addoption(
        "--knorm-text",
        default="embedded",
        metavar="NAME|FILE|FOLDER[,…]",
        help=f"text sets: {', '.join([*TEXT_GROUPS, *TEXT_SETS])}; or text files of yours (UTF-8), or folders of "
        "*.txt, which are cut into windows (default: %(default)s)",
    )
    group.addoption(
        "--knorm-text-dir",
        default=None,
        metavar="DIR",
        help="local mirror of the texts: DIR/wikitext-2-raw/test.txt, DIR/pg19/<id>.txt "
        "(default: $KNORM_TEXT_DIR, else the hub)",
    )
    group.addoption(
        "--knorm-bos",
        choices=BOS,
        default="auto",
        help="whether a text begins with the tokenizer's BOS token; auto is what the tokenizer does by itself "
        "(default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say what is wrong with a name once, before anything runs."""
    config.addinivalue_line("markers", "reads_text(name): a text set or group that the test reads; see --knorm-text")
    try:
        own(path for path in asked_texts(config).values() if path is not None)
    except ValueError as error:
        sentence = str(error)
    else:
        return
    raise pytest.UsageError(sentence)


def asked_texts(config: pytest.Config) -> dict[str, Path | None]:
    """The text sets of --knorm-text in its order; a file or folder of the user's own has its path, a set None.

    Raises:
        TextNotFoundError: a name is neither a set nor a path, or two paths would have one name in tables.
    """
    option = config.getoption("knorm_text")
    folder = config.invocation_params.dir
    whole = option not in TEXT_SETS and os.path.exists(folder / os.path.expanduser(option))  # a comma in a path
    texts: dict[str, Path | None] = {}
    for part in [option] if whole else option.split(","):
        path = folder / os.path.expanduser(part)
        if part in TEXT_SETS or part in TEXT_GROUPS:
            texts |= dict.fromkeys(text_names(part))
        elif not part or not os.path.exists(path):
            try:
                text_names(part)
            except TextNotFoundError as error:
                raise TextNotFoundError(f"{error}; and there is no file or folder of that name in {folder}") from None
        else:
            name = _OWN + re.sub(r"[^\w.-]+", "-", Path(os.path.abspath(path)).stem)[:_MOST_OF_A_NAME]
            if texts.get(name, path) != path:
                raise TextNotFoundError(
                    f"two texts are called {name} in tables, {texts[name]} and {path}: rename one of them"
                )
            texts[name] = path
    return texts


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
                asked_texts(request.config).get(name) or name,
                loaded.tokenizer,
                max_eval_tokens=max_eval_tokens,
                text_dir=folder,
                limit=limit,
                bos=loaded.bos,
            )
        except ValueError as error:  # TextNotFoundError, or a BOS token that the tokenizer does not have
            of_another_model = isinstance(error, TextNotFoundError) and loaded.name != EMBEDDED
            if of_another_model and name.startswith("embedded"):  # by its tokenizer, no text has such a length
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


@pytest.fixture
def text_set(request: pytest.FixtureRequest) -> str:
    """A text set of --knorm-text; a test that asks for it runs with each."""
    return str(request.param)


def text_sets(config: pytest.Config) -> list[str]:
    """The text sets of --knorm-text, in its order."""
    return list(asked_texts(config))


def table_sets(config: pytest.Config) -> list[str]:
    """The text sets of --knorm-text, but those of many texts: their rows are others (`knorm_core.plugin.breadth`)."""
    return [name for name in text_sets(config) if name not in SETS]


def parts_of(config: pytest.Config, name: str) -> int:
    """Into how many tests the texts of a set are dealt: one each, as far as can be told without a tokenizer."""
    path = asked_texts(config).get(name)
    if path is None:
        return TEXT_SETS[name].limit
    size = sum(len(characters.encode()) for _, characters in own([path]))
    window = config.getoption("knorm_max_eval_tokens") or OWN_TOKENS
    return max(1, min(OWN_LIMIT, size // (_BYTES_OF_A_TOKEN * window)))


def most_texts(name: str) -> int:
    """How many texts a set has at most."""
    return TEXT_SETS[name].limit if name in TEXT_SETS else OWN_LIMIT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "text_set" in metafunc.fixturenames and not parametrised(metafunc, "text_set"):
        # One worker per text set: what its tests share is computed once.
        names = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in table_sets(metafunc.config)]
        metafunc.parametrize("text_set", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where --knorm-text names texts, tests of other texts (marker ``reads_text``) are left out."""
    if config.getoption("knorm_text") == "embedded":
        return
    others = [item for item in items if _texts_read(item) and not reads(item, text_sets(config))]
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def reads(item: pytest.Item, names: Iterable[str]) -> bool:
    """Whether a test says that it reads one of these text sets."""
    return not _texts_read(item).isdisjoint(names)


def _texts_read(item: pytest.Item) -> set[str]:
    """The text sets that a test of the reproduction reads; empty where it does not say."""
    if any(True for _ in item.iter_markers("fast")):
        return set()
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    marked = {name for mark in item.iter_markers("reads_text") for part in mark.args for name in text_names(part)}
    return {parameters["text_set"]} if parameters.get("text_set") else marked
