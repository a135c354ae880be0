"""A stand-in of the Hub on this machine that gives one model, and fails when it is told to."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from tests.tiny import save_tiny

REPO = "somebody/tiny"
PATIENCE = 0.3
"""The seconds without an answer after which the Hub's library gives up on a request."""
LARGE = ".safetensors"
"""How the names of those files end that are stored apart from git, under their sha256."""


@dataclass
class FlakyHub:
    """What it has, what it is to do wrong, and what it was asked for.

    Attributes:
        files: The files of the one model.
        faults: How the next requests are answered wrong, each with words that the request must have.
        always: How all others are.
        asked: The path of each request with the range that it asked for.
    """

    files: dict[str, bytes]
    faults: list[tuple[str, str]] = field(default_factory=list)
    always: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    cache: Path = Path()
    commits: int = 1

    @property
    def commit(self) -> str:
        """The one commit of the model, by which its list of files is remembered."""
        return f"{self.commits:040x}"

    def forget(self) -> None:
        """Have another commit of the same files, of which nobody has anything."""
        self.commits += 1
        shutil.rmtree(self.cache, ignore_errors=True)

    def fault_of(self, request: str) -> str | None:
        """How this request is answered wrong; None where it is not."""
        for number, (fault, of) in enumerate(self.faults):
            if all(word in request for word in of.split()):
                del self.faults[number]
                return fault
        return self.always

    def listed(self) -> list[dict[str, object]]:
        """The files as the Hub lists them."""
        return [
            {"type": "file", "path": name, "size": len(held), "oid": git_name(held)}
            | ({"lfs": {"oid": _sha256(held), "size": len(held), "pointerSize": 130}} if name.endswith(LARGE) else {})
            for name, held in self.files.items()
        ]


def git_name(held: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(held) + held, usedforsecurity=False).hexdigest()


def _sha256(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does, but for its faults."""

    hub: FlakyHub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As GET, without what is in it."""
        self.do_GET()

    def do_GET(self) -> None:
        """The model, the list of its files, or one of them."""
        path = urlsplit(self.path).path
        self.hub.asked.append((path, self.headers.get("range")))
        fault = self.hub.fault_of(f"{self.command} {path}")
        if fault is not None and fault.isdigit():
            self._answer(int(fault), b"{}")
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            self._answer(200, json.dumps(self.hub.listed()).encode(), fault)
        elif path.startswith(f"/api/models/{REPO}"):
            named = {"id": REPO, "sha": self.hub.commit, "siblings": [{"rfilename": name} for name in self.hub.files]}
            self._answer(200, json.dumps(named).encode(), fault)
        elif (name := path.removeprefix(f"/{REPO}/resolve/{self.hub.commit}/")) in self.hub.files:
            self._file(self.hub.files[name], name, fault)
        else:
            self._answer(404, b"{}", None, {"X-Error-Code": "RepoNotFound"})

    def _file(self, held: bytes, name: str, fault: str | None) -> None:
        stored = _sha256(held) if name.endswith(LARGE) else git_name(held)
        about = {"ETag": f'"{stored}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        asked, status = self.headers.get("range"), 200
        if asked:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            about["Content-Range"] = f"bytes {start}-{len(held) - 1}/{len(held)}"
            held, status = held[start:], 206
        self._answer(status, held, fault, about)

    def _answer(self, status: int, body: bytes, fault: str | None = None, about: dict[str, str] | None = None) -> None:
        if fault == "silent":
            time.sleep(2 * PATIENCE)
            self.close_connection = True
            return
        if fault == "short":
            body = body[: len(body) // 2]
        if fault == "altered":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(about or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if fault in ("cut", "reset") else body)
        if fault in ("cut", "reset"):
            self.wfile.flush()
            self.close_connection = True
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@contextmanager
def flaky_hub(folder: Path) -> Iterator[FlakyHub]:
    """A Hub with a tiny model, which the Hub's library asks meanwhile; its cache is empty."""
    source = save_tiny(folder / "source")
    hub = FlakyHub({path.name: path.read_bytes() for path in sorted(source.iterdir())}, cache=folder / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a connection that it closed itself
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {
            "ENDPOINT": here,
            "HUGGINGFACE_CO_URL_TEMPLATE": here + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(hub.cache),
            "HF_HUB_DOWNLOAD_TIMEOUT": PATIENCE,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patched.setattr(constants, name, value)
        patched.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub
    server.shutdown()
    thread.join()
    server.server_close()
