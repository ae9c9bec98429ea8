"""A stand-in for the hub on loopback: as much of its protocol as huggingface_hub and datasets use.

Small files are served where they are asked for, with git's SHA-1 as ETag. Large ones are redirected to a
store on another host, with their SHA-256 and size in the headers of the redirect, and can be had in part
(Range), all as on the hub. Faults are queued per path, each for one request.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LARGE = (".safetensors", ".parquet", ".bin")  # files that the hub keeps with git-lfs


@dataclass
class Repository:
    """What is served under one name. ``gated``: its files need a login and the consent of its owner."""

    kind: str  # "model" or "dataset"
    commit: str
    files: dict[str, bytes]
    gated: bool = False


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


Fault = Callable[["_Handler", bytes], None]


@dataclass
class StandIn:
    """The server, from ``with StandIn() as hub`` to the end of the block, or `stop`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> StandIn:
        self._stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """Requests so far whose path has ``part``."""
        return [request for request in self.requests if request.method == method and part in request.path]


# Faults: what happens to one request instead of its answer.


def status(code: int, **headers: str) -> Fault:
    return lambda handler, _: handler.answer(code, b"", headers)


def dropped(after: int, *, reset: bool = False) -> Fault:
    """The connection ends after so many bytes of the body: closed, or reset."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.answer_headers(200, len(body))
        handler.wfile.write(body[:after])
        handler.wfile.flush()
        handler.close_connection = True
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    return fault


def stalled(after: int) -> Fault:
    """After so many bytes of the body nothing more comes, until the stand-in stops."""

    def fault(handler: _Handler, body: bytes) -> None:
        handler.answer_headers(200, len(body))
        handler.wfile.write(body[:after])
        handler.wfile.flush()
        silent(handler, body)

    return fault


def silent(handler: _Handler, _: bytes) -> None:
    handler.hub._stopping.wait(60)
    handler.close_connection = True


def flipped(handler: _Handler, body: bytes) -> None:
    """One bit of the body arrives otherwise than it was sent."""
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1
    handler.answer(200, bytes(damaged), {})


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/json":
            self._serve(json.loads(form)["paths"])
        else:
            self._serve(urllib.parse.parse_qs(form.decode())["paths"])

    def do_GET(self) -> None:
        self._serve([])

    def _serve(self, paths: list[str]) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, self.headers["Range"]))
        if stored := re.fullmatch("/stored/([0-9a-f]{64})/.*", path):
            self._answer_in_part(path, self._stored(stored[1]), {})
        elif api := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path):
            self._api(path, *api.groups(), paths=paths)
        elif file := re.fullmatch(r"(/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(path, *file.groups())
        else:
            self.answer(404, b"", {})

    def _stored(self, digest: str) -> bytes:
        everything = (body for repository in self.hub.repositories.values() for body in repository.files.values())
        return next(body for body in everything if sha256(body) == digest)

    def _api(self, path: str, kind: str, name: str, what: str | None, rest: str | None, paths: list[str]) -> None:
        revision, _, below = (rest or "main").partition("/")
        repository = self._found(kind, name, revision)
        if repository is None:
            return
        entries = list(_entries(repository))
        if what == "tree":
            inside = [entry for entry in entries if entry["path"].startswith(f"{below}/" if below else "")]
            deep = "recursive=true" in self.path.lower()
            answer: Any = [entry for entry in inside if deep or "/" not in entry["path"][len(below) :].lstrip("/")]
        elif what == "paths-info":
            answer = [entry for entry in entries if entry["path"] in paths]
        else:
            siblings = [{"rfilename": file} for file in repository.files]
            answer = {"_id": "0" * 24, "id": name, "sha": repository.commit, "private": False, "siblings": siblings}
            answer |= {"gated": "auto" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0}
        body = json.dumps(answer).encode()
        self._fault_or(path, body, lambda: self.answer(200, body, {"Content-Type": "application/json"}))

    def _resolve(self, path: str, prefix: str | None, name: str, revision: str, file: str) -> None:
        repository = self._found("dataset" if prefix else "model", name, revision)
        if repository is None:
            return
        commit = {"X-Repo-Commit": repository.commit}
        login = "Authorization" in self.headers
        if repository.gated:
            self.answer(403 if login else 401, b"", {"X-Error-Code": "GatedRepo", **commit})
        elif file not in repository.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
        elif not file.endswith(LARGE):
            body = repository.files[file]
            self._answer_in_part(path, body, {"ETag": f'"{_git_sha1(body)}"', **commit})
        else:
            body = repository.files[file]
            digest = sha256(body)
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
            location = {"Location": f"http://localhost:{self.hub.port}/stored/{digest}/{urllib.parse.quote(file)}"}
            self._fault_or(path, b"", lambda: self.answer(302, b"", {**linked, **location, **commit}))

    def _found(self, kind: str, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or repository.kind != kind:
            # Who has not logged in is not told whether a name is private or not there.
            self.answer(404 if "Authorization" in self.headers else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", repository.commit):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _answer_in_part(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if start:
            part = body[int(start[1]) :]
            headers = {**headers, "Content-Range": f"bytes {start[1]}-{len(body) - 1}/{len(body)}"}
            self._fault_or(path, part, lambda: self.answer(206, part, headers))
        else:
            self._fault_or(path, body, lambda: self.answer(200, body, headers))

    def _fault_or(self, path: str, body: bytes, answer: Callable[[], None]) -> None:
        queues = [queue for part, queue in self.hub.faults.items() if part in path and queue]
        if queues and (self.command != "HEAD" or "/stored/" not in path):
            queues[0].pop(0)(self, body)
        else:
            answer()

    def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.answer_headers(code, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_headers(self, code: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entries(repository: Repository) -> Iterator[dict[str, Any]]:
    """Folders and files as the hub lists them."""
    folders = {file.rpartition("/")[0] for file in repository.files} - {""}
    for folder in sorted(folders):
        yield {"type": "directory", "path": folder, "oid": _git_sha1(folder.encode()), "size": 0}
    for file, body in sorted(repository.files.items()):
        entry: dict[str, Any] = {"type": "file", "path": file, "oid": _git_sha1(body), "size": len(body)}
        if file.endswith(LARGE):
            entry["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 133}
        yield entry


@functools.cache
def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
