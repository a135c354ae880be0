"""A server from its first line to its last: the port is taken before a model is loaded, and given back at the end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from loraft.errors import ConfigError
from loraft.evaluation.open_model import RequestedModel
from loraft.events import Observer, tell
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.inference.session import Session
from loraft.models.remote_code import as_trusted
from loraft.serving.interface import Limits, Server

GRACE_SECONDS = 30
"""How long what is being answered may go on once the end is asked for."""
LAST_SECONDS = 5
"""And how long clients then have to take the error that it ends by."""
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@as_trusted
def serve(
    model: ModelRequest,
    *,
    host: str,
    port: int,
    limits: Limits,
    api_key: str | None,
    observer: Observer,
    on_ready: Callable[[str, tuple[str, ...]], None],
) -> None:
    """Answer requests until a signal asks for the end.

    Args:
        model: What answers: each adapter under its name, and the base.
        host: The address to listen at.
        port: The port; 0 takes any that is free.
        limits: What is allowed.
        api_key: What each request has to bring; None asks for nothing.
        observer: Is told what was decided and found.
        on_ready: Is told where it answers and under which names, once it does.

    Raises:
        InvalidInputError: The address cannot be taken, or the model cannot be used.
        KeyboardInterrupt: A signal asked for the end, and what was being answered is done.
    """
    with _bound(host, port) as listening:
        session = RequestedModel(model).session()
        tell(observer, *session.notes, *about_beams(session))
        hosts = sorted({*THIS_MACHINE, host}) if is_loopback(host) else ()
        server = Server(session, limits, api_key, hosts, observer)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        asyncio.run(_serve(server, listening, lambda: on_ready(address, tuple(session.voices))))


def about_beams(session: Session) -> Iterator[str]:
    """A sentence for each voice whose answers elsewhere are found by beams: answers that grow together follow one."""
    for name, voice in session.voices.items():
        beams = voice.settings(GenerationRequest())["rules"].num_beams
        if beams > 1:
            yield f"{name}: the {beams} beams that generation_config.json asks for cannot be served: it is one here"


def is_loopback(host: str) -> bool:
    """Whether an address leads from this machine to itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, which does not listen yet."""
    try:
        (family, kind, number, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, error) from error
    bound = socket.socket(family, kind, number)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host, error) from error
        message = f"port {port} at {host} cannot be taken: {error.strerror}"
        remedy = "Choose another port, or 0 for any that is free."
        raise ConfigError(message, parameter="port", remedy=remedy) from error
    return bound


def _no_address(host: str, error: OSError) -> ConfigError:
    message = f"{host} is no address of this machine: {error.strerror}"
    return ConfigError(message, parameter="host", remedy="127.0.0.1 is this machine alone, 0.0.0.0 all its addresses.")


class _Announced(uvicorn.Server):
    """A server that tells once it answers, and ends what it is still answering when that has to end."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn does it, but for a second Ctrl-C, by which it would leave clients without a word: a third does."""
        if self.should_exit and sig == signal.SIGINT:
            signal.signal(sig, signal.SIG_DFL)
            self._loop.call_soon_threadsafe(self._on_end)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it."""
        self._loop.call_later(GRACE_SECONDS, self._on_end)
        await super().shutdown(sockets)


async def _serve(server: Server, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS + LAST_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
    )
    await _Announced(config, on_ready, server.end).serve(sockets=[listening])
