"""Many texts of many kinds: which of them, and their evaluations in float32."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch

from knorm_core.contract.command_line import options
from knorm_core.evaluation import Evaluation
from knorm_core.experiments.breadth import TEXTS, Row
from knorm_core.inputs.loaded import loaded
from knorm_core.inputs.texts import Text
from knorm_core.plugin.inputs import LoadedModel
from knorm_core.sweeps.cells import Cell


def pytest_addoption(parser: pytest.Parser) -> None:
    options(parser).addoption(
        "--knorm-breadth",
        type=_count,
        default=TEXTS,
        metavar="N",
        help="texts of the breadth tables, the first of every kind first (default: %(default)s)",
    )


def _count(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= TEXTS:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of texts from 1 to {TEXTS}")
    return int(value)


@pytest.fixture(scope="session")
def many_texts(request: pytest.FixtureRequest, language_model: LoadedModel, texts_of: Any) -> Callable[..., list[Text]]:
    """``many_texts(text_set)``: as many texts as --knorm-breadth says, across all kinds."""
    count = request.config.getoption("knorm_breadth")
    return lambda text_set: across_kinds(texts_of(language_model, text_set))[:count]


def across_kinds(texts: Sequence[Text]) -> list[Text]:
    """The first text of every kind, then the second, …, where titles are numbered by kind as in ``breadth-essay-2``."""
    numbered = [re.fullmatch(r"breadth-[a-z]+-(\d+)", text.title) for text in texts]
    number = {text.title: int(match[1]) if match else 0 for text, match in zip(texts, numbered, strict=True)}
    return sorted(texts, key=lambda text: number[text.title])


@pytest.fixture(scope="session")
def single_precision(request: pytest.FixtureRequest, language_model: LoadedModel) -> Any:
    """The model in float32, or in the lower precision that was asked for: breadth is worth more than digits."""
    if language_model.model.dtype != torch.float64:
        return language_model.model
    device = request.config.getoption("knorm_device")
    return loaded(language_model.name, "float32", device, language_model.identity, onednn=True).model


@pytest.fixture(scope="session")
def breadth_of(
    request: pytest.FixtureRequest,
    language_model: LoadedModel,
    single_precision: Any,
    many_texts: Callable[[str], list[Text]],
    run_all: Any,
) -> Callable[[str, int, Iterable[Row]], dict[Row, list[Evaluation]]]:
    """``breadth_of(text_set, index, rows)``: {row: an evaluation per seed} of one text, computed once per process."""
    dtype = str(single_precision.dtype).removeprefix("torch.")
    onednn = single_precision is not language_model.model
    device = request.config.getoption("knorm_device")

    @functools.cache
    def evaluations(text_set: str, index: int, rows: tuple[Row, ...]) -> dict[Row, list[Evaluation]]:
        text = many_texts(text_set)[index]
        identity = (language_model.name, *language_model.identity)
        cells = {
            row: [
                Cell(*identity, f"{text_set}: {text.title}", text.input_ids, arguments, dtype, device, onednn)
                for arguments in row.arguments(index)
            ]
            for row in rows
        }
        outcomes = run_all([cell for each in cells.values() for cell in each])
        return {row: [outcomes[cell].result() for cell in each] for row, each in cells.items()}

    return lambda text_set, index, rows: evaluations(text_set, index, tuple(rows))
