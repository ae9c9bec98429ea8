"""Downloads from the hub: at which revision, and whether they are the files that they should be.

What the suite names is pinned: to a commit, and file by file to a SHA-256. It is taken from the hub's local
cache without asking anybody; only what is missing there is downloaded. Every file that is used has been
hashed: against the pin, or else against what the hub announced, which is the name of the file's blob in the
cache (SHA-256 for large files, git's SHA-1 for small ones; a cache without links does not have these names).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Pin(NamedTuple):
    """A pinned repository: its kind, a commit, and the SHA-256 of each file that is used."""

    kind: str  # "model" or "dataset"
    revision: str
    sha256: Mapping[str, str | None]  # None: only what the hub announces is known


#: Repositories that the suite names.
PINNED: dict[str, Pin] = {
    "EleutherAI/pythia-70m-deduped": Pin(
        "model",
        "e93a9faa9c77e5d09219f6c868bfc7a1bd65593c",
        {
            "config.json": "002050231a9b1ec3ac77aa6b9b3bbdc4d923f4068a7dd33b8da72a9bd6ad9a43",
            "special_tokens_map.json": "6f50ab5a5a509a1c309d6171f339b196a900dc9c99ad0408ff23bb615fdae7ad",
            "tokenizer.json": "c24618a1b3e6a38167beff1c72cffd126c3a66254347304b50547d12c5f25624",
            "tokenizer_config.json": "70e38394e494931c6f773ba41e19460dd4436526b852207367f04341b4066d3f",
            "model.safetensors": "3da388330e4549156d76b58d6d268c63cd005e9336b4f4d2d378421e7b7a33fd",
        },
    ),
    "Salesforce/wikitext": Pin(
        "dataset",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        {
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": (
                "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91"
            )
        },
    ),
    "emozilla/pg19-test": Pin(
        "dataset",
        "c5e39bf32e33f9111323aa68d7d9000d22722035",
        {"data/test-00000-of-00001-29a571947c0b5ccc.parquet": None},
    ),
}

# A first question must be answered in this time, so that a dead network is noticed before large files are
# asked for. Dropped connections and 5xx are tried again, after 1, 2 and 4 seconds.
_TIMEOUT_SECONDS = 10.0
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 1.0

_TRANSPORT = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
_INSTEAD = {
    "model": "name a local folder with its safetensors",
    "dataset": "name a local mirror with --knorm-text-dir",
}


class HubError(ValueError):
    """A download failed, or is not what it should be. The message is one sentence that says what to do next."""


class Contents(NamedTuple):
    """The files of a repository at a commit."""

    commit: str
    files: tuple[str, ...]


def pinned(name: str) -> Path:
    """The local folder with the files of a repository in `PINNED`; without a request where they are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    pin = PINNED[name]
    for file in pin.sha256:
        if not isinstance(try_to_load_from_cache(name, file, revision=pin.revision, repo_type=pin.kind), str):
            _ask(name, pin.kind, pin.revision)
            break
    return fetch(name, pin.kind, pin.revision, pin.sha256)


def contents(name: str) -> Contents:
    """The files of a model's default branch; those in the cache where the hub does not say."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return _ask(name, "model", None)
    except HubError:
        cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            raise
        folder = Path(cached).parent
        return Contents(folder.name, tuple(file.name for file in folder.iterdir()))


def fetch(name: str, kind: str, revision: str, files: Iterable[str]) -> Path:
    """The local folder with these files, each downloaded where it is missing, and checked.

    Raises:
        HubError: a file cannot be had, or its hash is not the pinned or the announced one.
    """
    from huggingface_hub import hf_hub_download

    pin = PINNED.get(name)
    folder = Path()
    _resume_after_resets()
    for file in files:
        with _explained(name, kind, f"/{_page(name, kind)}/resolve/{revision}/{file}"):
            path = Path(_persistently(hf_hub_download, name, file, repo_type=kind, revision=revision))
        _check(path, f"{file} of {_what(name, kind)}", pin.sha256.get(file) if pin else None)
        folder = path.parents[file.count("/")]
    return folder


def _ask(name: str, kind: str, revision: str | None) -> Contents:
    from huggingface_hub import HfApi

    with _explained(name, kind, f"/api/{kind}s/{name}" + (f"/revision/{revision}" if revision else "")):
        repository = _persistently(HfApi().repo_info, name, repo_type=kind, revision=revision, timeout=_TIMEOUT_SECONDS)
    return Contents(str(repository.sha), tuple(file.rfilename for file in repository.siblings or ()))


def _check(path: Path, what: str, pinned: str | None) -> None:
    # One link, not all of them: the blob itself may be a link into a store that is named by another hash.
    announced = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    if pinned is not None:
        _compare(path, what, "SHA-256", hashlib.sha256(), "pinned", pinned)
    elif re.fullmatch("[0-9a-f]{64}", announced):
        _compare(path, what, "SHA-256", hashlib.sha256(), "announced", announced)
    elif re.fullmatch("[0-9a-f]{40}", announced):
        git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        _compare(path, what, "git's SHA-1", git, "announced", announced)


def _compare(path: Path, what: str, kind: str, digest: Any, source: str, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: digest).hexdigest()
    if actual != expected:
        raise HubError(
            f"{what} has {kind} {actual}, not the {source} {expected}: it is not the file that it should be, "
            f"so delete {path.resolve()} and run again"
        )


def _persistently(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    # huggingface_hub resumes a download whose connection is closed or silent, and fails on a 5xx.
    import tenacity

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(_FIRST_WAIT_SECONDS),
        retry=tenacity.retry_if_exception(_passing),
        reraise=True,
    )
    return retrying(call, *arguments, **options)


def _resume_after_resets() -> None:
    """Make huggingface_hub treat a reset connection like a closed one, which it resumes.

    Before its version 1 it has no such hooks, and a download begins again after a reset.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    hooks = getattr(session, "event_hooks", None)
    if hooks is not None and _resets_are_closures not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _resets_are_closures]}


def _resets_are_closures(response: Any) -> None:
    http: Any = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or what has taken its place
    body = response.stream

    class Stream(http.SyncByteStream):  # type: ignore[misc]  # which of the two it is, is known when it runs
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from body
            except http.ReadError as error:
                raise http.RemoteProtocolError(str(error)) from error

        def close(self) -> None:
            body.close()

    response.stream = Stream()


def _passing(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status >= 500 or (status == 0 and _is_transport(error))


def _is_transport(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _TRANSPORT


@contextlib.contextmanager
def _explained(name: str, kind: str, path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise HubError(_sentence(list(_chain(error)), name, kind, path)) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(errors: list[BaseException], name: str, kind: str, path: str) -> str:
    """What went wrong, in words: ``errors`` is an exception and its causes, ``path`` what was asked for."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    def any_is(*classes: type[BaseException]) -> bool:
        return any(isinstance(error, classes) for error in errors)

    what, endpoint, instead = _what(name, kind), constants.ENDPOINT, _INSTEAD[kind]
    response = next((r for error in errors if (r := getattr(error, "response", None)) is not None), None)
    if response is not None:
        at = f"({response.status_code} for {urlsplit(str(response.url)).path})"
        page = f"{endpoint}/{_page(name, kind)}"
        if any_is(GatedRepoError):
            return f"{what} is gated {at}: accept its terms at {page} and log in with 'hf auth login', or {instead}"
        if any_is(RevisionNotFoundError):
            return f"{what} no longer has the revision that was asked for {at}: see {page}, or {instead}"
        if response.status_code in (401, 403):
            return f"{what} is private, or not there {at}: check the name, log in with 'hf auth login', or {instead}"
        if response.status_code == 404:
            return f"{what} is not there {at}: check the name at {endpoint}, or {instead}"
        return f"{what} cannot be had now, the hub answers {at}: try again later, or {instead}"
    at = f"({path})"
    if any_is(OfflineModeIsEnabled):
        return f"{what} is not in {constants.HF_HUB_CACHE} {at}, and HF_HUB_OFFLINE is set: unset it, or {instead}"
    reason = next((text for error in errors if (text := getattr(error, "strerror", None))), None)
    if any("Timeout" in type(error).__name__ for error in errors):
        trouble = f"the hub at {endpoint} did not answer in time"
    elif any(_is_transport(error) for error in errors):
        trouble = f"the hub at {endpoint} cannot be reached, {reason or type(errors[-1]).__name__}"
    elif reason:
        cache = constants.HF_HUB_CACHE
        return (
            f"{what} cannot be kept in {cache} {at}, {reason}: see to that folder, move it with HF_HOME, or {instead}"
        )
    else:
        first_line = str(errors[0]).strip().partition("\n")[0]
        trouble = f"what {endpoint} sent is of no use, {type(errors[0]).__name__}: {first_line}"
    return f"{what} cannot be had, {trouble} {at}: check the network and HF_ENDPOINT, or {instead}"


def shortened(name: str | os.PathLike[str]) -> str:
    """A name, cut to a length that fits into a message."""
    abbreviation = reprlib.Repr()
    abbreviation.maxstring = 200
    return abbreviation.repr(str(name))[1:-1]


def _what(name: str, kind: str) -> str:
    return f"{'model' if kind == 'model' else 'data set'} {name!r}"


def _page(name: str, kind: str) -> str:
    return name if kind == "model" else f"{kind}s/{name}"


def fetch_pinned() -> None:
    """Fetch all that is pinned, with progress shown, before something needs it; no texts where a mirror has them.

    Raises:
        HubError: something cannot be had.
    """
    mirrored = os.environ.get("KNORM_TEXT_DIR")
    for name in [name for name, pin in PINNED.items() if not (mirrored and pin.kind == "dataset")]:
        print(pinned(name))
