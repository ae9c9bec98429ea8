"""Texts by name, as token ids: embedded ones, and Wikitext-2 and PG-19 from a local mirror or the hub.

A text is tokenised whole, without added special tokens, then cut. Wikitext articles are split at level-1
headings; short samples are single rows within a range of tokens, as the report used them.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from knorm_core.counts import SHORTEST_TEXT, check_int
from knorm_core.inputs import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT_SAMPLE = (150, 223)  # tokens, the report's range

# Bytes of text in a data set; the largest that is used has 40 million.
_MOST_TEXT = 1 << 30

#: SHA-256 of the test split of wikitext-2-raw-v1, its rows joined
WIKITEXT_SHA256 = "bbf94c53a05abe9ee670d3b6343608095822c85e26de37c70b24fc571964574a"

_EMBEDDED = Path(__file__).parent / "embedded"
_HEADING = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)


class TextNotFoundError(ValueError):
    """The text that was named is not there, or not the text it should be; the message says where it was sought."""


@dataclass(frozen=True, eq=False)
class Text:
    """One text: its title, token ids (n,) int64, and the SHA-256 of the characters it was tokenised from."""

    title: str
    input_ids: torch.Tensor
    sha256: str


class TextSet(NamedTuple):
    """How a named set of texts is found: its source, and how the source is cut into texts."""

    source: Callable[[Path | None], list[tuple[str, str]]]
    limit: int  # texts that the reproduction uses
    max_eval_tokens: int = 1024
    short_samples: bool = False


def load_texts(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_eval_tokens: int | None = None,
    text_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[Text]:
    """The texts of a named set, tokenised and cut.

    Args:
        name: one of `TEXT_SETS`.
        tokenizer: of the model that is to read them.
        max_eval_tokens: cut each text to this many tokens; default: the set's own (1,024, for the
            narrative 2,048).
        text_dir: local mirror with ``wikitext-2-raw/test.txt`` and ``pg19/<id>.txt``; default the
            environment variable ``KNORM_TEXT_DIR``; without either the hub is asked.
        limit: at most so many texts; default: the set's own.

    Raises:
        TextNotFoundError: (a ValueError) unknown name, or the text is not where it should be.
    """
    if name not in TEXT_SETS:
        raise TextNotFoundError(
            f"unknown text {name!r}: choose from {', '.join(TEXT_SETS)}, or a group: {', '.join(TEXT_GROUPS)}"
        )
    chosen = TEXT_SETS[name]
    most = check_int("max_eval_tokens", max_eval_tokens or chosen.max_eval_tokens, SHORTEST_TEXT)
    count = check_int("limit", chosen.limit if limit is None else limit, 1)
    folder = text_dir or os.environ.get("KNORM_TEXT_DIR")
    texts: list[Text] = []
    for title, characters in chosen.source(Path(folder) if folder else None):
        ids = tokenizer(characters, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        if chosen.short_samples and not SHORT_SAMPLE[0] <= len(ids) <= SHORT_SAMPLE[1]:
            continue
        digest = hashlib.sha256(characters.encode()).hexdigest()
        texts.append(Text(title, torch.tensor(ids[:most], dtype=torch.int64), digest))
        if len(texts) == count:
            break
    if not texts:
        raise TextNotFoundError(f"text {name!r} has no sample of {SHORT_SAMPLE[0]} to {SHORT_SAMPLE[1]} tokens")
    return texts


def text_names(name: str) -> tuple[str, ...]:
    """The sets that a name stands for: itself, or those of its group."""
    if name in TEXT_GROUPS:
        return TEXT_GROUPS[name]
    if name in TEXT_SETS:
        return (name,)
    raise TextNotFoundError(
        f"unknown text {name!r}: choose from {', '.join(TEXT_SETS)}, or a group: {', '.join(TEXT_GROUPS)}"
    )


def _embedded(pattern: str) -> Callable[[Path | None], list[tuple[str, str]]]:
    def source(_: Path | None) -> list[tuple[str, str]]:
        return [(path.stem, _read(path)) for path in sorted(_EMBEDDED.glob(pattern))]

    return source


def _wikitext_rows(folder: Path | None) -> list[str]:
    if folder is not None:
        path = _mirrored(folder / "wikitext-2-raw" / "test.txt")
        rows = re.findall(r"[^\n]*\n|[^\n]+$", _read(path))
    else:
        [rows] = _from_hub("Salesforce/wikitext", "text")
    digest = hashlib.sha256("".join(rows).encode()).hexdigest()
    if digest != WIKITEXT_SHA256:
        raise TextNotFoundError(
            f"wikitext-2-raw test has SHA-256 {digest}, not {WIKITEXT_SHA256}: it is not the text that it should be"
        )
    return rows


def _wikitext_whole(folder: Path | None) -> list[tuple[str, str]]:
    return [("wikitext-2-raw test", "".join(_wikitext_rows(folder)))]


def _wikitext_articles(folder: Path | None) -> list[tuple[str, str]]:
    text = "".join(_wikitext_rows(folder))
    starts = [match.start() for match in _HEADING.finditer(text)]
    ends = [*starts[1:], len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [(piece.split("\n", 1)[0].strip(" ="), piece) for piece in pieces]


def _wikitext_short(folder: Path | None) -> list[tuple[str, str]]:
    # The hub's blank rows are empty strings, which a joined mirror cannot hold: count the others.
    return [(f"row {index}", row) for index, row in enumerate(row for row in _wikitext_rows(folder) if row)]


def _pg19(folder: Path | None) -> list[tuple[str, str]]:
    if folder is not None:
        books = folder / "pg19"
        paths = sorted(books.glob("*.txt")) if os.path.isdir(books) else []
        if not paths:
            _mirrored(books / "<id>.txt")
        return [(path.stem, _read(path)) for path in paths]
    return list(zip(*_from_hub("emozilla/pg19-test", "short_book_title", "text"), strict=True))


TEXT_SETS: dict[str, TextSet] = {
    "embedded-articles": TextSet(_embedded("article-*.txt"), limit=4),
    "embedded-short": TextSet(_embedded("short-*.txt"), limit=8, short_samples=True),
    "embedded-narrative": TextSet(_embedded("narrative.txt"), limit=1, max_eval_tokens=2048),
    "wikitext": TextSet(_wikitext_whole, limit=1),
    "wikitext-articles": TextSet(_wikitext_articles, limit=4),
    "wikitext-short": TextSet(_wikitext_short, limit=8, short_samples=True),
    "pg19": TextSet(_pg19, limit=1),
}

TEXT_GROUPS: dict[str, tuple[str, ...]] = {
    "embedded": ("embedded-articles", "embedded-narrative", "embedded-short"),
    "wikitext-all": ("wikitext-articles", "wikitext-short"),
}


def _mirrored(path: Path) -> Path:
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise TextNotFoundError(
            f"no text at {hub.shortened(path)}: --knorm-text-dir (or KNORM_TEXT_DIR) names a folder without it"
        )
    return path


def _read(path: Path) -> str:
    # By `datasets`, as every text: one document per file, line ends as they are.
    import datasets

    datasets.disable_progress_bars()
    documents = datasets.Dataset.from_text(_pattern(path), sample_by="document", keep_linebreaks=True)
    return str(documents[0]["text"]) if len(documents) else ""


def _from_hub(repository: str, *columns: str) -> list[list[str]]:
    """Columns of a pinned data set's one file."""
    import datasets

    try:
        [file] = hub.PINNED[repository].sha256
        path = hub.pinned(repository) / file
    except hub.HubError as error:
        raise TextNotFoundError(str(error)) from error
    _check_parquet(path, columns, f"{file} of data set {repository!r}")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_parquet(_pattern(path), columns=list(columns))
    return [list(rows[column]) for column in columns]


def _check_parquet(path: Path, columns: tuple[str, ...], what: str) -> None:
    """Raise a TextNotFoundError unless these columns are whole, are text, and fit in memory.

    They are read once as they are encoded: fifty kilobytes of Parquet can stand for 20 GB of text.
    """
    import pyarrow
    from pyarrow import compute, parquet

    try:
        with parquet.ParquetFile(path, read_dictionary=list(columns)) as file:
            names, size = file.schema_arrow.names, 0
            missing = [column for column in columns if column not in names]
            if missing:
                raise TextNotFoundError(f"{what} has no column {missing[0]!r}: {names}")
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > _MOST_TEXT:
                raise TextNotFoundError(f"{what} is larger than the {_MOST_TEXT} bytes that are read of a data set")
            for batch in file.iter_batches(columns=list(columns)):
                batch.validate(full=True)
                for column, name in zip(batch.columns, batch.schema.names, strict=True):
                    if not (
                        pyarrow.types.is_dictionary(column.type) and pyarrow.types.is_string(column.type.value_type)
                    ):
                        raise TextNotFoundError(f"column {name!r} of {what} is not text, but {column.type}")
                    if column.null_count:
                        raise TextNotFoundError(f"column {name!r} of {what} has rows without text")
                    lengths = compute.binary_length(column.dictionary).take(column.indices)
                    size += len(column) + (compute.sum(lengths).as_py() or 0)
                if size > _MOST_TEXT:
                    raise TextNotFoundError(f"{what} stands for more than the {_MOST_TEXT} bytes of text that are read")
    except TextNotFoundError:
        raise
    except Exception as error:  # whatever Parquet's readers make of damaged bytes
        raise TextNotFoundError(
            f"{what} is damaged ({type(error).__name__}: {error}): delete {path} and run again"
        ) from error


def _pattern(path: Path) -> str:
    # `datasets` takes names of files for patterns, and this for a chain of file systems.
    if "::" in str(path):
        raise TextNotFoundError(f"text at {hub.shortened(path)} cannot be read: '::' must not be in its path")
    return glob.escape(str(path))
