"""Texts: what is read is what is there, from where it should be, with the first token that the model wants."""

from __future__ import annotations

import hashlib
import itertools
import os

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from knorm_core import TextNotFoundError, load_texts
from knorm_core.inputs import text_sources
from knorm_core.inputs.texts import SHORT_SAMPLE, TEXT_SETS
from suites.hub.content import tokenizer_files

pytestmark = [pytest.mark.fast, pytest.mark.xdist_group("texts")]

PAGES = [f"Page {page} of the book, on which it says what it says.\n\n" for page in range(1000)]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with a BOS token that it does not add by itself."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer_files()["tokenizer.json"].decode())
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def with_bos(tokenizer):
    """The same tokenizer, adding its BOS token by itself."""
    from tokenizers.processors import TemplateProcessing

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")


@pytest.fixture
def mirror(tmp_path):
    """A mirror with one book of a thousand numbered pages."""
    (tmp_path / "pg19").mkdir()
    (tmp_path / "pg19" / "7.txt").write_text("".join(PAGES))
    return tmp_path


def characters(tokenizer, text):
    return tokenizer.decode(text.input_ids, clean_up_tokenization_spaces=False)


@pytest.mark.xdist_group("embedded model")
def test_embedded_texts_have_the_promised_lengths(embedded_model):
    names = ["embedded-articles", "embedded-short", "embedded-narrative"]
    whole = {
        name: [len(text.input_ids) for text in load_texts(name, embedded_model.tokenizer, max_eval_tokens=10**6)]
        for name in names
    }
    assert min(whole["embedded-articles"]) >= 1100
    assert len(whole["embedded-short"]) == 8
    assert all(SHORT_SAMPLE[0] <= length <= SHORT_SAMPLE[1] for length in whole["embedded-short"])
    assert whole["embedded-narrative"] == [length for length in whole["embedded-narrative"] if length >= 4500]


BREADTH = sorted(text_sources._EMBEDDED.glob("breadth-*.txt"))


@pytest.mark.xdist_group("embedded model")
@pytest.mark.skipif(not BREADTH, reason="the texts of breadth are not written yet")
def test_the_embedded_texts_of_breadth_are_four_of_each_of_eight_kinds_and_long_enough(embedded_model):
    kinds = [path.stem.split("-")[1] for path in BREADTH]
    assert len(set(kinds)) == 8
    assert {kinds.count(kind) for kind in kinds} == {4}
    whole = load_texts("embedded-breadth", embedded_model.tokenizer, max_eval_tokens=10**6)
    assert min(len(text.input_ids) for text in whole) >= 650
    assert {len(text.input_ids) for text in load_texts("embedded-breadth", embedded_model.tokenizer)} == {512}


@pytest.mark.xdist_group("embedded model")
def test_texts_are_tokenised_whole_then_cut_without_special_tokens(embedded_model):
    tokenizer = embedded_model.tokenizer
    [cut] = load_texts("embedded-narrative", tokenizer, max_eval_tokens=100)
    [whole] = load_texts("embedded-narrative", tokenizer, max_eval_tokens=10**6)
    assert torch.equal(cut.input_ids, whole.input_ids[:100])
    assert not set(cut.input_ids.tolist()) & set(tokenizer.all_special_ids)
    assert cut.sha256 == whole.sha256
    assert not cut.bos


# --- BOS


@pytest.mark.parametrize(
    ("which", "bos", "begins"),
    [
        ("tokenizer", "auto", False),
        ("tokenizer", "on", True),
        ("with_bos", "auto", True),
        ("with_bos", "on", True),
        ("with_bos", "off", False),
    ],
)
def test_a_text_begins_with_bos_where_the_tokenizer_adds_it_or_the_user_asks(which, bos, begins, request):
    tokenizer = request.getfixturevalue(which)
    [text] = load_texts("embedded-narrative", tokenizer, max_eval_tokens=60, bos=bos)
    [without] = load_texts("embedded-narrative", tokenizer, max_eval_tokens=60, bos="off")
    assert text.bos == begins
    assert len(text.input_ids) == 60
    if begins:
        assert text.input_ids[0] == tokenizer.bos_token_id
        assert torch.equal(text.input_ids[1:], without.input_ids[:-1])
    else:
        assert torch.equal(text.input_ids, without.input_ids)


def test_short_samples_are_the_same_with_and_without_bos(tokenizer, tmp_path, monkeypatch):
    rows = "".join(f"Row {row}" + " words" * row + "\n" for row in range(40, 120))  # two tokens a word
    (tmp_path / "wikitext-2-raw").mkdir()
    (tmp_path / "wikitext-2-raw" / "test.txt").write_text(rows)
    monkeypatch.setattr(text_sources, "WIKITEXT_SHA256", hashlib.sha256(rows.encode()).hexdigest())
    without, with_bos = (load_texts("wikitext-short", tokenizer, bos=bos, text_dir=tmp_path) for bos in ("off", "on"))
    assert [text.title for text in without] == [text.title for text in with_bos]


def test_a_bos_that_cannot_be_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"bos='yes' must be one of auto, on, off"):
        load_texts("embedded-narrative", tokenizer, bos="yes")
    backend = tokenizer.backend_tokenizer
    with pytest.raises(ValueError, match=r"bos='on' needs a tokenizer with a BOS token"):
        load_texts("embedded-narrative", PreTrainedTokenizerFast(tokenizer_object=backend), bos="on")


# --- a mirror


def test_a_mirror_splits_wikitext_at_headings_of_level_one(tmp_path, tokenizer, monkeypatch):
    text = " \n = First = \n \n Words . \n = = Section = = \n More . \n = Second = \n Other words . \n"
    (tmp_path / "wikitext-2-raw").mkdir()
    (tmp_path / "wikitext-2-raw" / "test.txt").write_text(text)
    monkeypatch.setattr(text_sources, "WIKITEXT_SHA256", hashlib.sha256(text.encode()).hexdigest())
    articles = load_texts("wikitext-articles", tokenizer, text_dir=tmp_path)
    assert [article.title for article in articles] == ["First", "Second"]
    assert characters(tokenizer, articles[0]).endswith("More . \n")


def test_wikitexts_breadth_leaves_out_what_is_short(tmp_path, tokenizer, monkeypatch):
    text = " = Short = \n Words . \n" + "".join(f" = Long {i} = \n" + " Words .\n" * 400 for i in range(3))
    (tmp_path / "wikitext-2-raw").mkdir()
    (tmp_path / "wikitext-2-raw" / "test.txt").write_text(text)
    monkeypatch.setattr(text_sources, "WIKITEXT_SHA256", hashlib.sha256(text.encode()).hexdigest())
    articles = load_texts("wikitext-breadth", tokenizer, text_dir=tmp_path)
    assert [article.title for article in articles] == ["Long 0", "Long 1", "Long 2"]
    assert {len(article.input_ids) for article in articles} == {512}


def test_pg19_is_one_window_of_each_books_body(mirror, tokenizer, monkeypatch):
    (mirror / "pg19" / "10.txt").write_text("".join(PAGES[500:]))
    monkeypatch.setenv("KNORM_TEXT_DIR", str(mirror))
    first, second = load_texts("pg19", tokenizer)
    assert (first.title, second.title) == ("7", "10")
    # Pages are shorter where their numbers are, so that a quarter of the characters is a little more of the pages.
    assert characters(tokenizer, first).startswith("Page 25")
    assert characters(tokenizer, second).startswith("Page 62")
    assert TEXT_SETS["pg19"].limit >= 30


def test_the_windows_of_one_book_are_in_order_and_share_no_character(mirror, tokenizer):
    (mirror / "pg19" / "8.txt").write_text("another book")
    texts = load_texts("pg19-windows", tokenizer, text_dir=mirror, max_eval_tokens=10**6)
    pages = [[int(word) for word in characters(tokenizer, text).split() if word.isdigit()] for text in texts]
    assert len(pages) >= 8
    assert pages == [list(range(part[0], part[-1] + 1)) for part in pages]
    assert 80 <= pages[0][0] <= 120
    assert 880 <= pages[-1][0] <= 920
    assert all(part[-1] < following[0] for part, following in itertools.pairwise(pages))
    assert [text.title for text in texts][:2] == ["7 at 10%", "7 at 15%"]


def test_only_files_named_by_a_number_are_books(mirror, tokenizer):
    for name in ("README.txt", "7a.txt", "8.txt.bak", "٣.txt"):
        (mirror / "pg19" / name).write_text("This is no book.\n" * 100)
    assert [text.title for text in load_texts("pg19", tokenizer, text_dir=mirror)] == ["7"]


def test_a_text_that_changes_with_its_time_of_change_kept_is_read_again(mirror, tokenizer):
    path = mirror / "pg19" / "7.txt"
    [before] = load_texts("pg19", tokenizer, text_dir=mirror)
    status = path.stat()
    path.write_text(path.read_text().replace("says", "said"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    [after] = load_texts("pg19", tokenizer, text_dir=mirror)
    assert "said" in characters(tokenizer, after)
    assert after.sha256 != before.sha256


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "/proc/self/pagemap", "a folder", "not UTF-8"])
def test_a_book_that_is_no_text_is_refused_in_a_sentence(what, mirror, tokenizer):
    path = mirror / "pg19" / "7.txt"
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what.startswith("/"):
        if not os.path.exists(what):
            pytest.skip(f"this system has no {what}")
        path.symlink_to(what)
    elif what == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"caf\xe9")
    reason = "is not UTF-8 \\(byte 3\\)" if what == "not UTF-8" else "is no regular file"
    with pytest.raises(TextNotFoundError, match=f"text at .*7.txt {reason}"):
        load_texts("pg19", tokenizer, text_dir=mirror)


# --- your own texts


def test_a_file_of_ones_own_is_cut_into_windows(tmp_path, tokenizer):
    (tmp_path / "my book.txt").write_text("".join(PAGES[:40]))
    texts = load_texts(tmp_path / "my book.txt", tokenizer, max_eval_tokens=200)
    ids = tokenizer("".join(PAGES[:40]), add_special_tokens=False).input_ids
    assert torch.equal(torch.cat([text.input_ids for text in texts]), torch.tensor(ids[: 200 * len(texts)]))
    assert len(ids) - 200 * len(texts) < 100  # a rest of less than half a window is left out
    assert texts[0].title == f"my book 1/{len(texts)}"
    assert {text.sha256 for text in texts} == {hashlib.sha256("".join(PAGES[:40]).encode()).hexdigest()}


def test_several_files_and_a_folder_are_taken_too(tmp_path, tokenizer):
    for name in ("b.txt", "a.txt", "notes.md"):
        (tmp_path / name).write_text("".join(PAGES[:4]))
    assert [text.title for text in load_texts(tmp_path, tokenizer)] == ["a", "b"]
    assert [text.title for text in load_texts([tmp_path / "b.txt", tmp_path / "notes.md"], tokenizer)] == ["b", "notes"]
    assert [text.title for text in load_texts(str(tmp_path / "b.txt"), tokenizer)] == ["b"]


def test_each_window_of_ones_own_text_begins_with_bos_and_all_are_spread_over_it(tmp_path, with_bos):
    (tmp_path / "a.txt").write_text("".join(PAGES))
    texts = load_texts(tmp_path, with_bos, max_eval_tokens=100, limit=4)
    assert all(text.bos and text.input_ids[0] == with_bos.bos_token_id for text in texts)
    assert {len(text.input_ids) for text in texts} == {100}
    parts = [int(text.title.split()[1].split("/")[0]) / int(text.title.split("/")[1]) for text in texts]
    assert parts == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.01)


def test_own_texts_that_cannot_be_are_refused(tmp_path, tokenizer):
    with pytest.raises(TextNotFoundError, match=r"no text at .*missing.txt \(No such file"):
        load_texts(tmp_path / "missing.txt", tokenizer)
    with pytest.raises(TextNotFoundError, match=r"it has no file \*\.txt"):
        load_texts(tmp_path, tokenizer)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(TextNotFoundError, match="has the 34 tokens that an evaluation needs"):
        load_texts(tmp_path, tokenizer)
