"""Sources of texts: files of this package, a local mirror of Wikitext-2 and PG-19, the hub, the user's own files.

A local file is read as bytes, at once and whole, so that what is hashed is what is tokenised.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from knorm_core.inputs import hub
from knorm_core.inputs.digests import is_regular

#: a text's title and its characters
Named = tuple[str, str]

#: SHA-256 of the test split of wikitext-2-raw-v1, its rows joined
WIKITEXT_SHA256 = "bbf94c53a05abe9ee670d3b6343608095822c85e26de37c70b24fc571964574a"

# Bytes of text in a file or a data set; the largest that is used has 40 million.
_MOST_TEXT = 1 << 30
_EMBEDDED = Path(__file__).parent / "embedded"
_HEADING = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)
_BOOK = re.compile(r"[0-9]+\.txt")  # named by its number at Project Gutenberg
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_WINDOW = 100_000  # characters, some 24,000 tokens


class TextNotFoundError(ValueError):
    """The named text is missing, or is not the text that it should be. The message says where it was sought."""


def embedded(pattern: str) -> Callable[[Path | None], list[Named]]:
    """Texts that are shipped with this package."""

    def source(_: Path | None) -> list[Named]:
        return [(path.stem, read(path)) for path in sorted(_EMBEDDED.glob(pattern))]

    return source


def wikitext_whole(folder: Path | None) -> list[Named]:
    return [("wikitext-2-raw test", "".join(_wikitext_rows(folder)))]


def wikitext_articles(folder: Path | None) -> list[Named]:
    """The articles, each from its heading of level 1 to the next."""
    text = "".join(_wikitext_rows(folder))
    starts = [match.start() for match in _HEADING.finditer(text)]
    ends = [*starts[1:], len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [(piece.split("\n", 1)[0].strip(" ="), piece) for piece in pieces]


def wikitext_rows(folder: Path | None) -> list[Named]:
    # The hub's blank rows are empty strings, which a joined mirror cannot hold: count the others.
    return [(f"row {index}", row) for index, row in enumerate(row for row in _wikitext_rows(folder) if row)]


def pg19_whole(folder: Path | None) -> list[Named]:
    """Every book from its first page on, which is what the report took: a title, a preface, a table of contents."""
    return _pg19(folder)


def pg19_books(share: float) -> Callable[[Path | None], list[Named]]:
    """One window per book, from the same share of each: a first page is a title, a preface, or a table of contents."""

    def source(folder: Path | None) -> list[Named]:
        return [(title, window) for title, text in _pg19(folder) for window in windows(text, [share])]

    return source


def pg19_one_book(shares: Sequence[float]) -> Callable[[Path | None], list[Named]]:
    """Windows of the first book alone, at several shares of it."""

    def source(folder: Path | None) -> list[Named]:
        title, text = _pg19(folder)[0]
        return [(f"{title} at {share:.0%}", w) for share, w in zip(shares, windows(text, shares), strict=True)]

    return source


def windows(text: str, shares: Sequence[float]) -> list[str]:
    """A window of a text at each of these shares of its length, in order, and no two with a character in common.

    A window begins with the first paragraph after its share.
    """
    starts = [_paragraph(text, int(share * len(text))) for share in shares]
    ends = [*starts[1:], len(text)]
    return [text[start : min(end, start + _WINDOW)] for start, end in zip(starts, ends, strict=True)]


def _paragraph(text: str, start: int) -> int:
    paragraph = _PARAGRAPH.search(text, start)
    return paragraph.end() if paragraph and paragraph.end() < len(text) else start


def own(paths: Iterable[str | os.PathLike[str]]) -> list[Named]:
    """The user's own files; of a folder every ``*.txt`` in it."""
    texts: list[Named] = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        files = sorted(path.glob("*.txt")) if os.path.isdir(path) else [path]
        if not files:
            raise TextNotFoundError(f"no text in {hub.shortened(path)}: it has no file *.txt")
        texts += [(file.stem, read(file)) for file in files]
    return texts


def read(path: Path) -> str:
    """A file's characters, line ends as they are.

    Raises:
        TextNotFoundError: it is not there, no regular file, larger than 1 GiB, or not UTF-8.
    """
    where = hub.shortened(path)
    try:
        status = os.stat(path)
        if not is_regular(status):
            raise TextNotFoundError(f"text at {where} is no regular file")
        if status.st_size > _MOST_TEXT:
            raise TextNotFoundError(f"text at {where} has {status.st_size} bytes, more than {_MOST_TEXT}")
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextNotFoundError(f"text at {where} is not UTF-8 (byte {error.start})") from None
    except TextNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise TextNotFoundError(f"no text at {where} ({reason})") from None


def _wikitext_rows(folder: Path | None) -> list[str]:
    if folder is not None:
        path = _mirrored(folder / "wikitext-2-raw" / "test.txt")
        rows = re.findall(r"[^\n]*\n|[^\n]+$", read(path))
    else:
        [rows] = from_hub("Salesforce/wikitext", "text")
    digest = hashlib.sha256("".join(rows).encode()).hexdigest()
    if digest != WIKITEXT_SHA256:
        raise TextNotFoundError(
            f"wikitext-2-raw test has SHA-256 {digest}, not {WIKITEXT_SHA256}: it is not the text that it should be"
        )
    return rows


def _pg19(folder: Path | None) -> list[Named]:
    if folder is None:
        titles, texts = from_hub("emozilla/pg19-test", "short_book_title", "text")
        return list(zip(titles, texts, strict=True))
    books = folder / "pg19"
    try:
        names = os.listdir(books) if os.path.isdir(books) else []
    except OSError as error:
        raise TextNotFoundError(f"no text in {hub.shortened(books)} ({error.strerror})") from None
    paths = sorted((books / name for name in names if _BOOK.fullmatch(name)), key=lambda path: (int(path.stem), path))
    if not paths:
        _mirrored(books / "<id>.txt")
    return [(path.stem, read(path)) for path in paths]


def _mirrored(path: Path) -> Path:
    if not os.path.exists(path):  # Path.exists raises where a name is too long
        raise TextNotFoundError(
            f"no text at {hub.shortened(path)}: --knorm-text-dir (or KNORM_TEXT_DIR) names a folder without it"
        )
    return path


def from_hub(repository: str, *columns: str) -> list[list[str]]:
    """Columns of a pinned data set's one file.

    Raises:
        TextNotFoundError: it cannot be had, is damaged, or its columns are not text that fits in memory.
    """
    try:
        [file] = hub.PINNED[repository].sha256
        path = hub.pinned(repository) / file
    except hub.HubError as error:
        raise TextNotFoundError(str(error)) from error
    what = f"{file} of data set {repository!r}"
    try:
        return _columns(path, columns, what)
    except TextNotFoundError:
        raise
    except Exception as error:  # whatever Parquet's readers make of damaged bytes
        raise TextNotFoundError(
            f"{what} is damaged ({type(error).__name__}: {error}): delete {path} and run again"
        ) from error


def _columns(path: Path, columns: tuple[str, ...], what: str) -> list[list[str]]:
    # Read as they are encoded, and measured before they are spelled out: fifty kilobytes can stand for 20 GB of text.
    import pyarrow
    from pyarrow import compute, parquet

    values: dict[str, list[str]] = {column: [] for column in columns}
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
                if not (pyarrow.types.is_dictionary(column.type) and pyarrow.types.is_string(column.type.value_type)):
                    raise TextNotFoundError(f"column {name!r} of {what} is not text, but {column.type}")
                if column.null_count:
                    raise TextNotFoundError(f"column {name!r} of {what} has rows without text")
                lengths = compute.binary_length(column.dictionary).take(column.indices)
                size += len(column) + (compute.sum(lengths).as_py() or 0)
            if size > _MOST_TEXT:
                raise TextNotFoundError(f"{what} stands for more than the {_MOST_TEXT} bytes of text that are read")
            for column, name in zip(batch.columns, batch.schema.names, strict=True):
                values[name] += column.to_pylist()
    if not values[columns[0]]:
        raise TextNotFoundError(f"{what} has no rows")
    return [values[column] for column in columns]
