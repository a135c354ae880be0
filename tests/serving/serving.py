"""A server in this process, at a port of its own, and what is asked of it by http.client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from loraft.inference.session import Session
from loraft.serving.interface import Limits, Server


@contextmanager
def served(
    session: Session,
    limits: Limits = Limits(),  # noqa: B008
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    grace: int | None = None,
) -> Iterator[int]:
    """A server for a session, and its port; at its end it cancels what takes longer than `grace` seconds."""
    app = Server(session, limits, api_key, hosts).app()
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=grace)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def half_asked(port: int) -> Iterator[None]:
    """A request on its way of which half was sent."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b'content-length: 99\r\n\r\n{"model":')
        assert request(port, "/health", method="GET")[0] == 200  # so the server has come by the half
        yield


def request(
    port: int, path: str, body: object = None, *, method: str = "POST", **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON that a request gets; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    given = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, sent, given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def chat(port: int, text: str, **more: object) -> tuple[int, dict[str, Any]]:
    """What is answered to one message of the base."""
    body = {"model": "base", "messages": [{"role": "user", "content": text}], **more}
    return request(port, "/v1/chat/completions", body)
