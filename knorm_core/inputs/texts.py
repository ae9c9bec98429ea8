"""Texts by name, as token ids: embedded ones, Wikitext-2 and PG-19 from a local mirror or the hub, and your own.

A text is tokenised whole, then cut. Special tokens are left out but for the one that begins a text (BOS),
where the model's own tokenizer adds it; it is the first token, and the first token is never scored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from knorm_core.counts import SHORTEST_TEXT, check_int, check_path
from knorm_core.inputs import text_sources as sources
from knorm_core.inputs.text_sources import TextNotFoundError as TextNotFoundError
from knorm_core.inputs.tokenizers import begins_with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT_SAMPLE = (150, 223)  # tokens, the report's range
BREADTH = 512  # tokens of each text where many texts count more than long ones

BOS = ("auto", "on", "off")

#: where in a book its window begins: past the front matter, and before notes and an index
BODY = 0.25
_ONE_BOOK = 16  # windows
OWN_LIMIT, OWN_TOKENS = 32, 1024  # windows of the user's own texts, and tokens of each

Path_ = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Text:
    """One text.

    Attributes:
        title: what it is called in tables.
        input_ids: token ids (n,), int64.
        sha256: of the characters that it was tokenised from.
        bos: whether the first token is the tokenizer's beginning-of-sequence token.
    """

    title: str
    input_ids: torch.Tensor
    sha256: str
    bos: bool = False


class TextSet(NamedTuple):
    """How a named set of texts is made: its source, and which of the source's texts belong to it."""

    source: Callable[[Path | None], list[sources.Named]]
    limit: int  # texts that the reproduction uses
    max_eval_tokens: int = 1024
    tokens: tuple[int, int] | None = None  # the fewest and the most that a text may have, BOS not counted


_EVER_LONGER = 1 << 62

TEXT_SETS: dict[str, TextSet] = {
    "embedded-articles": TextSet(sources.embedded("article-*.txt"), limit=4),
    "embedded-short": TextSet(sources.embedded("short-*.txt"), limit=8, tokens=SHORT_SAMPLE),
    "embedded-narrative": TextSet(sources.embedded("narrative.txt"), limit=1, max_eval_tokens=2048),
    "embedded-breadth": TextSet(sources.embedded("breadth-*.txt"), limit=32, max_eval_tokens=BREADTH),
    "wikitext": TextSet(sources.wikitext_whole, limit=1),
    "wikitext-articles": TextSet(sources.wikitext_articles, limit=4),
    "wikitext-short": TextSet(sources.wikitext_rows, limit=8, tokens=SHORT_SAMPLE),
    "wikitext-breadth": TextSet(
        sources.wikitext_articles, limit=32, max_eval_tokens=BREADTH, tokens=(BREADTH, _EVER_LONGER)
    ),
    "pg19": TextSet(sources.pg19_books(BODY), limit=30),
    "pg19-windows": TextSet(
        sources.pg19_one_book([0.1 + 0.8 * index / (_ONE_BOOK - 1) for index in range(_ONE_BOOK)]),
        limit=_ONE_BOOK,
        max_eval_tokens=BREADTH,
    ),
}

TEXT_GROUPS: dict[str, tuple[str, ...]] = {
    "embedded": ("embedded-articles", "embedded-narrative", "embedded-short"),
    "wikitext-all": ("wikitext-articles", "wikitext-short"),
}


def load_texts(
    name: Path_ | Iterable[Path_],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_eval_tokens: int | None = None,
    text_dir: Path_ | None = None,
    limit: int | None = None,
    bos: str = "auto",
) -> list[Text]:
    """The texts of a named set, or your own, tokenised and cut.

    Args:
        name: one of `TEXT_SETS`; or the path of a text file (UTF-8), of several, or of a folder of ``*.txt``,
            each of which is cut into windows of ``max_eval_tokens``, one after the other.
        tokenizer: of the model that is to read them.
        max_eval_tokens: cut each text to this many tokens, BOS among them; default: the set's own (1,024; for
            the narrative 2,048, for the sets of many texts 512).
        text_dir: local mirror with ``wikitext-2-raw/test.txt`` and ``pg19/<id>.txt``; default the
            environment variable ``KNORM_TEXT_DIR``; without either the hub is asked.
        limit: at most so many texts; default: the set's own, or 32 windows of your own texts. Of more windows, those
            are taken that are spread evenly over all.
        bos: "auto", "on" or "off": whether a text begins with the tokenizer's BOS token; "auto" is what the
            tokenizer does by itself (Llama, Gemma: on; SmolLM2, Pythia: off).

    Raises:
        TextNotFoundError: (a ValueError) unknown name, or the text is not where it should be.
        ValueError: ``bos`` is none of the three, or "on" and the tokenizer has no such token.
    """
    if bos not in BOS:
        raise ValueError(f"bos={bos!r} must be one of {', '.join(BOS)}")
    if text_dir is not None:
        check_path("text_dir", text_dir)
    if not isinstance(name, str | os.PathLike):
        name = _paths(name)
    if not isinstance(name, str) or (name not in TEXT_SETS and os.path.exists(os.path.expanduser(name))):
        return _own_texts(name, tokenizer, max_eval_tokens, limit, bos)
    if name not in TEXT_SETS:
        raise _unknown(name)
    chosen = TEXT_SETS[name]
    asked = chosen.max_eval_tokens if max_eval_tokens is None else max_eval_tokens
    most = check_int("max_eval_tokens", asked, SHORTEST_TEXT)
    count = check_int("limit", chosen.limit if limit is None else limit, 1)
    folder = text_dir or os.environ.get("KNORM_TEXT_DIR")
    named = chosen.source(Path(folder) if folder else None)
    first = first_tokens(tokenizer, bos)
    texts: list[Text] = []
    for title, characters in named:
        ids = _ids(tokenizer, characters)
        if chosen.tokens and not chosen.tokens[0] <= len(ids) <= chosen.tokens[1]:
            continue
        texts.append(_text(title, [*first, *ids][:most], characters, first))
        if len(texts) == count:
            break
    if not texts:
        fewest, longest = chosen.tokens or (1, _EVER_LONGER)
        kind = f" of {fewest} to {longest} tokens" if longest < _EVER_LONGER else f" of {fewest} tokens or more"
        raise TextNotFoundError(
            f"text {name!r} has no sample{kind} as this model's tokenizer counts them: choose another set, such as "
            f"'embedded-breadth', or a text of your own"
            if chosen.tokens
            else f"text {name!r} has no sample here"
        )
    return texts


def text_names(name: str) -> tuple[str, ...]:
    """The sets that a name stands for: itself, or those of its group."""
    if name in TEXT_GROUPS:
        return TEXT_GROUPS[name]
    if name in TEXT_SETS:
        return (name,)
    raise _unknown(name)


def _unknown(name: str) -> TextNotFoundError:
    return TextNotFoundError(
        f"unknown text {name!r}: choose from {', '.join(TEXT_SETS)}, or a group: {', '.join(TEXT_GROUPS)}"
    )


def _paths(names: Any) -> list[Path_]:
    paths = list(names) if isinstance(names, Iterable) and getattr(names, "ndim", None) != 0 else [names]
    for path in paths:
        check_path("name", path)
    return paths


def _own_texts(
    name: Path_ | Iterable[Path_],
    tokenizer: PreTrainedTokenizerBase,
    max_eval_tokens: int | None,
    limit: int | None,
    bos: str,
) -> list[Text]:
    most = check_int("max_eval_tokens", max_eval_tokens or OWN_TOKENS, SHORTEST_TEXT)
    count = check_int("limit", OWN_LIMIT if limit is None else limit, 1)
    paths = [name] if isinstance(name, str | os.PathLike) else list(name)
    named = sources.own(paths)
    first = first_tokens(tokenizer, bos)
    texts = []
    for title, characters in named:
        ids, step = _ids(tokenizer, characters), most - len(first)
        pieces = [ids[start : start + step] for start in range(0, len(ids), step)]
        # The rest at the end is kept where it is at least half a window, or all there is.
        pieces = [piece for piece in pieces if 2 * len(piece) >= step or len(pieces) == 1]
        pieces = [piece for piece in pieces if len(first) + len(piece) >= SHORTEST_TEXT]
        numbered = [title] if len(pieces) == 1 else [f"{title} {i + 1}/{len(pieces)}" for i in range(len(pieces))]
        texts += [_text(n, [*first, *piece], characters, first) for n, piece in zip(numbered, pieces, strict=True)]
    if not texts:
        raise TextNotFoundError(
            f"no text in {', '.join(map(str, paths))[:300]!r} has the {SHORTEST_TEXT} tokens that an evaluation needs"
        )
    if len(texts) <= count:
        return texts
    return [texts[(2 * index + 1) * len(texts) // (2 * count)] for index in range(count)]


def _ids(tokenizer: PreTrainedTokenizerBase, characters: str) -> list[int]:
    ids: list[int] = tokenizer(
        characters, add_special_tokens=False, return_attention_mask=False, verbose=False
    ).input_ids
    return ids


def first_tokens(tokenizer: PreTrainedTokenizerBase, bos: str) -> list[int]:
    """The token that each text begins with, or none."""
    if not callable(tokenizer):
        raise TypeError(f"tokenizer={tokenizer!r} is no tokenizer: load_model gives a model's own")
    if bos == "off" or (bos == "auto" and not begins_with_bos(tokenizer)):
        return []
    if tokenizer.bos_token_id is None:
        raise ValueError(f"bos={bos!r} needs a tokenizer with a BOS token: choose auto or off")
    return [tokenizer.bos_token_id]


def _text(title: str, ids: list[int], characters: str, first: list[int]) -> Text:
    digest = hashlib.sha256(characters.encode()).hexdigest()
    return Text(title, torch.tensor(ids, dtype=torch.int64), digest, bool(first))
